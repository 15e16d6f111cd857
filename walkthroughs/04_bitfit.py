# %% [markdown]
# # BitFit
#
# BitFit (Ben Zaken, Ravfogel and Goldberg 2022) trains the biases of the encoder and nothing else. A linear layer $y =
# W x + b$ keeps its $W$ and may change its $b$: one number for each feature of the output. That this works at all is
# surprising. This page counts the biases, shows what they can do and what they cannot, proves that one eleventh of the
# trained parameters of each layer has no effect, and looks at which biases move in training.
#
# You need to know the names of the layers ([RoBERTa in 300 lines](02_roberta_in_300_lines.ipynb)); the page on
# [LoRA](03_lora.ipynb) is not needed.

# %%
import copy
import tempfile

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from showing import picture, source

import minipeft
from minipeft.methods import bitfit
from minipeft.model.attention import attend_plain
from minipeft.model.families import LINEAR_NAMES
from minipeft.model.layers import Linear

torch.manual_seed(0)
tokenizer = minipeft.load_tokenizer("roberta-mini")

# %% [markdown]
# ## The whole method
#
# It is the smallest in the package. Nothing is added to the model; some of its parameters are no longer frozen.

# %%
source(bitfit.BitFit, bitfit.install)

# %% [markdown]
# ## Counting
#
# Write $h$ for `hidden_size`. The feed-forward part of RoBERTa is four times as wide, $4h$. Then a layer has these
# biases:
#
# | bias of | numbers |
# |---|---|
# | `query`, `key`, `value`, `output` | $4h$ |
# | `attention_layer_norm` | $h$ |
# | `intermediate` | $4h$ |
# | `ffn_output` | $h$ |
# | `output_layer_norm` | $h$ |
#
# Together $11h$, and $h$ more for the LayerNorm behind the embeddings. We count them in roberta-base's shape, by
# building the model on PyTorch's *meta* device, where tensors have shapes and no contents.

# %%
base = minipeft.EncoderConfig()
h, layers = base.hidden_size, base.num_hidden_layers
assert base.intermediate_size == 4 * h


def counted(method: object) -> minipeft.methods.ParameterCount:
    with torch.device("meta"):
        return minipeft.count_parameters(minipeft.apply(minipeft.SequenceClassifier(base), method))


every, subset = counted(minipeft.BitFit()), counted(minipeft.BitFit(targets=("query", "intermediate")))
print(
    f"all biases               {every.method:>8,} = 11 · {h} · {layers} + {h}, {every.method / every.total:.3%} of all"
)
print(f"query and intermediate   {subset.method:>8,} =  5 · {h} · {layers}")
print(f"LoRA with rank 2         {counted(minipeft.LoRA(rank=2)).method:>8,}")
assert every.method == 11 * h * layers + h and subset.method == 5 * h * layers

# %% [markdown]
# The second line is a subset that section 4 of the paper proposes, because these biases had changed most: those of the
# query and of the first feed-forward layer. The results are nearly as good.
#
# ## What a bias can do
#
# A bias adds the same vector to *every* token, whatever the token is. In a network of linear layers only, that would be
# almost useless: the sum of all changes would arrive at the end as one constant vector, added to the logits of every
# input alike. It could not separate any two inputs that were not separated before.
#
# But a transformer is not linear, and a constant shift *before* a non-linear function is not constant after it. GELU
# passes large positive numbers and suppresses negative ones. A bias of the `intermediate` layer moves the point at
# which each of the features opens: it can switch a feature off for all inputs but a few, or pass one that was always
# suppressed. The pretrained network computes very many features, of which a task needs some. A bias can choose among
# features that exist already. The authors suggest the same: fine-tuning mostly exposes what was learned in pretraining,
# and learns little that is new.
#
# We can see it in one layer. We shift the bias of `intermediate` by the same vector for all tokens, and measure how
# much the change *differs* between tokens, before GELU and after.

# %%
model = minipeft.load_pretrained("roberta-mini").eval().requires_grad_(False)
sentences = ["A quiet film.", "Not one good scene in it.", "Mary saw a red car in the park, and the car was new."]
batch = minipeft.pack(tokenizer.encode(sentences), config=model.config)
seen = {}
layer = model.encoder.layers[2]
hook = layer.intermediate.register_forward_hook(lambda module, inputs, output: seen.update(output=output))
model.encoder(batch)
hook.remove()

before = seen["output"]  # (total_tokens, intermediate_size)
shift = 0.5 * torch.randn(before.shape[1])
for name, change in (
    ("before GELU", (before + shift) - before),
    ("after GELU", F.gelu(before + shift) - F.gelu(before)),
):
    over_tokens = float(change.std(dim=0).mean())
    print(f"{name:<12} size of the change {float(change.square().mean().sqrt()):.3f}, differs by {over_tokens:.3f}")
    assert (over_tokens > 0.01) == (name == "after GELU")

# %% [markdown]
# Each kind of bias has another effect:
#
# - **`query`**: the score of token $j$ for token $i$ is $(q_i + \delta) \cdot k_j = q_i \cdot k_j + \delta \cdot k_j$.
#   The second part does not depend on who looks. All tokens look more at those $j$ whose key points along $\delta$: a
#   bias of the query says *what is interesting in this task*.
# - **`value`**: the weights of attention sum to 1, so a vector added to every value is added unchanged to the result.
#   This shifts the output by a constant, which the bias of the `output` layer can do as well. So one of the two is
#   enough; the next cell shows it.
# - **`output`, `ffn_output`** and the biases of **LayerNorm**: they shift what the next layers see, and so move the
#   points at which *these* open.
# - **`intermediate`**: it moves GELU's opening points, as above.
# - **`key`**: no effect at all. A section below proves it.

# %%
values, keys, queries = (torch.randn(batch.total_tokens, 256, dtype=torch.float64) for _ in range(3))
delta = torch.randn(256, dtype=torch.float64)
mix = torch.randn(256, 256, dtype=torch.float64)  # the weight of `output`


def attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return attend_plain(query, key, value, batch.lengths, num_heads=4)


through_value = attended(queries, keys, values + delta) @ mix.T
through_output = attended(queries, keys, values) @ mix.T + mix @ delta
print(
    "value's bias against output's, largest difference:", f"{float((through_value - through_output).abs().max()):.1e}"
)
assert torch.allclose(through_value, through_output)

# %% [markdown]
# ## What it cannot do
#
# It cannot use new directions of the input. $\Delta h = \Delta b$ does not depend on $x$, while LoRA's $\Delta h = s\,B
# A x$ looks at the input along new directions. A feature that pretraining has not made can be made by LoRA and not by
# BitFit. Nor can a bias reverse a direction: no $\Delta b$ makes $W x + \Delta b$ equal to $-W x$. We fit a random
# linear change of a single layer with both, as well as each can. For the bias that is the mean error over the tokens;
# for a LoRA of full rank nothing is left.

# %%
torch.manual_seed(0)
frozen, wanted = Linear(64, 64), torch.randn(64, 64) / 8
x = torch.randn(1000, 64)
error = x @ wanted.T  # what the layer should do beyond what it does
left_by_bias = error - error.mean(0)
left_by_matrix = error - x @ torch.linalg.lstsq(x, error).solution
print("left by the best bias:  ", f"{float(left_by_bias.norm() / error.norm()):.3f} of the error")
print("left by the best matrix:", f"{float(left_by_matrix.norm() / error.norm()):.1e}")
assert left_by_bias.norm() > 0.9 * error.norm()

# %% [markdown]
# So how well BitFit does depends on how much of the task the pretrained network already knows. The paper finds it close
# to full fine-tuning where training data are few, and behind it where they are many (section 3). With a small encoder,
# expect less.
#
# ## Key biases cannot matter
#
# Let $q_i$ be the query of a token and $k_j = W_k x_j + b_k$ the keys. The score is
#
# $$s_{ij} = \frac{q_i \cdot (W_k x_j + b_k)}{\sqrt{d}} = \frac{q_i \cdot W_k x_j}{\sqrt{d}}
# + \frac{q_i \cdot b_k}{\sqrt{d}} .$$
#
# The last term has no $j$ in it: a key bias adds the *same* number to all scores of the token that looks. And softmax
# is not changed by a number that is added to all scores,
#
# $$\frac{e^{s_j + c}}{\sum_l e^{s_l + c}} = \frac{e^c\, e^{s_j}}{e^c \sum_l e^{s_l}}
# = \frac{e^{s_j}}{\sum_l e^{s_l}} .$$
#
# So the output does not depend on $b_k$, whatever the input, and the gradient of every loss with respect to $b_k$ is
# exactly zero. The formula of the gradient shows the same: it is $\sum_i q_i \sum_j \partial L / \partial s_{ij} /
# \sqrt{d}$, and since softmax keeps the sum of the weights at 1, the inner sum is zero. (Cordonnier, Loukas and Jaggi
# 2020 note the same in their study of attention.)
#
# With rounding, the terms do not cancel completely, and the remainder must shrink with more digits. We compare the same
# gradients in float32 and in float64.

# %%
norms = {}
for dtype in (torch.float32, torch.float64):
    parts = {}
    for name, start in (("query", queries), ("key", keys), ("value", values)):
        parts[name] = (start.to(dtype), torch.zeros(256, dtype=dtype, requires_grad=True))
    output = attended(*(start + bias for start, bias in parts.values()))
    target = torch.linspace(-1, 1, output.numel(), dtype=dtype).view_as(output)
    (output.sin() * target).sum().backward()
    norms[dtype] = {name: float(bias.grad.norm()) for name, (_, bias) in parts.items()}
    print(f"{dtype!s:<14}", ", ".join(f"{name}: {norm:.1e}" for name, norm in norms[dtype].items()))
assert norms[torch.float32]["key"] < 1e-4 * norms[torch.float32]["query"]
assert norms[torch.float64]["key"] < 1e-12 * norms[torch.float64]["query"]

# %% [markdown]
# Now in the real encoder, with all its layers and a real loss. We let all biases train, run one batch through and
# collect the gradients by the type of the bias.

# %%
torch.manual_seed(0)
model = minipeft.apply(minipeft.load_pretrained("roberta-mini").eval(), minipeft.BitFit())
labelled = minipeft.pack(tokenizer.encode(sentences), labels=[1, 0, 1], config=model.config)
F.cross_entropy(model(labelled), labelled.labels).backward()

TYPES = ("query", "key", "value", "output", "attention_layer_norm", "intermediate", "ffn_output", "output_layer_norm")
assert set(LINEAR_NAMES) < set(TYPES)
gradients = {
    kind: torch.stack([getattr(layer, kind).bias.grad.norm() for layer in model.encoder.layers]).mean().item()
    for kind in TYPES
}
for kind, size in gradients.items():
    print(f"{kind:<22}{size:.1e}")
assert gradients["key"] < 1e-4 * min(size for kind, size in gradients.items() if kind != "key")
in_vain = model.config.num_hidden_layers * model.config.hidden_size
print("key biases, trained in vain:", f"{in_vain:,} of {minipeft.count_parameters(model).method:,}")

# %% [markdown]
# ## Which biases move
#
# We train for a few seconds on a small part of the synthetic data for SST-2: far too short to say anything about
# accuracy, but long enough to see which biases move in the first steps.

# %%
scratch = tempfile.TemporaryDirectory()  # removed when the script ends
result = minipeft.train(
    task="sst2",
    method=minipeft.BitFit(),
    model="roberta-mini",
    data="standin",
    train_limit=320,
    eval_limit=64,
    batch_size=16,
    grad_accum=1,
    epochs=1,
    warmup_steps=2,
    lr=1e-2,
    precision="fp32",
    output=f"{scratch.name}/run",
    quiet=True,
)
trained, start = result.model.eval(), minipeft.load_pretrained("roberta-mini")
moved = {
    kind: torch.cat(
        [
            (getattr(after, kind).bias - getattr(before, kind).bias).detach()
            for after, before in zip(trained.encoder.layers, start.encoder.layers, strict=True)
        ]
    )
    for kind in TYPES
}
size = {kind: float(change.square().mean().sqrt()) for kind, change in moved.items()}

# %%
figure, axes = plt.subplots(figsize=(5.6, 3.8))
order = sorted(TYPES, key=size.__getitem__)
axes.barh(order, [size[kind] for kind in order], color=["C4" if kind == "key" else "C0" for kind in order])
axes.set_xlabel("root mean square of the change of a bias")
figure.tight_layout()
picture(
    figure,
    "Bars for the eight types of bias: how far each has moved. From most to least: "
    + ", ".join(f"{kind} {size[kind]:.4f}" for kind in reversed(order))
    + ".",
)
print("moved most:", ", ".join(order[:-4:-1]))
print(
    f"key against query: gradient {gradients['key'] / gradients['query']:.0e}, move {size['key'] / size['query']:.0e}"
)
assert size["key"] / size["query"] > 100 * gradients["key"] / gradients["query"]

# %% [markdown]
# The bar of the key biases is by far the shortest. Still, they have moved much further than their gradients suggest:
# the last printed line compares both with the query's. The reason is the optimizer. AdamW divides each gradient by a
# running estimate of its own size, so that every parameter moves by about the learning rate, however small its gradient
# is. It cannot know that this gradient is only rounding error. Only the small number that it adds to the divisor,
# $10^{-8}$ against a division by zero, holds the key biases back, because the rounding noise is even smaller than that.
# With a larger loss or in a lower precision it would not be, and the key biases would move at random as fast as the
# others move in a useful direction. But their values have no effect. With the old values put back, the logits stay the
# same:

# %%
restored = copy.deepcopy(trained)
without_query = copy.deepcopy(trained)
with torch.no_grad():
    for number, before in enumerate(start.encoder.layers):
        restored.encoder.layers[number].key.bias.copy_(before.key.bias)
        without_query.encoder.layers[number].query.bias.copy_(before.query.bias)
    logits = trained(batch)
    of_keys = float((restored(batch) - logits).abs().max())
    of_queries = float((without_query(batch) - logits).abs().max())
print(f"putting back the key biases changes a logit by at most   {of_keys:.1e}")
print(f"putting back the query biases changes a logit by at most {of_queries:.1e}")
assert size["key"] > 0 and of_keys < 1e-4 and of_keys < of_queries / 10

# %% [markdown]
# So the size of a change does not measure its use, in particular with Adam. The paper looked at the changes too, and
# saw the query's bias and the `intermediate` one (there called $b_{m2}$) move most and the key's stay where it was; the
# subset above comes from that. To find out which biases a task needs, train without them and compare:
#
# ```python
# minipeft.train(task="rte", method=minipeft.BitFit(targets=("query", "intermediate")))
# ```
#
# ## Saving and merging
#
# An adapter of BitFit is the changed biases and the head. There is nothing to merge, since these are biases that the
# model already has: prediction has no additional cost. peft's BEFT is near to it and not the same: it adds a vector
# that starts at 0 to the outputs of linear layers (by default those of `value` alone), and the biases of LayerNorm,
# $2h$ in each layer, stay as they are. So the adapter is stored under a name of minipeft; `minipeft.export` writes a
# whole checkpoint that transformers can load.

# %%
adapter = minipeft.load_adapter(minipeft.load_pretrained("roberta-mini"), f"{scratch.name}/run/adapter").eval()
with torch.no_grad():
    assert torch.equal(adapter(batch), trained(batch))
print(adapter.method, minipeft.count_parameters(adapter))

# %% [markdown]
# ## Summary
#
# - BitFit trains $11h$ numbers a layer, and $h$ more.
# - A bias shifts all tokens alike. It acts through the non-linear functions after it, by choosing among existing
#   features. It cannot make new ones.
# - Key biases cancel in the softmax: they have no effect, and their gradient is zero. With AdamW they move
#   nevertheless.
# - A bias that moved need not have had an effect.
#
# How these numbers are moved, step by step, is the subject of the next page: [the training
# loop](05_the_training_loop.ipynb).

# %% [markdown]
# ## Exercises
#
# The notebook has three exercises here, each with a check and a collapsed solution. In a clone the same exercises are
# in `exercises/04_bitfit.py`: write your answers there, then run
# `python walkthroughs/check.py 4`. It says what is right and gives hints. The solutions are in `solutions/`.
