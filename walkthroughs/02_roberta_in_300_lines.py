# %% [markdown]
# # RoBERTa in 300 lines
#
# This page goes through the encoder that every method of this package fine-tunes. It says what RoBERTa changed from
# BERT, follows one sentence through the real modules with the shape of every tensor, computes one attention head by
# hand, and compares the result with Hugging Face's.
#
# It assumes that you have read [From text to packed batch](01_from_text_to_packed_batch.ipynb): the input is a packed
# batch, sequences end to end without padding. Everything here runs on the bundled roberta-mini, which has the
# architecture of roberta-base and is only smaller.

# %%
import importlib.util
import inspect
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from showing import picture, source

import minipeft
from minipeft.model import attention, roberta
from minipeft.model.attention import grouped
from minipeft.model.config import EncoderConfig
from minipeft.pretraining.corpus import mask

torch.manual_seed(0)
tokenizer = minipeft.load_tokenizer("roberta-mini")
model = minipeft.load_pretrained("roberta-mini").eval().requires_grad_(False)
encoder, config = model.encoder, model.config
base = EncoderConfig()
print("                      roberta-mini  roberta-base")
for name in (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
):
    print(f"{name:<24}{getattr(config, name):>10,}{getattr(base, name):>14,}")
lines = len(inspect.getsource(roberta).splitlines())
print("minipeft/model/roberta.py has", lines, "lines")
assert lines < 300

# %% [markdown]
# ## What RoBERTa changed from BERT
#
# BERT (Devlin et al. 2019) showed that one network, trained once on much plain text, can be fine-tuned with little
# effort to almost any task on sentences. RoBERTa (Liu et al. 2019) is the same network. Its authors tested BERT's
# training choices one by one, and found that BERT had been trained far too little. These are the changes, with the
# sections of the paper in which they are tested:
#
# | | BERT | RoBERTa | section |
# |---|---|---|---|
# | masking | fixed when the data are prepared | *dynamic*: drawn again each time an example is seen | 4.1 |
# | second loss | *next-sentence prediction*: does B follow A? | none; full sentences, one after another | 4.2 |
# | batch, steps | 256 sequences, 1 million | 8 thousand sequences, up to 500 thousand | 4.3, 5 |
# | text | 16 GB: books and Wikipedia | 160 GB: also news, web pages and stories | 3.2, 5 |
# | tokens | WordPiece, 30 thousand | byte-level BPE, 50 thousand | 4.4 |
#
# *Masked language modelling* itself stayed: hide some of the tokens, and let the network say which they were from the
# context on both sides. Of the tokens, 15% are chosen. Of the chosen, 80% are replaced by `<mask>`, 10% by a random
# token, and 10% stay as they are, so that `<mask>` alone does not tell the network where it has to predict. This is the
# function that does it when minipeft pretrains an encoder. It is called for every batch, so the masking is dynamic:

# %%
source(mask)

# %%
sentence = "Mary saw a red car in the park, and the car was new."
tokens = tokenizer.encode_full([sentence])[0].tokens
batch = minipeft.pack(tokenizer.encode([sentence]), config=config)
for _ in range(3):
    hidden, places, truth = mask(batch, tokenizer)
    print(" ".join(tokenizer.tokenizer.id_to_token(number) for number in hidden.input_ids.tolist()).replace("Ġ", ""))
    assert torch.equal(batch.input_ids[places], truth)

# %% [markdown]
# The same sentence three times, each time with other words to predict.
#
# One thing that RoBERTa dropped can still be seen in its shape. BERT's *token types* told the two segments apart that
# next-sentence prediction was about. RoBERTa's table of token types has one row left. Its vector is added to every
# token, so it could as well be part of the position table.
#
# How much more training is that? In sequences seen, up to

# %%
print(8192 * 500_000 / (256 * 1_000_000), "times as many as BERT")

# %% [markdown]
# ## The shapes along one sentence
#
# We now pass one sentence through the model and record the output of each module. A forward hook is called by PyTorch
# whenever a module has computed its output. The letters: there are `total_tokens` tokens in the batch; each is a vector
# of `hidden_size` numbers.

# %%
outputs: dict[str, torch.Tensor] = {}


def remember(name: str):
    def hook(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        outputs[name] = output

    return hook


hooks = [part.register_forward_hook(remember(name)) for name, part in model.named_modules() if name]
logits = model(batch)
for hook in hooks:
    hook.remove()

print("tokens:", batch.total_tokens, *tokens)
for name, output in outputs.items():
    if "layers" not in name or name.startswith(("encoder.layers.0", f"encoder.layers.{config.num_hidden_layers - 1}")):
        print(f"{name:<40}", tuple(output.shape))

# %% [markdown]
# Read the list from the top. Two embeddings give each token a vector, one for the token and one for its position. The
# six linear modules in each layer keep the number of tokens and change at most the last dimension. In the last layer
# something happens to the *first* dimension: keys and values are there for all tokens, but everything else has one row.
# A later section explains it. The head turns this row into two numbers, one for each class.
#
# There is no batch dimension. Sequences lie end to end, and only attention looks at where they begin.
#
# ## Embeddings
#
# A vector for the token plus a vector for its position, plus the one token type, and then LayerNorm, which shifts and
# scales each token's vector to mean 0 and variance 1 and then applies a learnt weight and bias to each feature:
#
# $$\mathrm{LayerNorm}(x) = \frac{x - \mathrm{mean}(x)}{\sqrt{\mathrm{variance}(x) + \epsilon}} \odot w + b .$$

# %%
x = encoder.word_embeddings.weight[batch.input_ids] + encoder.position_embeddings.weight[batch.position_ids]
x = x + encoder.token_type_embeddings.weight[0]  # (total_tokens, hidden_size)
centred = x - x.mean(-1, keepdim=True)
normed = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + config.layer_norm_eps)
embedded = normed * encoder.layer_norm.weight + encoder.layer_norm.bias
print("largest difference:", float((embedded - outputs["encoder.layer_norm"]).abs().max()))
assert torch.allclose(embedded, outputs["encoder.layer_norm"], atol=1e-5)

# %% [markdown]
# ## A layer
#
# Every layer has two halves. The first is *attention*, in which tokens exchange information. The second is the
# *feed-forward* part, in which each token is transformed by itself: out to a larger width, through GELU, and back
# again. Around each half runs a *residual connection*: the half's output is added to its input, so that the layer needs
# to learn only a change. LayerNorm comes after the addition, as in the original transformer (Vaswani et al. 2017); many
# newer models put it before.

# %%
source(roberta.EncoderLayer.forward, roberta.EncoderLayer.after_attention)

# %% [markdown]
# It has six linear layers, whose names appear on all pages: `query`, `key` and `value` make what attention needs,
# `output` mixes the heads' results, `intermediate` and `ffn_output` are the feed-forward part. LoRA and similar methods
# are applied to these layers.
#
# ## Attention, by hand
#
# Each token makes three vectors. Its *query* says what it looks for, its *key* what it offers to be found by, and its
# *value* what it contributes. The score of token $j$ for token $i$ is the product of $i$'s query and $j$'s key. A
# softmax turns the scores of each $i$ into weights that sum to 1, and the result is the mean of the values with these
# weights:
#
# $$\mathrm{attention}(Q, K, V) = \mathrm{softmax}\left(\frac{Q K^\top}{\sqrt{d}}\right) V .$$
#
# Why the root? The score is a sum of $d$ products. If the numbers in it were independent with mean 0 and variance 1,
# the sum would have variance $d$. Dividing by $\sqrt{d}$ keeps scores at the same scale for every size; large scores
# would make the softmax a hard choice and its gradient vanish.
#
# This is done several times side by side, in *heads*. Each head has its own part of the features, $d$ of them
# (`head_size`), so that it can attend in its own way. Here is one head of the first layer by hand, from the input of
# the layer, and next to it the output that the package computes.

# %%
layer, head = encoder.layers[0], 1
head_size = config.hidden_size // config.num_attention_heads
part = slice(head * head_size, (head + 1) * head_size)

q, k, v = (embedded @ linear.weight.T + linear.bias for linear in (layer.query, layer.key, layer.value))
q, k, v = q[:, part], k[:, part], v[:, part]  # (total_tokens, head_size)
scores = q @ k.T / math.sqrt(head_size)  # (total_tokens, total_tokens)
weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
attended = weights @ v  # (total_tokens, head_size)
print("scores", tuple(scores.shape), "attended", tuple(attended.shape))

all_heads = attention.attend_plain(
    outputs["encoder.layers.0.query"],
    outputs["encoder.layers.0.key"],
    outputs["encoder.layers.0.value"],
    batch.lengths,
    config.num_attention_heads,
)
print("largest difference:", float((attended - all_heads[:, part]).abs().max()))
assert torch.allclose(attended, all_heads[:, part], atol=1e-5)

# %% [markdown]
# `attend_plain` is the version to read: one sequence after the other, each computed as in the equation. Only the split
# by `lengths` keeps the sequences of a packed batch apart.

# %%
source(attention.attend_plain)

# %% [markdown]
# For speed the model calls other functions. On the CPU it calls `attend_grouped`, which computes sequences of nearly
# equal length as one group. The tests compare it with the plain version, and so do we, with a batch of several lengths:

# %%
more = [sentence, "A quiet film.", "Not one good scene in it.", "Tom saw a dog, a cat and a horse."]
several = minipeft.pack(tokenizer.encode(more), config=config)
rows = torch.randn(3, several.total_tokens, config.hidden_size)
groups = grouped.group_by_length(several.lengths, rows.device, rows.dtype)
fast = grouped.attend_grouped(*rows, groups, config.num_attention_heads)
plain = attention.attend_plain(*rows, several.lengths, config.num_attention_heads)
print("lengths", several.lengths, "in", len(groups.groups), "groups; difference", float((fast - plain).abs().max()))
assert torch.allclose(fast, plain, atol=1e-5)

# %% [markdown]
# ## What the heads look at
#
# The weights are a table: one row for each token that looks, one column for each that is looked at. We draw two of
# them.


# %%
def weights_of(layer: int, head: int) -> torch.Tensor:
    q, k = (
        outputs[f"encoder.layers.{layer}.{name}"].unflatten(-1, (config.num_attention_heads, -1))[:, head]
        for name in ("query", "key")
    )
    return torch.softmax(q @ k.T / math.sqrt(head_size), dim=-1)


assert torch.allclose(weights_of(0, head), weights, atol=1e-5)
labels = [token.removeprefix("Ġ") for token in tokens]

# %%
figure, rows_of_axes = plt.subplots(2, 1, figsize=(5.4, 9.6))
for axes, (number, of_head) in zip(rows_of_axes, ((0, 1), (3, 3)), strict=True):
    image = axes.imshow(weights_of(number, of_head), cmap="viridis", vmin=0, interpolation="none")
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_title(f"layer {number}, head {of_head}")
    figure.colorbar(image, ax=axes, shrink=0.7, label="weight")
figure.tight_layout()
to_the_next = float(weights_of(0, 1).diagonal(1).mean())
picture(
    figure,
    "Two square tables of attention weights over the same sentence. In layer 0, head 1, nearly all weight is on the "
    f"token after the one that looks (on average {to_the_next:.2f}). In layer 3, head 3, it is spread over many.",
)
strongest = weights_of(3, 3)[1:-1, 1:-1].fill_diagonal_(0)
looks, at = divmod(int(strongest.argmax()), strongest.shape[1])
print("layer 0, head 1: mean weight on the next token", round(to_the_next, 2))
print("layer 3, head 3: the strongest glance at another word goes from", labels[looks + 1], "to", labels[at + 1])
assert to_the_next > 0.9 and labels[looks + 1] == labels[at + 1] == "car" and looks != at

# %% [markdown]
# The head of the first layer looks at the next token and hardly at anything else. Heads that look at a neighbour are
# found in most trained transformers. (In roberta-mini they were helped: its pretraining *started* with such heads,
# because its budget was small. `minipeft/pretraining/init_from_counts.py` has the reasons.) Later layers spread their
# weight. The largest weight between two different words in the second picture goes from one mention of the car to the
# other. Do not read too much into one picture: a weight says which token is used, not what is computed from it.
#
# ## The feed-forward part, and the whole layer
#
# Now the rest of the layer can be computed by hand: mix the heads, add, normalise, feed-forward, add, normalise.

# %%
a = layer.attention_layer_norm(embedded + F.linear(all_heads, layer.output.weight, layer.output.bias))
inner = F.gelu(F.linear(a, layer.intermediate.weight, layer.intermediate.bias))  # (total_tokens, intermediate_size)
by_hand = layer.output_layer_norm(a + F.linear(inner, layer.ffn_output.weight, layer.ffn_output.bias))
print("largest difference after a layer:", float((by_hand - outputs["encoder.layers.0"]).abs().max()))
assert torch.allclose(by_hand, outputs["encoder.layers.0"], atol=1e-5)

in_layers = sum(p.numel() for p in encoder.layers.parameters())
in_feed_forward = sum(p.numel() for part in encoder.layers for p in [part.intermediate.weight, part.ffn_output.weight])
print(f"weights of the feed-forward parts: {in_feed_forward / in_layers:.2f} of all parameters in the layers")
assert in_feed_forward > in_layers / 2

# %% [markdown]
# Most of a layer's parameters, and with short sentences most of its arithmetic, are in the feed-forward part.
#
# ## Only `<s>` in the last layer
#
# The classifier reads one vector a sequence, that of `<s>`. The outputs of the other tokens in the last layer are not
# used. Can they be left out? Follow the dependencies backwards. The output of `<s>` in the last layer is a function of
# its own feed-forward part, which sees `<s>` alone; of its attention, which needs the query of `<s>` and the keys and
# values of *every* token; and of the residual, which is the row of `<s>`. So keys and values must be computed for all,
# and the query, `output`, both feed-forward layers and both LayerNorms for `<s>` only. In the earlier layers nothing
# can be left out, since the next layer needs the keys and values of every token.
#
# This is what the list of shapes shows. It is not an approximation. (`frozen_layers` and `hidden_states` serve
# `--train-layers`, where the lower layers are frozen.)

# %%
source(roberta.Encoder.forward, roberta.Encoder.compute_layers)

# %%
everyone = encoder(several)  # (total_tokens, hidden_size)
first_only = encoder(several, first_only=True)  # (num_sequences, hidden_size)
print(tuple(everyone.shape), tuple(first_only.shape))
first = everyone[several.cu_seqlens[:-1].long()]
print("largest difference:", float((first - first_only).abs().max()))
assert torch.allclose(first, first_only, atol=1e-5)

hidden, wide = config.hidden_size, config.intermediate_size
whole, spared = 4 * hidden**2 + 2 * hidden * wide, 2 * hidden**2 + 2 * hidden * wide
share = spared / (whole * config.num_hidden_layers)
share_of_base = (2 * 768**2 + 2 * 768 * 3072) / ((4 * 768**2 + 2 * 768 * 3072) * 12)
print(f"of the linear layers' work, up to {share:.1%} is spared; on roberta-base's shape {share_of_base:.1%}")
assert (base.hidden_size, base.intermediate_size, base.num_hidden_layers) == (768, 3072, 12)

# %% [markdown]
# The saving counts in training too, where the backward pass has as little to do in the last layer as the forward pass.
#
# ## The head
#
# The pretrained part ends here. The head is new for each task: a linear layer, a tanh, and a linear layer to one number
# per class, with dropout before each of the two layers in training. Its weights are random until it is trained; the
# package says so when it loads an encoder without a head.

# %%
source(roberta.ClassificationHead)

# %%
x = outputs["encoder"]  # (1, hidden_size): <s>
by_hand = torch.tanh(x @ model.head.dense.weight.T + model.head.dense.bias)
by_hand = by_hand @ model.head.out_proj.weight.T + model.head.out_proj.bias
print("logits", logits.tolist(), "difference", float((by_hand - logits).abs().max()))
assert torch.allclose(by_hand, logits, atol=1e-5)

# %% [markdown]
# A logit is a score. A softmax over the classes makes probabilities of them, and the loss of training is the negative
# logarithm of the right class's probability.
#
# ## The same logits as Hugging Face's
#
# The model must compute what Hugging Face's RoBERTa computes. So we write it as a checkpoint, let the transformers
# library load it, give it a padded batch with its mask, and compare. transformers is not a dependency of minipeft; it
# comes with the extra `test`. Without it this cell prints a message and continues.

# %%
if importlib.util.find_spec("transformers") is None:
    print("transformers is not installed: pip install -e '.[test]' to see this comparison")
else:
    import tempfile

    from torch.nn.utils.rnn import pad_sequence
    from transformers import RobertaForSequenceClassification

    with tempfile.TemporaryDirectory() as folder:
        minipeft.export(model, f"{folder}/exported")
        theirs = RobertaForSequenceClassification.from_pretrained(f"{folder}/exported").eval()
    ids = [torch.tensor(sequence) for sequence in tokenizer.encode(more)]
    padded = pad_sequence(ids, batch_first=True, padding_value=config.pad_token_id)
    with torch.no_grad():
        expected = theirs(input_ids=padded, attention_mask=(padded != config.pad_token_id).long()).logits
    ours = model(several)
    print(f"{padded.numel()} slots there, {several.total_tokens} tokens here")
    print("largest difference of a logit:", float((ours - expected).abs().max()))
    assert torch.allclose(ours, expected, atol=1e-5)

# %% [markdown]
# ## Summary
#
# - RoBERTa is BERT's network, trained longer, on more text, in larger batches, with dynamic masking and without
#   next-sentence prediction.
# - `(total_tokens, hidden_size)` goes in and comes out of every layer. Only attention looks across tokens, and only
#   attention knows where sequences begin.
# - Six linear layers in each layer: `query`, `key`, `value`, `output`, `intermediate`, `ffn_output`.
# - The classifier reads `<s>`, so the last layer computes little else. Where every token has a label, as with named
#   entities, `minipeft.TokenClassifier` applies its head to all tokens, and the last layer computes all of them.
#
# Training all parameters means one copy of all of them for each task. The next page trains a small part instead:
# [LoRA](03_lora.ipynb).

# %% [markdown]
# ## Exercises
#
# The notebook has three exercises here, each with a check and a collapsed solution. In a clone the same exercises are
# in `exercises/02_roberta_in_300_lines.py`: write your answers there, then run
# `python walkthroughs/check.py 2`. It says what is right and gives hints. The solutions are in `solutions/`.
