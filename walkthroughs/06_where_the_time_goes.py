# %% [markdown]
# # Where the time goes
#
# LoRA trains a tiny part of an encoder's parameters. Its time is not reduced by the same factor: it saves at most about
# a third of the arithmetic, and often less of the time. This page counts the operations of a training step, explains
# this third, and then looks at what makes fine-tuning faster.
#
# It is also a script: `python walkthroughs/06_where_the_time_goes.py`. It has two kinds of numbers. **Operations** are
# counted by a formula and checked, to the last one, against torch's own counter; they are the same on every machine.
# **Times** are measured while the page runs, on one thread, and as the processor time of this program, so that other
# programs disturb them less. They belong to one machine at one time, and they vary; no conclusion depends on them.

# %%
import time
from collections import Counter

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from showing import picture, piece, source
from torch.utils.flop_counter import FlopCounterMode

import minipeft
from minipeft.data.tasks.synthetic import generate
from minipeft.methods.lora import LoRALinear
from minipeft.model import layers as ours
from minipeft.model.attention.grouped import group_by_length
from minipeft.model.roberta import Encoder, EncoderLayer
from minipeft.training.optimization.optimizer import adamw, set_learning_rate

torch.set_num_threads(1)


def seconds(act, repeats=7):
    """The shortest of several times, after one call that is not counted: what is above it is other work's doing."""
    act()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        act()
        times.append(time.process_time() - began)
    return min(times)


def counted(act):
    """The operations of matrix products in `act`, as torch counts them: its own, for it does not know oneDNN's."""
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        act()
    return counter.get_total_flops()


# %% [markdown]
# ## The unit: one matrix product
#
# Nearly all the arithmetic of a transformer is in matrix products. To multiply an $(m, k)$ matrix by a $(k, n)$ one
# means $mn$ sums of $k$ products each: $2mkn$ floating-point operations, counting a multiplication and an addition as
# two. These are the FLOP of the literature.
#
# How many of them can this machine do in a second? Large products show its best rate. In small or thin products,
# reading the numbers takes longer than multiplying them:

# %%
torch.manual_seed(0)
assert counted(lambda: torch.randn(5, 7) @ torch.randn(7, 11)) == 2 * 5 * 7 * 11


def rate(m, k, n, dtype=torch.float32, product=F.linear):
    """Operations a second of an (m, k) by (k, n) product."""
    x, weight, bias = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype), torch.zeros(n).to(dtype)
    with torch.no_grad():
        return 2 * m * k * n / seconds(lambda: product(x, weight, bias))


rates = {
    "large: 768 x 768 by 768 x 768": rate(768, 768, 768),
    "roberta-mini's feed-forward, 512 tokens: 512 x 256 by 256 x 1024": rate(512, 256, 1024),
    "LoRA's A, rank 8: 512 x 256 by 256 x 8": rate(512, 256, 8),
    "LoRA's B, rank 8: 512 x 8 by 8 x 256": rate(512, 8, 256),
    "large, in bfloat16": rate(768, 768, 768, torch.bfloat16),
    "large, through minipeft's linear": rate(768, 768, 768, product=ours.linear),
}
for name, value in rates.items():
    print(f"{value / 1e9:7.1f} billion operations a second   {name}")
machine = max(rates["large: 768 x 768 by 768 x 768"], rates["large, through minipeft's linear"])

# %% [markdown]
# Compare LoRA's two thin products with the large one. The one by $A$, in particular, usually runs far below it: its
# operations are few, but each takes longer. The last row is the same product as the first, through another library; a
# section below explains it.
#
# ## Counting a forward pass
#
# This is all that a layer of the encoder computes:

# %%
source(EncoderLayer.forward, EncoderLayer.after_attention)

# %% [markdown]
# With $T$ tokens, $h$ for `hidden_size` and $4h$ for `intermediate_size`, the products are:
#
# | part | operations |
# |---|---|
# | query, key, value, output: four layers $h \to h$ | $4 \cdot 2Th^2 = 8Th^2$ |
# | feed-forward: $h \to 4h$ and $4h \to h$ | $2 \cdot 8Th^2 = 16Th^2$ |
# | attention: scores $QK^\top$, then weights times $V$, in each sequence of length $L$ | $2 \cdot 2L^2h$ |
#
# The number of heads does not appear: with more heads the products are smaller and more numerous, and the sum is the
# same. Dropout, LayerNorm, GELU and softmax are not in the table either. They do a few operations per number where the
# products do hundreds. They do take time; the profile below shows how much.
#
# Two things make minipeft's count smaller than the table's. The last layer computes queries, output and feed-forward
# only for the first token of each sequence, `<s>`, because the classifier reads nothing else: look for `first_tokens`
# above. And nothing is padded, except for a little inside attention, where sequences of *nearly* equal length share a
# product: `group_by_length` says which. So the count by formula, over the `lengths` that a `minipeft.PackedBatch` has:


# %%
def forward_operations(config, lengths, first_only=True):
    """Part → operations of the forward pass over sequences of these lengths."""
    h, inner, parts = config.hidden_size, config.intermediate_size, Counter()
    groups = group_by_length(lengths, torch.device("cpu"), torch.float32).groups
    for layer in range(config.num_hidden_layers):
        first = first_only and layer == config.num_hidden_layers - 1
        rows = len(lengths) if first else sum(lengths)
        parts["key, value"] += 2 * 2 * sum(lengths) * h * h
        parts["query, output"] += 2 * 2 * rows * h * h
        parts["feed-forward"] += 2 * 2 * rows * h * inner
        for group in groups:
            queries = group.count * (1 if first else group.longest)
            parts["attention"] += 2 * 2 * queries * group.longest * h
    parts["head"] += 2 * len(lengths) * h * (h + config.num_labels)
    return parts


tokenizer = minipeft.load_tokenizer("roberta-mini")
rows = generate("sst2", "train")
texts = [" ".join(rows["sentence"][i : i + 1 + i % 7]) for i in range(16)]
labels, ids = rows["label"][:16], tokenizer.encode(texts)


def pretrained(method=None):
    """A fresh roberta-mini, with a method or as it is."""
    torch.manual_seed(0)
    model = minipeft.load_pretrained("roberta-mini")
    return model if method is None else minipeft.apply(model, method)


model = pretrained()
config = model.config
batch = minipeft.pack(ids, labels, config=config)
print(f"{len(batch)} texts of {min(batch.lengths)} to {max(batch.lengths)} tokens, {batch.total_tokens} in all")
by_formula = forward_operations(config, batch.lengths)
with torch.no_grad():
    by_torch = counted(lambda: model(batch))
for part, operations in by_formula.items():
    print(f"{part:14} {operations:14,}  {operations / by_formula.total():6.1%}")
print(f"{'in all':14} {by_formula.total():14,}   torch counts {by_torch:,}")
assert by_formula.total() == by_torch

# %% [markdown]
# The linear layers are nearly everything, and attention is small, although it is quadratic in the length. When is it as
# large? A layer's linear operations are $24Lh^2$ a sequence and attention's are $4L^2h$: they are equal at $L = 6h$.

# %%
base = minipeft.EncoderConfig()  # the default is roberta-base's shape
for length in (16, 64, 256, 6 * base.hidden_size):
    parts = forward_operations(base, [length], first_only=False)
    linear = parts["key, value"] + parts["query, output"] + parts["feed-forward"]
    print(f"roberta-base, {length:4} tokens: attention is {parts['attention'] / linear:6.2%} of the linear operations")
assert parts["attention"] == linear

# %% [markdown]
# For sentences, only the linear layers matter.
#
# ## The backward pass of one layer
#
# A linear layer $Y = XW^\top$ has two inputs, and its backward pass computes a gradient for each of them, from the
# gradient $G$ of the output:
#
# $$\frac{\partial L}{\partial X} = G\,W , \qquad \frac{\partial L}{\partial W} = G^\top X .$$
#
# Each is a product of the same three sizes as the forward one, in another order: each costs exactly what the forward
# pass cost. The first is needed for the layers below. The second is needed only if $W$ trains. So
#
# - a **trained** layer costs 1 forward and 2 backward;
# - a **frozen** layer costs 1 forward and **1** backward. The adapters below it need the gradient of their outputs,
#   which is computed through $W$;
# - a frozen layer **with nothing to train below** costs 1 forward and 0 backward.

# %%
cases = {
    "trained": (True, True),
    "frozen, something trains below": (True, False),
    "trained, nothing trains below": (False, True),
    "frozen, nothing trains below": (False, False),
}
once = 2 * 512 * 768 * 768
for name, (below, trains) in cases.items():
    x = torch.randn(512, 768, requires_grad=below)
    weight = torch.randn(768, 768, requires_grad=trains)
    gradient = torch.randn(512, 768)
    wanted = [tensor for tensor in (x, weight) if tensor.requires_grad]
    y = F.linear(x, weight)

    def backward(y=y, wanted=wanted, gradient=gradient):
        if wanted:
            torch.autograd.grad(y, wanted, gradient, retain_graph=True)

    forward = seconds(lambda x=x, weight=weight: F.linear(x, weight))
    operations = counted(backward)
    print(f"{name:31}: backward {operations / once:.0f} x the forward's operations, ", end="")
    print(f"{seconds(backward) / forward:.2f} x its time here")
    assert operations == (below + trains) * once

# %% [markdown]
# ## A whole training step
#
# Now add this up over the encoder. The rule for every product is the same: once forward, once more for each of its two
# factors that needs a gradient. A factor needs one if it trains, or if something that trains stands below it. Attention
# has no weights, but both factors of its products are activations, so its backward pass costs twice its forward pass
# wherever the gradient passes, whatever is frozen. This is one more place where freezing saves nothing.
#
# LoRA adds its own two thin products to a layer, and both train:

# %%
source(LoRALinear.forward)


# %%
def training_operations(config, lengths, full=False, embeddings=False, rank=0, targets=(), first_layer=0):
    """Part → operations of a forward and a backward pass; the head always trains.

    full          the encoder's weights train
    embeddings    something in the embeddings trains, so that every layer's input needs a gradient
    rank, targets LoRA on these linear layers, from layer `first_layer` up
    """
    h, inner, parts = config.hidden_size, config.intermediate_size, Counter()
    groups = group_by_length(lengths, torch.device("cpu"), torch.float32).groups
    sizes = {"intermediate": (h, inner), "ffn_output": (inner, h)}
    names = {"query": "query, output", "output": "query, output", "key": "key, value", "value": "key, value"}

    def linear(name, rows, adapted, reached):
        """Count a linear layer whose input needs a gradient if `reached`; whether its output needs one."""
        fan_in, fan_out = sizes.get(name, (h, h))
        parts[names.get(name, "feed-forward")] += 2 * rows * fan_in * fan_out * (1 + reached + full)
        if adapted := adapted and name in targets:
            parts["LoRA's A and B"] += 2 * rows * fan_in * rank * (1 + reached + 1)  # its input, and A
            parts["LoRA's A and B"] += 2 * rows * rank * fan_out * (1 + 1 + 1)  # A's output, and B
        return reached or full or adapted

    reached = embeddings
    for layer in range(config.num_hidden_layers):
        first = layer == config.num_hidden_layers - 1
        tokens, rows = sum(lengths), len(lengths) if first else sum(lengths)
        adapted = rank > 0 and layer >= first_layer
        key, value = (linear(name, tokens, adapted, reached) for name in ("key", "value"))
        query = linear("query", rows, adapted, reached)
        for group in groups:
            product = 2 * group.count * (1 if first else group.longest) * group.longest * h
            parts["attention"] += product * (1 + query + key)  # the scores
            parts["attention"] += product * (1 + (query or key) + value)  # the weights times the values
        reached = linear("output", rows, adapted, reached or query or key or value)
        reached = linear("ffn_output", rows, adapted, linear("intermediate", rows, adapted, reached))
    parts["head"] += 2 * len(lengths) * h * (h * (2 + reached) + config.num_labels * 3)
    return parts


top = config.num_hidden_layers - 1
top_only = {str(layer): 0 for layer in range(top)}
methods = {
    "full": (minipeft.Full(), {"full": True, "embeddings": True}),
    "BitFit": (minipeft.BitFit(), {"embeddings": True}),
    "LoRA": (minipeft.LoRA(rank=8), {"rank": 8, "targets": ("query", "value")}),
    "LoRA, top layer": (
        minipeft.LoRA(rank=8, rank_pattern=top_only),
        {"rank": 8, "targets": ("query", "value"), "first_layer": top},
    ),
    "head": (minipeft.Head(), {}),
}


def loss_of(model):
    """The mean loss over the batch."""
    return F.cross_entropy(model(batch), batch.labels, reduction="sum") / len(batch)


forward_only, cost = by_formula.total(), {}
print(f"{'':16} {'trains':>9} {'operations':>14} {'forwards':>9}")
for name, (method, settings) in methods.items():
    model = pretrained(method)
    parts = training_operations(config, batch.lengths, **settings)
    by_torch = counted(lambda model=model: loss_of(model).backward())
    count = minipeft.count_parameters(model)
    print(f"{name:16} {count.method:9,} {parts.total():14,} {parts.total() / forward_only:9.2f}")
    assert parts.total() == by_torch, (name, parts.total(), by_torch)
    cost[name] = parts.total() / forward_only
assert 2.95 < cost["full"] <= 3 and 2 < cost["LoRA"] < cost["BitFit"] < 2.1
assert 1 < cost["head"] < cost["LoRA, top layer"] < 1.02

# %% [markdown]
# The last column is in units of one forward pass, and each row agrees with torch's count exactly. Read it like this:
#
# - **Full** fine-tuning costs three forward passes: one forward, two backward.
# - **BitFit** costs very nearly two. It trains a tiny part of the numbers, but the gradient has to pass through every
#   frozen weight. A bias's own gradient is a sum, not a product.
# - **LoRA** costs about two as well. Its own products are small. Its lowest layer saves a little, because
#   nothing below it trains.
# - LoRA in the **top layer** alone is only just above one forward pass: no gradient is computed where nothing trains
#   below.
# - The **head** alone is one forward pass and very little more.
#
# So LoRA saves one third of full fine-tuning's operations, and cannot save more while the lowest layer is adapted. The
# number of trainable parameters does not matter. The same holds for every other method of the package. These are
# torch's counts with their default settings:

# %%
prices, counts = {}, {}
others = (
    *(minipeft.LayerNormTuning(), minipeft.IA3(), minipeft.VeRA(), minipeft.DoRA(), minipeft.AdaLoRA()),
    *(minipeft.Pfeiffer(), minipeft.Houlsby(), minipeft.PromptTuning(), minipeft.PrefixTuning()),
)
for method in others:
    model = pretrained(method)
    price = counted(lambda model=model: loss_of(model).backward()) / forward_only
    print(f"{type(method).__name__:16} {minipeft.count_parameters(model).method:9,} {price:9.2f}")
    prices[type(method)], counts[type(method)] = price, minipeft.count_parameters(model).method
assert min(prices.values()) > 1.9
assert min(prices[kind] for kind in (minipeft.PromptTuning, minipeft.VeRA, minipeft.Houlsby, minipeft.AdaLoRA)) > 2.1
assert set(sorted(counts, key=counts.get)[:2]) == {minipeft.VeRA, minipeft.PromptTuning}

# %% [markdown]
# None is much below two forward passes, and some are well above: a prompt makes every text longer, and bottlenecks, a
# large rank (VeRA's) or many targets (AdaLoRA's) add products. Few parameters and few operations are different things:
# VeRA and prompt tuning train the fewest numbers in this list.
#
# In roberta-base's shape, where our own count needs no weights:

# %%
ratio = {}
figure, axes = plt.subplots(figsize=(7, 3.6))
order = ("key, value", "query, output", "feed-forward", "attention", "LoRA's A and B", "head")
bars = []
for length in (64, 256):
    lengths = [length] * 16
    one = forward_operations(base, lengths).total()
    for name in ("full", "LoRA"):
        bars.append((f"{name}, {length} tokens", training_operations(base, lengths, **methods[name][1]), one))
    ratio[length] = bars[-1][1].total() / bars[-2][1].total()
    print(f"roberta-base, 16 texts of {length} tokens: LoRA does {ratio[length]:.3f} of full fine-tuning's operations")
assert 0.6 < ratio[64] < ratio[256] < 0.75
for position, (_, parts, one) in enumerate(bars):
    bottom = 0.0
    for number, part in enumerate(order):
        axes.barh(position, parts[part] / one, left=bottom, color=f"C{number}", label=None if position else part)
        bottom += parts[part] / one
axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
axes.set(xlabel="operations of a training step / one forward pass", title="roberta-base, by part")
axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.4, -0.2), ncol=3)
figure.tight_layout()
picture(
    figure,
    "Four horizontal bars, cut into parts. Full fine-tuning reaches 3 forward passes, LoRA about 2, at both "
    "lengths. In each bar the feed-forward part is the largest; attention is a thin slice that grows with the "
    "length, and LoRA's own products are barely visible.",
)

# %% [markdown]
# The longer the texts, the smaller the difference: attention is not cheaper between frozen layers.
#
# ## On the clock
#
# Do two thirds of the operations take two thirds of the time? Here is one step of each method on this machine: forward,
# backward and the optimizer, for the batch of above.

# %%
took = {}
for name, (method, _) in methods.items():
    model = pretrained(method).train()
    optimizer = adamw(model, weight_decay=0.01)
    set_learning_rate(optimizer, 1e-4)
    loss_of(model).backward()
    parts = (
        seconds(lambda model=model: loss_of(model), repeats=3),
        seconds(lambda model=model: loss_of(model).backward(), repeats=3),
        seconds(optimizer.step, repeats=3),
    )
    took[name] = parts[1] + parts[2]
    operations = training_operations(config, batch.lengths, **methods[name][1]).total()
    print(f"{name:16} forward {1e3 * parts[0]:6.1f} ms, with backward {1e3 * parts[1]:6.1f} ms, ", end="")
    print(f"optimizer {1e3 * parts[2]:5.2f} ms; {operations / parts[1] / machine:4.0%} of the machine's rate")
print(f"time of LoRA / full: {took['LoRA'] / took['full']:.2f}; BitFit / full: {took['BitFit'] / took['full']:.2f}")

# %% [markdown]
# The percentage is the part of the best rate, that of the first table, which the step reaches. All of these were
# measured once on this machine. In another run they differ, and a ratio can be above or below that of the operations.
# What are the reasons? Full fine-tuning writes a gradient for every weight, and its optimizer reads and writes several
# numbers for each of them; LoRA does not. Against that, LoRA's thin products are slow, as measured above; its forward
# pass has more calls and reads each activation more often; and what is not a matrix product takes as long as before.
# The profiler shows how much that is. This is a LoRA step, by kind of work:

# %%
KINDS = {
    "matrix products": ("addmm", "mm", "bmm", "linear", "matmul", "mkldnn::_linear_pointwise"),
    "softmax": ("softmax",),
    "GELU": ("gelu",),
    "LayerNorm": ("layer_norm",),
    "copying and gathering rows": ("copy_", "index_select", "index_copy_", "cat", "clone", "embedding", "contiguous"),
    "adding and multiplying": ("add", "add_", "mul", "mul_", "div", "div_", "sum", "neg"),
}
model = pretrained(methods["LoRA"][0])
loss_of(model).backward()
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
    loss_of(model).backward()
spent = Counter()
for event in profile.key_averages():
    name = event.key.removeprefix("aten::").strip("_").replace("_backward_data", "").removeprefix("native_")
    name = name.removesuffix("_backward")
    kind = next((kind for kind, parts in KINDS.items() if name in [part.strip("_") for part in parts]), "the rest")
    spent[kind] += event.self_cpu_time_total
for kind, microseconds in spent.most_common():
    print(f"{kind:28} {microseconds / spent.total():6.1%}")
figure, axes = plt.subplots(figsize=(6, 2.8))
axes.barh(*zip(*((kind, value / spent.total()) for kind, value in reversed(spent.most_common())), strict=True))
axes.set(xlabel="part of the time of one LoRA step on this machine")
figure.tight_layout()
picture(
    figure,
    "The time of one LoRA step by kind of work, as horizontal bars, the largest on top. The numbers are those "
    "of the machine that ran the page.",
)

# %% [markdown]
# What is not a matrix product is the same for full fine-tuning, or less. So two thirds of the time is about the best
# that LoRA can reach. What it saves is memory (no gradient and no optimizer state for frozen weights, but nearly all of
# the activations) and disk space (a small file for every task).
#
# ## What is faster
#
# **No padding.** Padding a batch to its longest sequence computes every linear layer on padding tokens. The next cell
# measures the same texts with `<pad>` tokens at their ends:

# %%
longest = max(batch.lengths)
filled = [sequence + [config.pad_token_id] * (longest - len(sequence)) for sequence in ids]
padded = minipeft.pack(filled, labels, config=config)
model = pretrained()
with torch.no_grad():
    times = [seconds(lambda one=one: model(one), repeats=3) for one in (batch, padded)]
operations = [forward_operations(config, one.lengths).total() for one in (batch, padded)]
print(f"tokens {batch.total_tokens} packed, {padded.total_tokens} padded")
print(f"padded / packed: operations {operations[1] / operations[0]:.2f}, time here {times[1] / times[0]:.2f}")
assert operations[1] / operations[0] > cost["full"] / cost["LoRA"]

# %% [markdown]
# This factor is larger than everything that LoRA saves in operations, and it grows with the ratio of the longest text
# to the mean. (A padded model would also have to mask those tokens; here we only measure their cost.)
#
# **The last layer for `<s>` alone.** Keys and values are still needed for all tokens; five sixths of the last layer's
# linear operations are not.

# %%
piece(Encoder.compute_layers, "last = len(self.layers)", "return x")
whole = forward_operations(config, batch.lengths, first_only=False)
print(f"roberta-mini: {1 - by_formula.total() / whole.total():.1%} of the forward operations saved; ", end="")
many = [64] * 16
saved = 1 - forward_operations(base, many).total() / forward_operations(base, many, first_only=False).total()
print(f"roberta-base: {saved:.1%}")
with torch.no_grad():
    times = [seconds(lambda first=first: model.encoder(batch, first_only=first), repeats=3) for first in (True, False)]
    assert torch.allclose(model.encoder(batch, first_only=True), model.encoder(batch)[batch.cu_seqlens[:-1]], atol=1e-4)
print(f"time of the encoder here: {times[0] / times[1]:.2f} of that with the whole last layer")

# %% [markdown]
# The assertion in that cell is important: the result is the same. An optimization that changes the result is a
# different method.
#
# **No gradient below the first trainable tensor.** The table above shows it: LoRA in the top layer alone needs hardly
# more than a forward pass. PyTorch does this automatically, if nothing at the bottom trains. With a single trainable
# LayerNorm bias in the embeddings, as in BitFit, the gradient has to be computed for all layers. Here is LoRA from a
# layer on upwards:

# %%
one = forward_operations(base, many).total()
for first in (0, base.num_hidden_layers // 2, base.num_hidden_layers - 1):
    parts = training_operations(base, many, rank=8, targets=("query", "value"), first_layer=first)
    print(f"roberta-base, LoRA from layer {first:2}: {parts.total() / one:.2f} forward passes")

# %% [markdown]
# This is a different method with other results: the count says what it saves, not whether the accuracy is sufficient.
#
# **One product for targets that share an input.** Query and value both multiply the same $x$ by an $A$ of their own.
# Stacked, these are one product of twice the width. The operations are the same, to the last one; there are fewer calls
# and $x$ is read once:

# %%
x, a_query, a_value = torch.randn(512, 768), torch.randn(8, 768), torch.randn(8, 768)
both = torch.cat([a_query, a_value])
apart, stacked = (lambda: (F.linear(x, a_query), F.linear(x, a_value))), (lambda: F.linear(x, both).split(8, dim=1))
assert counted(apart) == counted(stacked)
assert all(torch.allclose(one, other, atol=1e-3) for one, other in zip(apart(), stacked(), strict=True))
print(f"time here: {seconds(stacked) / seconds(apart):.2f} of that of two products")

# %% [markdown]
# `LoRALinear` above does not do this: each layer is independent of the others, which keeps it short.
#
# **Lower precision.** A bfloat16 number has half the bytes of a float32 and, on hardware that multiplies it directly,
# several times the rate. On hardware that does not, it can even be slower. It depends on the machine, and the first
# table has the rate of this one:

# %%
ratio_of_rates = rates["large, in bfloat16"] / machine
print(f"bfloat16 products run at {ratio_of_rates:.2f} times the rate of float32 here")

# %% [markdown]
# `--precision auto` takes bfloat16 where the device is faster in it: GPUs from compute capability 8.0, CPUs with AMX,
# and those of AMD with AVX512-BF16.
#
# **The fastest matrix product.** A matrix product is a call to a library, and a machine may have several. On the CPU,
# torch's float32 products go to MKL, which on some makes of CPU leaves the widest registers (AVX-512) unused, and its
# bfloat16 products to oneDNN, which uses them on every make. So minipeft asks oneDNN for the float32 ones too, but on
# Intel's CPUs, where MKL is the faster of the two:

# %%
source(ours.linear)
print(f"here its rate is {machine / rates['large: 768 x 768 by 768 x 768']:.2f} times that of torch's own product")

# %% [markdown]
# The operations are the same. A rate in the first table that is low for the machine is a reason to look for another
# library.
#
# ## Summary
#
# - Count first: $2mkn$ a product, the linear layers are nearly everything for sentences, and forward : backward is
#   1 : 2 for a trained layer, 1 : 1 for a frozen one, 1 : 0 where nothing below trains.
# - LoRA and BitFit save a third of full fine-tuning's operations at most, however few parameters they train.
# - The only certain saving is what is not computed at all: padding, the last layer's other tokens, gradients that
#   nobody needs.
# - A ratio of two times belongs to one machine at one time. Measure alternately, repeat, and give the range.

# %% [markdown]
# ## Exercises
#
# The notebook has three exercises here, each with a check and a collapsed solution. In a clone the same exercises are
# in `exercises/06_where_the_time_goes.py`: write your answers there, then run
# `python walkthroughs/check.py 6`. It says what is right and gives hints. The solutions are in `solutions/`.
