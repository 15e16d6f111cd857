# %% [markdown]
# # LoRA
#
# LoRA (*low-rank adaptation*; Hu et al. 2021) leaves the pretrained weights as they are and trains, next to some of
# them, a product of two thin matrices. This page derives the update and its gradients, counts the parameters, explains
# alpha and the rank, the choice of layers and merging; at the end it trains an adapter and looks at what was learned.
#
# You need to know which linear layers an encoder has; [RoBERTa in 300 lines](02_roberta_in_300_lines.ipynb) shows them.

# %%
import copy
import tempfile

import matplotlib.pyplot as plt
import torch
from showing import picture, source

import minipeft
from minipeft.methods.lora import LoRALinear
from minipeft.model.layers import Linear

tokenizer = minipeft.load_tokenizer("roberta-mini")


def in_base_shape(method: object) -> minipeft.SequenceClassifier:
    """A model of roberta-base's shape without any numbers in it: enough to count with."""
    with torch.device("meta"):
        return minipeft.apply(minipeft.SequenceClassifier(minipeft.EncoderConfig()), method)


# %% [markdown]
# ## Why not train everything
#
# *Full fine-tuning* continues to train every weight of the pretrained network. It works well, but it costs memory as
# well as time. AdamW keeps two numbers for each trained number (running means of its gradient and of the gradient's
# square), and the gradient itself is a third. And each task needs a complete copy of the network.

# %%
full = minipeft.count_parameters(in_base_shape(minipeft.Full()))
lora = minipeft.count_parameters(in_base_shape(minipeft.LoRA(rank=8)))
for name, count in (("full fine-tuning", full), ("LoRA, rank 8", lora)):
    trained = count.method + count.head
    print(
        f"roberta-base, {name:<17} trained: {trained:>11,} of {count.total:,} parameters;",
        f"gradient and AdamW: {3 * 4 * trained / 2**20:7.1f} MiB; to store for a task: {4 * trained / 2**20:6.1f} MiB",
    )

# %% [markdown]
# (The classification head is trained in both cases. It is new for each task.)
#
# What LoRA does *not* save is most of the memory of the *activations*, the results of the forward pass that the
# backward pass needs again. The gradient must still travel through every layer down to the lowest adapter: through
# attention, GELU and LayerNorm, which need their inputs for it. Only the inputs of frozen linear layers are not kept,
# since they would serve the gradient of $W$ alone. With long texts and large batches the activations are most of the
# memory; [Where the time goes](06_where_the_time_goes.ipynb) and `--activation-checkpointing` are about them.
#
# ## The low-rank update
#
# Fine-tuning turns a weight $W$ into $W + \Delta W$. Both are matrices of `out_features` rows and `in_features`
# columns; we write $n$ and $m$. The hypothesis of the paper is that the *change* is simpler than the weight: it can be
# described by few directions. Aghajanyan, Zettlemoyer and Gupta (2020) had found that pretrained networks can be
# fine-tuned well inside a random subspace of surprisingly few dimensions.
#
# "Few directions" has an exact meaning for a matrix, its *rank*. A matrix of rank $r$ is a product of two thin ones,
#
# $$\Delta W = s\, B A, \qquad B \in \mathbb{R}^{n \times r}, \quad A \in \mathbb{R}^{r \times m},$$
#
# where the fixed number $s$ sets the scale; a section below explains it. So the layer computes
#
# $$h = W x + b + s\, B A x .$$
#
# Read it from the right. $A$ asks $r$ questions of the input: each of its rows is a direction, and $Ax$ says how much
# of each there is in $x$. $B$ answers each question with a fixed vector, a column of $B$, that is added to the output.
# With $r = 1$ the whole change of the layer is: *the more $x$ points this way, the more of that vector is added*.
#
# The matrix $BA$ is never computed in training. $Ax$ is computed first, then $B$ times the result: $r(m + n)$
# multiplications a token instead of $mn$. This is the package's layer:

# %%
source(LoRALinear)

# %% [markdown]
# In a forward pass of the encoder, `shared_factors` holds this layer's $A$ and $s B^\top$, which are cast together with
# those of all layers; a layer by itself casts its own.
#
# In the code the tokens are rows, so every product is written the other way round: `x` is $X$ with the shape `(tokens,
# in_features)`, and $A x$ for all tokens together is $X A^\top$. The *dropout* in it is applied to the input of $A$
# alone; the frozen path always sees all of $x$.
#
# ## How many parameters
#
# $B$ and $A$ together have $r\,(n + m)$ numbers, for each adapted layer. With the query and value of every layer of
# roberta-base, both square:

# %%
config = minipeft.EncoderConfig()
for rank in (1, 2, 8, 64):
    formula = rank * (config.hidden_size + config.hidden_size) * 2 * config.num_hidden_layers
    counted = minipeft.count_parameters(in_base_shape(minipeft.LoRA(rank=rank))).method
    print(
        f"rank {rank:>2}: {formula:>9,} by the formula, {counted:>9,} counted, {counted / full.total:.2%} of the model"
    )
    assert formula == counted

# %% [markdown]
# ## The gradients, derived
#
# Write $Y = X W^\top + b + s\, X A^\top B^\top$ for the outputs of all tokens, $L$ for the loss, and
# $G = \partial L / \partial Y$ for the gradient that arrives from above, with the shape `(tokens, out_features)`. Small
# changes of $B$, $A$ and the input $X$ by $dB$, $dA$ and $dX$ change the output by
#
# $$dY = s\, X A^\top dB^\top + s\, X\, dA^\top B^\top + dX\, (W^\top + s\, A^\top B^\top) ,$$
#
# and the loss by the sum of all products of an element of $G$ with the same element of $dY$, which is $dL =
# \mathrm{tr}(G^\top dY)$. The factors of a trace can be rotated, and a trace is unchanged by transposition. In the form
# $\mathrm{tr}(M^\top dZ)$ or $\mathrm{tr}(M\, dZ^\top)$, the matrix $M$ is the gradient of $Z$. So we bring the change
# to the end of each of the three parts:
#
# $$s\,\mathrm{tr}(G^\top X A^\top dB^\top), \qquad
# s\,\mathrm{tr}(G^\top X\, dA^\top B^\top) = s\,\mathrm{tr}(B^\top G^\top X\, dA^\top), \qquad
# \mathrm{tr}\big(G^\top dX\, (W^\top + s A^\top B^\top)\big)
# = \mathrm{tr}\big((W^\top + s A^\top B^\top)\, G^\top dX\big) .$$
#
# Read off:
#
# $$\frac{\partial L}{\partial B} = s\, G^\top (X A^\top), \qquad
# \frac{\partial L}{\partial A} = s\, (G B)^\top X, \qquad
# \frac{\partial L}{\partial X} = G W + s\, (G B) A .$$
#
# Both products in parentheses are thin, `(tokens, rank)`: so the backward pass has little to compute, too. And the
# gradient of $W$, which would be $G^\top X$, is not computed at all. That is the saving in *time*: a linear layer costs
# three products of equal size in training (forward, gradient of the input, gradient of the weight), and the third is
# not needed.
#
# We check the three formulas against autograd, with a random layer whose $B$ is not 0 any more.

# %%
torch.manual_seed(0)
tokens, m, n, rank, alpha = 10, 12, 8, 3, 6
layer = LoRALinear(Linear(m, n).requires_grad_(False), rank, alpha)
torch.nn.init.normal_(layer.lora_B)
X = torch.randn(tokens, m, requires_grad=True)
Y = layer(X)
Y.retain_grad()
(Y.sin() * torch.randn(tokens, n)).sum().backward()  # any loss will do

W, A, B, G, s = layer.weight, layer.lora_A.detach(), layer.lora_B.detach(), Y.grad, layer.scaling
by_hand = {"B": s * G.T @ (X @ A.T), "A": s * (G @ B).T @ X, "X": G @ W + s * (G @ B) @ A}
by_autograd = {"B": layer.lora_B.grad, "A": layer.lora_A.grad, "X": X.grad}
for name, gradient in by_hand.items():
    difference = float((gradient - by_autograd[name]).detach().abs().max())
    print(f"gradient of {name}: shape {tuple(gradient.shape)}, largest difference {difference:.1e}")
    assert torch.allclose(gradient, by_autograd[name], atol=1e-4)
assert layer.weight.grad is None

# %% [markdown]
# ## Why B starts at zero, and A does not
#
# At the start $B = 0$, so $BA = 0$ and the adapted model computes exactly what the pretrained one does. Training should
# start there. Then why is $A$ not 0 as well? Look at the formulas: the gradient of $B$ has the factor $A$, and the
# gradient of $A$ has the factor $B$. If both are 0, both gradients are 0 for every loss, and nothing is ever learned.
# With $A$ random, $B$ gets a gradient at the first step, and as soon as it has moved, so does $A$.

# %%
layer = LoRALinear(Linear(m, n).requires_grad_(False), rank, alpha)
X = torch.randn(tokens, m)
assert torch.equal(layer(X), Linear.forward(layer, X))
for step in (1, 2):
    gradients = torch.autograd.grad(layer(X).square().mean(), (layer.lora_A, layer.lora_B))
    of_a, of_b = (float(gradient.norm()) for gradient in gradients)
    print(f"step {step}: size of the gradient of A {of_a:.4f}, of B {of_b:.4f}")
    assert (of_a == 0) == (step == 1) and of_b > 0
    with torch.no_grad():
        for parameter, gradient in zip((layer.lora_A, layer.lora_B), gradients, strict=True):
            parameter -= 0.1 * gradient

# %% [markdown]
# The random start of $A$ is a uniform distribution that shrinks with the number of inputs (Kaiming's), so that $Ax$ is
# of the same size for wide and narrow layers. In a short training $A$ changes little, so $\Delta W$ uses the random
# directions with which $A$ began, and mostly $B$ is learned.
#
# ## What alpha and the rank do
#
# The scale is $s = \alpha / r$. The reason is Adam, with which LoRA is trained: it moves every number by about the
# learning rate, whatever the rank. Each of the $r$ rows of $A$, with its column of $B$, then adds its part to the
# update, and twice as many rows make a larger update. Dividing by $r$ undoes that, so that the learning rate can stay
# the same for another rank. $\alpha$ is a constant factor: the authors set it once and tune the learning rate (section
# 4.1), since with Adam both have nearly the same effect.
#
# With plain gradient descent the same division is too much, as we shall see: there the scale is in the gradient as
# well, and a larger rank learns more slowly. Let us compute how far *one* step lowers the loss with each of the two. In
# the first step only $B$ moves, because the gradient of $A$ is 0.
#
# **Gradient descent** with learning rate $\eta$ lowers the loss, to first order, by
#
# $$\eta \left\| \frac{\partial L}{\partial B} \right\|^2 = \eta\, s^2 \left\| G^\top X A^\top \right\|^2 .$$
#
# The last factor is a sum over the $r$ rows of $A$, so the fall is proportional to $s^2 r$. With $s = \alpha / r$ it
# *shrinks* like $1/r$. That is the argument of rsLoRA (Kalajdzievski 2023), which takes $s = \alpha / \sqrt{r}$ and so
# keeps $s^2 r$ constant. In minipeft that is `LoRA(rslora=True)`.
#
# **Adam** divides the gradient by its own size, so that in the first step every element of $B$ moves by $\eta$, up or
# down ([The training loop](05_the_training_loop.ipynb) computes this step by hand). The fall is then $\eta$ times the
# sum of the *absolute values* of the gradient's elements, which is proportional to $s\, r$: constant for $\alpha / r$,
# and growing like $\sqrt{r}$ for rsLoRA. We measure all four, on a layer of the bundled encoder's size and with a loss
# that is linear in the output, so that "to first order" is exact.

# %%
torch.manual_seed(0)
frozen = Linear(256, 256).requires_grad_(False)
X, G = torch.randn(64, 256), torch.randn(64, 256)
ranks = (1, 4, 16, 64)


def fall_after_a_step(rank: int, rslora: bool, adam: bool) -> float:
    """How far one step on B lowers the loss, the mean over a few random starts."""
    falls = []
    for seed in range(8):
        torch.manual_seed(seed)
        layer = LoRALinear(frozen, rank, alpha=16, rslora=rslora)
        before = (layer(X) * G).sum()
        (gradient,) = torch.autograd.grad(before, layer.lora_B)
        with torch.no_grad():
            layer.lora_B -= 1e-3 * (gradient.sign() if adam else gradient)
            falls.append(before - (layer(X) * G).sum())
    return float(torch.stack(falls).mean())


# %%
figure, both = plt.subplots(2, 1, figsize=(5.4, 6.4), sharex=True)
for axes, name in zip(both, ("gradient descent", "Adam"), strict=True):
    for label, rslora, marker in (("alpha / rank", False, "o"), ("alpha / √rank", True, "s")):
        falls = [fall_after_a_step(rank, rslora, name == "Adam") for rank in ranks]
        parts = [fall / falls[0] for fall in falls]
        expected = [
            rank ** ((0.5 if rslora else 0.0) if name == "Adam" else (0.0 if rslora else -1.0)) for rank in ranks
        ]
        axes.plot(ranks, parts, marker=marker, label=f"s = {label}")
        print(f"{name:<16} s = {label:<13}", *(f"{part:6.2f}" for part in parts))
        print(f"{'':<16} {'by the formula':<17}", *(f"{part:6.2f}" for part in expected))
        assert all(0.7 < part / wanted < 1.4 for part, wanted in zip(parts, expected, strict=True))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.set_title(f"one step of {name}", loc="left")
    axes.set_ylabel("fall of the loss, rank 1 = 1")
    axes.legend()
both[1].set_xlabel("rank")
figure.tight_layout()
picture(
    figure,
    "How far one step lowers the loss against the rank, relative to rank 1. With gradient descent it falls with the "
    "rank for alpha over rank and stays level for alpha over the root of the rank. With Adam it stays level for alpha "
    "over rank and grows for alpha over the root.",
)

# %% [markdown]
# So $\alpha / r$ suits Adam's first step and rsLoRA's scale suits plain gradient descent's. One step is not a training:
# later $A$ moves too, and Adam's running means are of many gradients. What happens over many steps has to be measured,
# for each optimizer and task; the rsLoRA paper does so with Adam too and finds that its scale makes better use of large
# ranks.
#
# ## Where it is placed
#
# LoRA can be added to any linear layer. The paper adapts the attention's matrices only and leaves the feed-forward
# part alone (section 4.2), and asks in section 7.1 which of them to choose when the number of parameters is fixed. The
# numbers there are for GPT-3: rank 8 for one kind of matrix, rank 4 for two, rank 2 for all four. All cost the same:

# %%
for kinds, rank in ((1, 8), (2, 4), (4, 2)):
    print(kinds, "kinds of matrices with rank", rank, "in GPT-3:", f"{kinds * rank * 2 * 12288 * 96:,} parameters")

# %% [markdown]
# Query and value together did best or nearly so, and putting all of it into the query or the key alone was clearly
# worse: it is better to change more matrices with a smaller rank than one with a larger. Hence the default here, which
# is the paper's for RoBERTa too: `targets=("query", "value")`. Later work often adapts all linear layers. Any of the
# six can be named, and ranks can differ from place to place: in `rank_pattern`, `"11.query"` is the query of layer 11
# and `"0"` is all of layer 0, which a rank of 0 leaves without LoRA.

# %%
for method in (
    minipeft.LoRA(rank=2),
    minipeft.LoRA(rank=2, targets=("query", "key", "value", "output", "intermediate", "ffn_output")),
    minipeft.LoRA(rank=2, rank_pattern={"11.query": 16, "0": 0}),
):
    print(f"{minipeft.count_parameters(in_base_shape(method)).method:>8,}", method.targets, method.rank_pattern)

# %% [markdown]
# In the model, the layer that was there is replaced by one that holds the same weight. `apply` freezes everything, lets
# the method install itself, and lets the head train:

# %%
source(minipeft.apply)

# %% [markdown]
# ## A training, and what it learnt
#
# Now a real one: roberta-mini on a small part of the synthetic data for SST-2, for a few seconds only: too short to
# learn the task, long enough to see what kind of change it makes. We train the same with full fine-tuning as well, to
# look at the change of a weight that is *not* restricted to a low rank.

# %%
settings = {
    "task": "sst2",
    "model": "roberta-mini",
    "data": "standin",
    "train_limit": 320,
    "eval_limit": 64,
    "batch_size": 16,
    "grad_accum": 1,
    "epochs": 1,
    "warmup_steps": 2,
    "precision": "fp32",
    "quiet": True,
}
scratch = tempfile.TemporaryDirectory()  # removed when the script ends
with_lora = minipeft.train(method=minipeft.LoRA(rank=8), lr=5e-3, output=f"{scratch.name}/lora", **settings)
with_full = minipeft.train(method=minipeft.Full(), lr=5e-4, output=f"{scratch.name}/full", **settings)
for name, result in (("LoRA", with_lora), ("full", with_full)):
    trained, best = minipeft.count_parameters(result.model).method, result.content["best"]["value"]
    print(f"{name}: {trained:>9,} parameters trained; accuracy on 64 rows of the synthetic data: {best:.3f}")

# %% [markdown]
# A matrix's *singular values* say how much it stretches along each of its principal directions. The number of those
# that are not 0 is its rank. We compute them for the change of each query and value matrix.

# %%
pretrained = minipeft.load_pretrained("roberta-mini").encoder


def change(model: minipeft.SequenceClassifier, number: int, target: str) -> torch.Tensor:
    part = getattr(model.encoder.layers[number], target)
    weight = part.merged_weight() if isinstance(part, LoRALinear) else part.weight
    return (weight - getattr(pretrained.layers[number], target).weight).detach()


def spectrum(model: minipeft.SequenceClassifier) -> torch.Tensor:
    """Singular values of every change, as parts of the largest: (changes, 256)."""
    places = [(number, target) for number in range(len(pretrained.layers)) for target in ("query", "value")]
    values = torch.stack([torch.linalg.svdvals(change(model, *place)) for place in places])
    return values / values[:, :1]


# %%
figure, axes = plt.subplots(figsize=(5.4, 3.8))
for label, result in (("LoRA, rank 8", with_lora), ("full fine-tuning", with_full)):
    values = spectrum(result.model)
    axes.plot(range(1, 33), values[:, :32].mean(0), marker=".", label=label)
    energy = values.square().cumsum(1) / values.square().sum(1, keepdim=True)
    print(
        f"{label:<17} singular values above a thousandth of the largest: {(values > 1e-3).sum(1).float().mean():5.1f}",
        f"of 256; part of the squared size in the first 8: {energy[:, 7].mean():.2f}",
    )
axes.set_xlabel("number of the singular value")
axes.set_ylabel("part of the largest")
axes.legend()
figure.tight_layout()
picture(
    figure,
    "Singular values of the weights' changes, the mean over all query and value matrices, falling with their number. "
    "LoRA's end after the eighth; those of full fine-tuning continue to decrease.",
)
assert (spectrum(with_lora.model) > 1e-3).sum(1).max() <= 8

# %% [markdown]
# LoRA's change has at most eight directions because it is made so. That of full fine-tuning has nearly all, since
# nothing restricts it; but the curve and the last column show how unequal they are. Section 7.2 of the paper makes the
# corresponding observation with LoRA itself: adapters of rank 8 and rank 64 share their first direction and little
# beyond it. How the rank affects the accuracy of a task must be measured with several seeds: see [Comparing
# fairly](07_comparing_fairly.ipynb).
#
# ## Merging
#
# In prediction the second path costs time. But $W x + s B A x = (W + s B A)\,x$: the product can be added to the weight
# once, and then the layer is an ordinary one again, with no cost left. The function is the same; only roundings differ.
# minipeft keeps a copy of the original weight, since adding and then subtracting would not give the same bits.

# %%
source(LoRALinear.merged_weight, minipeft.methods.adapted.AdaptedLinear.merge)

# %%
model = with_lora.model.eval()
texts = ["A quiet film.", "Not one good scene in it."]
batch = minipeft.pack(tokenizer.encode(texts), config=model.config)
with torch.no_grad():
    apart = model(batch)
    merged = minipeft.merge(copy.deepcopy(model))
    together = merged(batch)
    again = minipeft.unmerge(merged)(batch)
print("logits apart ", apart.tolist())
print("logits merged", together.tolist())
print("largest difference:", float((apart - together).abs().max()))
assert torch.allclose(apart, together, atol=1e-4) and torch.equal(apart, again)

# %% [markdown]
# Merging is optional. Unmerged, one pretrained network can serve many tasks, each with an adapter of a few megabytes,
# even within one batch; that is what `minipeft.AdapterSet` does.
#
# ## Summary
#
# - $h = Wx + b + \frac{\alpha}{r} B A x$, with $W$ frozen: $r(n + m)$ parameters a layer.
# - The gradients are thin products; that of $W$ is never computed.
# - $B$ starts at 0 so that training starts from the pretrained function, and $A$ does not, so that it can leave it.
# - $\alpha / r$ is a scale. With Adam it acts much like the learning rate.
# - After merging, prediction has no additional cost.
#
# There is an even smaller change to a linear layer, which has no matrix at all: [BitFit](04_bitfit.ipynb).

# %% [markdown]
# ## Exercises
#
# The notebook has three exercises here, each with a check and a collapsed solution. In a clone the same exercises are
# in `exercises/03_lora.py`: write your answers there, then run
# `python walkthroughs/check.py 3`. It says what is right and gives hints. The solutions are in `solutions/`.
