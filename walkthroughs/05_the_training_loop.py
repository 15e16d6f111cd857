# %% [markdown]
# # The training loop
#
# Training happens in one function, `train_loop` in `minipeft/training/loop.py`. It is plain statements from top to
# bottom. This page explains its parts: the optimizer, derived and computed by hand; the learning rate; how a batch of
# any size is divided and still gives the same gradient; clipping; and, at the end, which epoch's result may be
# reported.
#
# It is also a script: `python walkthroughs/05_the_training_loop.py`. Every number is computed below, and every
# quotation of the package's source is read from the package.

# %%
import json
import math
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from showing import picture, piece, source
from torch import nn

import minipeft
from minipeft.data.batches.sampling import split_by_tokens
from minipeft.data.tasks.synthetic import generate
from minipeft.device import MAX_TOKENS
from minipeft.training import loop
from minipeft.training.optimization.optimizer import adamw, parameter_groups, set_learning_rate
from minipeft.training.optimization.schedule import linear_schedule
from minipeft.training.run_folder import checkpoint
from minipeft.training.settings.recipes import BATCH_SIZE, GRAD_ACCUM, LORA_RECIPES, default_warmup

# %% [markdown]
# The loop begins by collecting the trainable parameters, creating the optimizer and counting the steps of the whole
# run. Which parameters are trainable was decided before, by `minipeft.apply`: it froze the model and left
# `requires_grad` only where the method and the classification head need it. The loop knows nothing else about LoRA or
# BitFit.

# %%
piece(loop.train_loop, "trainable = [", "total_steps =")

# %% [markdown]
# ## AdamW, step by step
#
# Plain gradient descent subtracts the gradient times a learning rate, $w \leftarrow w - \eta g$. In a transformer this
# works badly, because gradients differ by orders of magnitude from tensor to tensor: a rate that suits one of them is
# too small, or far too large, for another. Adam (Kingma and Ba 2015) divides each gradient by its own usual size. It
# keeps two moving averages for every trainable number, of the gradient and of its square,
#
# $$m_t = \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2 ,$$
#
# and steps by the ratio $m / \sqrt v$. If the gradient is steady the ratio is 1, and if it is all noise the ratio is
# near 0; a cell below computes it for gradients in between. In all cases it has no unit: multiply the loss by a
# thousand and the step stays the same. The learning rate is then simply about how far one number moves in one step.
#
# **Bias correction.** Both averages start at zero, so at first they are too small. Write the first one out:
# $m_t = (1 - \beta_1) \sum_{i=1}^{t} \beta_1^{\,t-i} g_i$. If every $g_i$ has the same mean $\mu$, the mean of $m_t$ is
# $\mu\,(1 - \beta_1)\sum_i \beta_1^{\,t-i} = \mu\,(1 - \beta_1^{\,t})$, a geometric sum. Dividing by
# $1 - \beta_1^{\,t}$ gives an average that is right from the first step on, and the same for $v$ with $\beta_2$:
#
# $$\hat m_t = \frac{m_t}{1 - \beta_1^{\,t}}, \qquad \hat v_t = \frac{v_t}{1 - \beta_2^{\,t}} .$$
#
# **Decoupled decay.** The W in AdamW (Loshchilov and Hutter 2019) is weight decay: each step also pulls a weight
# towards zero by the part $\eta\lambda$ of itself. Putting all of it together, for one tensor:


# %%
def adamw_step(w, g, m, v, t, lr, decay, beta1=0.9, beta2=0.999, eps=1e-8, correct=True):
    """One step of AdamW, t counting from 1: the new weight, and the two averages."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat = m / (1 - beta1**t) if correct else m
    v_hat = v / (1 - beta2**t) if correct else v
    w = w - lr * decay * w - lr * m_hat / (v_hat.sqrt() + eps)
    return w, m, v


torch.manual_seed(0)
by_hand = torch.randn(4, 3, dtype=torch.float64)
by_torch = nn.Parameter(by_hand.clone())
optimizer = torch.optim.AdamW([by_torch], lr=0.01, weight_decay=0.1)
m = v = torch.zeros_like(by_hand)
for t in range(1, 31):
    gradient = torch.randn_like(by_hand)
    by_hand, m, v = adamw_step(by_hand, gradient, m, v, t, lr=0.01, decay=0.1)
    by_torch.grad = gradient
    optimizer.step()
difference = float((by_hand - by_torch.detach()).abs().max())
print(f"largest difference from torch.optim.AdamW after 30 steps: {difference:.1e}")
assert difference < 1e-12

# %% [markdown]
# The very first step shows both properties at once. Whatever the gradient's size, $\hat m_1 = g$ and
# $\sqrt{\hat v_1} = |g|$, so the step is the learning rate itself, with the gradient's sign:

# %%
zero = torch.zeros(1, dtype=torch.float64)
for size in (1e-4, 1.0, 1e4):
    w, _, _ = adamw_step(zero, zero + size, zero, zero, t=1, lr=0.01, decay=0)
    print(f"gradient {size:8g}: first step {float(-w):.6f} at a learning rate of 0.01")
    assert abs(float(-w) - 0.01) < 1e-5

# %% [markdown]
# Later the step depends on the gradient's *history*. The average of the gradient reaches back about ten steps, that of
# its square about a thousand. So a gradient that keeps its sign but not its size does not give a step of exactly one
# learning rate. Here is the ratio after 200 steps:

# %%
torch.manual_seed(0)
number = torch.arange(1, 201, dtype=torch.float64)
histories = {
    "steady": torch.ones(200),
    "on in every other step": number % 2,
    "growing in a straight line": number / 200,
    "shrinking in a straight line": 1 - number / 201,
    "noise": torch.randn(200),
}
ratios = {}
for name, history in histories.items():
    m = v = w = zero
    for t, g in enumerate(history.double(), start=1):
        before = w
        w, m, v = adamw_step(w, zero + g, m, v, t, lr=1.0, decay=0)
    ratios[name] = abs(float(w - before))
    print(f"{name:29}: a step of {ratios[name]:.2f} learning rates")
assert abs(ratios["steady"] - 1) < 1e-6 and abs(ratios["on in every other step"] - 0.5**0.5) < 0.05
assert ratios["growing in a straight line"] > 1.5 and ratios["shrinking in a straight line"] < 0.2
assert ratios["noise"] < 0.5

# %% [markdown]
# And without the correction? $\beta_2$ is much closer to 1 than $\beta_1$, so $v$ starts much further below its true
# value than $m$ does, and dividing by its root makes the early steps too *large*. For a constant gradient the step
# would be $(1 - \beta_1^{\,t}) / \sqrt{1 - \beta_2^{\,t}}$ learning rates:

# %%
steps = np.arange(1, 5001)
uncorrected = (1 - 0.9**steps) / np.sqrt(1 - 0.999**steps)
print(f"step 1: {uncorrected[0]:.2f} learning rates; the worst, step {steps[uncorrected.argmax()]}: ", end="")
print(f"{uncorrected.max():.2f}; still {uncorrected[999]:.2f} at step 1000")
w, _, _ = adamw_step(zero, zero + 1, zero, zero, t=1, lr=1.0, decay=0, correct=False)
assert abs(float(-w) - uncorrected[0]) < 1e-6
assert 3 < uncorrected[0] < 3.5 and uncorrected.max() > 6 and 10 <= uncorrected.argmax() <= 15

figure, axes = plt.subplots(figsize=(6, 3))
axes.semilogx(steps, uncorrected, label="without bias correction")
axes.semilogx(steps, np.ones_like(uncorrected), "--", label="with it")
axes.set(xlabel="step (logarithmic)", ylabel="step size / learning rate", title="A constant gradient")
axes.legend()
figure.tight_layout()
picture(
    figure,
    "Step size in learning rates over five thousand steps of a constant gradient. With bias correction it is 1 "
    "throughout. Without, it starts at about three, rises in the first dozen steps or so to more than six, and "
    "takes thousands of steps to come down to 1.",
)

# %% [markdown]
# A short fine-tuning run has only a few hundred steps; without the correction, all of them would be too large.
#
# **Why "decoupled" matters.** Another way is to add $\lambda w$ to the gradient, which is the derivative of a penalty
# $\tfrac{\lambda}{2} w^2$. For plain gradient descent that is the same thing. For Adam it is not, because the penalty's
# gradient is then divided by $\sqrt v$ too. Take two weights that start at 1 and get only noise as gradients, the
# second a thousand times less than the first:

# %%
torch.manual_seed(0)
noise = torch.randn(2000, 1, dtype=torch.float64) * torch.tensor([1.0, 0.001], dtype=torch.float64)
ends = {}
for name, coupled in (("penalty in the gradient", True), ("decoupled, AdamW", False)):
    w = torch.ones(2, dtype=torch.float64)
    m = v = torch.zeros_like(w)
    for t, g in enumerate(noise, start=1):
        w, m, v = adamw_step(w, g + 0.5 * w if coupled else g, m, v, t, lr=1e-3, decay=0 if coupled else 0.5)
    ends[name] = w.tolist()
    print(f"{name:25}: the noisy weight ends at {w[0]:+.3f}, the quiet one at {w[1]:+.3f}")
print(f"decay alone would leave (1 - 0.001 · 0.5)^2000 = {(1 - 0.001 * 0.5) ** 2000:.3f}")
assert abs(ends["decoupled, AdamW"][0] - ends["decoupled, AdamW"][1]) < 1e-3
assert abs(ends["penalty in the gradient"][1]) < 0.2 < ends["penalty in the gradient"][0]

# %% [markdown]
# Decoupled, both shrink equally. Coupled, the weight with small gradients is driven to zero: there the penalty is most
# of the gradient, and Adam scales it to a full step.
#
# ## What decays, and what does not
#
# minipeft's optimizer is torch's AdamW over the groups that this function makes:

# %%
source(parameter_groups)

# %% [markdown]
# Matrices decay; vectors do not. A matrix multiplies, so pulling it towards zero makes the function smoother. A
# LayerNorm's weight starts at 1 and *is* the scale of the signal: pulling it to zero only turns the layer down. A bias
# shifts, and a smaller shift is not a simpler function. For parameter-efficient methods there is a second reason. For
# LoRA's $A$ and $B$, which make up a *change* of the pretrained weight, "towards zero" means "towards the pretrained
# model", which is sensible. In full fine-tuning, and for BitFit's biases, the trainable parameters are the pretrained
# values, and "towards zero" means *away* from the pretrained model. For biases minipeft leaves the decay out; for
# the matrices of full fine-tuning it is kept, as in the papers, because it is small: at a learning rate of 5e-5 and a
# decay of 0.01, a thousand steps take less than 0.05 percent of a weight away.
#
# Here is what falls into the two groups for three methods. Every one also trains the head.

# %%
torch.manual_seed(0)
for method in (minipeft.LoRA(rank=2), minipeft.BitFit(), minipeft.Full()):
    model = minipeft.apply(minipeft.load_pretrained("roberta-mini"), method)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    print(f"{type(method).__name__}: {minipeft.count_parameters(model)}")
    for group in parameter_groups(model, weight_decay=0.01):
        members = [names[id(parameter)] for parameter in group["params"]]
        size = sum(parameter.numel() for parameter in group["params"])
        print(f"   decay {group['weight_decay']:4}: {len(members):3} tensors, {size:9,} numbers: {members[0]}, …")
        assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for p in group["params"])

# %% [markdown]
# The next cell compares the hand-written step with `adamw` and `set_learning_rate`, on a linear layer: its weight with
# decay, its bias without, the learning rate different in every step as in the loop.

# %%
layer = nn.Linear(5, 4)
ours = {name: (p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p)) for name, p in layer.named_parameters()}
optimizer = adamw(layer, weight_decay=0.1)
for t in range(1, 21):
    lr = 0.01 * linear_schedule(t, warmup_steps=5, total_steps=25)
    set_learning_rate(optimizer, lr)
    for name, parameter in layer.named_parameters():
        parameter.grad = torch.randn_like(parameter)
        w, m, v = ours[name]
        ours[name] = adamw_step(w, parameter.grad, m, v, t, lr, decay=0.1 if name == "weight" else 0.0)
    optimizer.step()
for name, parameter in layer.named_parameters():
    difference = float((ours[name][0] - parameter).detach().abs().max())
    print(f"{name:6}: largest difference after 20 steps {difference:.1e}")
    assert difference < 1e-6

# %% [markdown]
# ## Warmup and decay of the learning rate
#
# At the start the head is random, so the gradients say more about the head than about the text, and Adam's averages are
# made of few gradients. The rate therefore climbs in a straight line from zero. At the end it falls in a straight line
# to zero, so that the last steps average out noise instead of adding to it.

# %%
source(linear_schedule)

# %% [markdown]
# There is no scheduler object here. The factor is a *pure function of the step*: it has no state that could be saved
# wrongly, and a run that is resumed at step 500 has the rate of step 500. Two things follow from the definition. The
# first step of a run with warmup has the rate zero and moves nothing. And a warmup longer than the run never reaches
# the full rate. Therefore minipeft's default is 100 steps only in runs of 900 steps or more, and 10 percent of the
# steps in shorter ones; whoever passes `--warmup-steps 100` to a quick trial gets the second curve below.

# %%
examples = len(generate("rte", "train")["label"])  # as many as RTE has
epochs, per_step = LORA_RECIPES["rte"][0], BATCH_SIZE * GRAD_ACCUM
total = epochs * math.ceil(examples / per_step)
factors = [linear_schedule(step, 100, total) for step in range(total + 1)]
trial = [linear_schedule(step, 100, 60) for step in range(61)]
print(f"{total} steps; the factor at steps 0, 50, 100 and {total}:", *(factors[step] for step in (0, 50, 100, total)))
print(f"a run of 60 steps with a warmup of 100: at most {max(trial[:60]):.2f}")
assert factors[0] == factors[total] == 0 and factors[100] == 1 and factors[50] == 0.5 and max(trial[:60]) < 1
assert default_warmup(total) == 100 and default_warmup(60) == 6

figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(factors, label=f"{total} steps, warmup 100")
axes.plot(trial[:60], label="60 steps, warmup 100: never at full rate")
axes.set(xlabel="optimizer step", ylabel="factor on the learning rate", title="linear_schedule")
axes.legend()
figure.tight_layout()
picture(
    figure,
    "The factor climbs in a straight line from 0 to 1 over the first hundred steps and falls in a straight "
    "line to 0 at the last. A second, very short curve belongs to a run of sixty steps, which ends while it "
    "still climbs.",
)

# %% [markdown]
# ## Accumulation is one large batch
#
# The loop trains on 16 × 4 sequences in a step. In most code these are four batches of 16 whose gradients are added up,
# because 64 padded sequences may not fit into the memory. Here is what happens in this loop between one optimizer step
# and the next:

# %%
piece(loop.train_loop, "while progress.step < next_evaluation:", "norm = clip_grad_norm_")

# %% [markdown]
# The important line contains `/ weight`, the number of sequences of the whole step (with class weights, the sum of
# their weights). The loss of a step is the mean over its sequences, $L = \frac{1}{N}\sum_{i=1}^N \ell_i$, and
# differentiation is linear: the gradient of a sum is the sum of gradients, whichever way the terms are grouped. So each
# part may take the *sum* of its own losses, divide by the $N$ of the whole step, and call `backward()`, which adds to
# what is already in `.grad`. Parts may be of any size.
#
# The usual shortcut, each part's *mean* divided by the number of parts, is only right when all parts have equally many
# sequences. It is wrong for the last batch of an epoch, and with packing it would be wrong for every batch. Measured,
# on sentences of very different lengths:

# %%
tokenizer = minipeft.load_tokenizer("roberta-mini")
rows = generate("sst2", "train")
texts = [" ".join(rows["sentence"][i : i + 1 + i % 6]) for i in range(32)]
labels, ids = rows["label"][:32], tokenizer.encode(texts)
lengths = [len(sequence) for sequence in ids]
torch.manual_seed(0)
model = minipeft.apply(minipeft.load_pretrained("roberta-mini"), minipeft.LoRA(rank=2))


def gradient_of(parts, weight):
    """The gradient of everything that trains, as one vector, when the parts are taken one after the other."""
    model.zero_grad()
    for part in parts:
        batch = minipeft.pack([ids[i] for i in part], [labels[i] for i in part], config=model.config)
        (F.cross_entropy(model(batch), batch.labels, reduction="sum") * weight(part)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


parts = list(split_by_tokens(range(32), lengths, max_tokens=320))
print(f"lengths {min(lengths)} to {max(lengths)}; parts of", [len(part) for part in parts], "sequences, with", end=" ")
print([sum(lengths[i] for i in part) for part in parts], "tokens")
whole = gradient_of([range(32)], lambda part: 1 / 32)
summed = gradient_of(parts, lambda part: 1 / 32)
means = gradient_of(parts, lambda part: 1 / len(part) / len(parts))
for name, found in (("sums / N", summed), ("mean of the parts' means", means)):
    print(f"{name:25}: relative difference from one batch {float((found - whole).norm() / whole.norm()):.1e}")
assert (summed - whole).norm() < 1e-4 * whole.norm() and (means - whole).norm() > 1e-2 * whole.norm()

# %% [markdown]
# The first difference is rounding; the second is a different gradient, in which the sequences of small parts count
# more.
#
# Since the grouping does not matter, the loop is free to choose the grouping that is fastest. `split_by_tokens` takes
# all the sequences of the step, sorts them by length and fills batches up to a budget of *tokens*, which is what bounds
# the memory:

# %%
source(split_by_tokens)
for task in ("rte", "sst2"):
    columns = [
        generate(task, "train")[name][:64] for name in (("sentence1", "sentence2") if task == "rte" else ("sentence",))
    ]
    found = [len(sequence) for sequence in tokenizer.encode(*columns)]
    merged = list(split_by_tokens(range(64), found, MAX_TOKENS["cpu"]))
    print(f"synthetic {task}: 64 sequences, {sum(found)} tokens, batches of {MAX_TOKENS['cpu']} or less: {len(merged)}")
    assert all(sum(found[i] for i in batch) <= MAX_TOKENS["cpu"] for batch in merged)

# %% [markdown]
# So `--batch-size 16 --grad-accum 4` and `--batch-size 64 --grad-accum 1` are the same run. Small batches are merged,
# and a step on short sentences is one large batch. On longer texts it is a few of them.
#
# ## Clipping
#
# Before the step the gradient of everything that trains is taken as one long vector and, where it is longer than 1,
# scaled to the length 1. Adam does not depend on the scale of the gradients, so why clip? Because it does depend on a
# *sudden* change of the scale. A single bad batch enters $v$ with its square, and $v$ decays slowly. Below, one
# gradient out of two thousand is a hundred times too large:

# %%
shock, after = 200, {}
figure, axes = plt.subplots(figsize=(6, 3))
for name, longest in (("without clipping", math.inf), ("clipped to length 1", 1.0)):
    w = m = v = zero
    moved = []
    for t in range(1, 2001):
        g = torch.full_like(zero, 100.0 if t == shock else 1.0)
        g = g * min(1.0, longest / float(g.norm()))
        new, m, v = adamw_step(w, g, m, v, t, lr=1.0, decay=0)
        moved.append(float(w - new))
        w = new
    axes.plot(moved, label=name)
    after[name] = moved
    print(
        f"{name:20}: largest step {max(moved):.2f} learning rates; 100 steps after the bad one {moved[shock + 99]:.2f}"
    )
assert (
    max(after["without clipping"]) > 1.3 and after["without clipping"][shock + 99] < after["without clipping"][-1] < 0.7
)
assert max(abs(step - 1) for step in after["clipped to length 1"]) < 1e-6
axes.set(xlabel="step", ylabel="step size / learning rate", title="One gradient a hundred times too large")
axes.legend()
figure.tight_layout()
picture(
    figure,
    "Step size over two thousand steps. Without clipping it jumps up at the bad gradient, then drops far below 1 "
    "and has recovered only in part at the end of the picture. With clipping it stays at 1.",
)

# %% [markdown]
# Without clipping the bad batch has two effects: a step that is too large, in a direction that this one batch decides,
# and then steps that are much too small for the rest of a short run. With clipping neither happens. Then the loop
# checks that loss and gradient are finite, lets the optimizer step, and counts:

# %%
piece(loop.train_loop, "_add_step(prev", "bar.update()")

# %% [markdown]
# ## The end of an epoch
#
# Then comes the evaluation, one line of `metrics.jsonl`, a checkpoint and, where this epoch is the best so far, the
# adapter, in the two files that `minipeft.save_adapter` writes:

# %%
piece(loop.train_loop, "logits, metrics = evaluate_all(", "processes.on_rank_zero(publish_epoch)")
source(checkpoint.publish, checkpoint.best_epoch)

# %% [markdown]
# ## The best epoch is a biased figure
#
# RTE has 277 validation rows. A classifier that is right with probability $p$ on each row is measured with the standard
# error
#
# $$\mathrm{se} = \sqrt{p\,(1-p)/n} ,$$
#
# the standard deviation of the mean of $n$ coin tosses. Now evaluate it after each of 25 epochs and report the largest
# value. Even if training changes *nothing*, the largest of 25 noisy measurements lies above the truth. For independent
# measurements that are nearly normal, a simulation tells how far:

# %%
rng = np.random.default_rng(0)
rows, p = len(generate("rte", "validation")["label"]), 0.70
assert (rows, epochs) == (277, 25)
error = math.sqrt(p * (1 - p) / rows)
largest_of = rng.standard_normal((20_000, epochs)).max(axis=1).mean()
print(f"one standard error on {rows} rows at {p:.2f}: {error:.4f}")
print(f"expected largest of {epochs} independent normal numbers: {largest_of:.2f} standard errors")
print(f"so the best epoch would read {p + largest_of * error:.3f} instead of {p:.3f}")

# %% [markdown]
# But epochs are not independent: the rows are the same each time, and most of the answers do not change. So let each
# answer stay with a probability, and be drawn again otherwise. The classifier's true accuracy is 0.70 in *every* epoch
# of this simulation; there is no best epoch to find.


# %%
def simulate(stay, runs=2000):
    """Measured accuracies (runs, epochs) where each row's answer stays from epoch to epoch with a probability."""
    right = rng.random((runs, rows)) < p
    measured = np.empty((runs, epochs))
    for epoch in range(epochs):
        redrawn = rng.random((runs, rows)) >= (stay if epoch else 0)
        right = np.where(redrawn, rng.random((runs, rows)) < p, right)
        measured[:, epoch] = right.mean(axis=1)
    return measured


figure, axes = plt.subplots(figsize=(6, 3.5))
best_of = {}
for stay in (0.0, 0.5, 0.9, 0.99):
    measured = simulate(stay)
    best_of[stay] = np.maximum.accumulate(measured, axis=1).mean(axis=0)
    best, last = measured.max(axis=1), measured[:, -1]
    print(f"answers stay with {stay:.2f}: last {last.mean():.3f}, best {best.mean():.3f} on average; ", end="")
    print(f"the best is above {p:.2f} in {np.mean(best > p):.0%} of the runs")
    axes.plot(range(1, epochs + 1), best_of[stay], label=f"answers stay with {stay:.2f}")
    assert abs(last.mean() - p) < 0.003
assert abs(best_of[0.0][-1] - (p + largest_of * error)) < 0.003
assert best_of[0.0][-1] > best_of[0.5][-1] > best_of[0.9][-1] > best_of[0.99][-1] > p + 0.005
axes.axhline(p, color=plt.rcParams["text.color"], linestyle="--", label="true accuracy")
axes.axhline(p + error, color=plt.rcParams["text.color"], linestyle=":", label="one standard error above")
axes.set(
    xlabel="epochs evaluated", ylabel="expected best", title=f"The best epoch of a constant classifier, {rows} rows"
)
axes.legend(fontsize=8)
figure.tight_layout()
picture(
    figure,
    "The expected best accuracy against the number of epochs it was chosen from, one curve for each "
    "probability that an answer stays. All begin at the true accuracy and rise; the more independent the "
    "epochs, the faster. The topmost curves end well above the line of one standard error, although nothing "
    "was learned.",
)

# %% [markdown]
# Three consequences:
#
# - The bias grows with the number of evaluations. A method that is evaluated 25 times gets more of it than one
#   evaluated five times, and the difference looks like a better method.
# - It shrinks with the number of rows, like the standard error. On a split of many thousand rows it hardly matters; on
#   277 it is several points of accuracy, as much as a typical difference between two methods.
# - More seeds do not remove it. They reduce the spread of the mean, but the mean stays too high:

# %%
measured = simulate(0.9, runs=5000).max(axis=1).reshape(1000, 5)
print(f"one run's best: {measured.mean():.3f}, spread {measured.std():.3f}; ", end="")
print(f"mean of five seeds' bests: {measured.mean():.3f}, spread {measured.mean(axis=1).std():.3f}")
print(f"best of 5 epochs {best_of[0.9][4]:.3f}, best of 25 epochs {best_of[0.9][24]:.3f}: the same classifier")
assert measured.mean(axis=1).std() < 0.6 * measured.std() and best_of[0.9][24] > best_of[0.9][4]

# %% [markdown]
# Choosing the best epoch is a sensible way to choose an *adapter*, and the loop does that. It is not a way to measure
# one. The last epoch was not chosen by its score, so its figure is unbiased, as long as nothing else was chosen on the
# same rows: a learning rate that was chosen there adds the same bias. `result.json` therefore holds **both**, and so
# should every table: best, because papers print it, and last, because new rows would confirm it.
#
# ## A real run
#
# A short one, on the first part of the synthetic data for SST-2, with a warmup that fits its length, and on as many
# validation rows as RTE has:

# %%
scratch = tempfile.TemporaryDirectory()  # removed when the script ends
output = Path(scratch.name) / "run"
result = minipeft.train(
    task="sst2",
    method=minipeft.LoRA(rank=8, alpha=16),
    model="roberta-mini",
    data="standin",
    train_limit=384,
    eval_limit=277,
    epochs=5,
    batch_size=16,
    grad_accum=2,
    lr=2e-3,
    warmup_steps=6,
    precision="fp32",
    device="cpu",
    output=str(output),
    quiet=True,
)
history = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
content = json.loads((output / "result.json").read_text())
for row in history:
    print(*(f"{name} {row[name]:<8.4g}" for name in ("epoch", "step", "train_loss", "eval_loss", "accuracy")))
print("best", content["best"], "last", content["last"])
assert isinstance(result, minipeft.Result) and result.output == output
assert content["best"]["value"] == max(row["accuracy"] for row in history) == result.best
assert content["last"]["value"] == history[-1]["accuracy"]

numbers = [row["epoch"] for row in history]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
left.plot(numbers, [row["train_loss"] for row in history], "o-", label="training")
left.plot(numbers, [row["eval_loss"] for row in history], "o-", label="validation")
left.set(xlabel="epoch", ylabel="loss")
left.legend()
values = np.array([row["accuracy"] for row in history])
right.errorbar(numbers, values, np.sqrt(values * (1 - values) / rows), fmt="o-", capsize=3)
right.plot(content["best"]["epoch"], content["best"]["value"], "*", markersize=14, label="best epoch")
right.set(xlabel="epoch", ylabel="accuracy, with one standard error")
right.legend()
figure.tight_layout()
picture(
    figure,
    "On the left the training and validation loss of each epoch; on the right the accuracy with a bar of one "
    "standard error, the best epoch marked by a star.",
)

# %% [markdown]
# Look at the length of the bars before comparing two neighbouring epochs. These figures are of synthetic data:
# they show that the machine works and say nothing about SST-2.
#
# The folder holds everything that a later process needs. `minipeft.load_run` reloads the best epoch's adapter, and it
# measures what the run has written down. (`minipeft.Classifier` and `minipeft.Regressor` offer training and prediction
# as estimators of scikit-learn.)

# %%
print(sorted(path.name for path in output.iterdir()))
again = minipeft.load_run(output, device="cpu").evaluate()
print("reloaded:", again)
assert again["accuracy"] == content["best"]["value"]

# %% [markdown]
# A second run into the same folder raises an error of one line, before anything is loaded or written. So does all other
# bad input.

# %%
for wrong in ({"output": str(output)}, {"output": str(output), "lr": -1.0}, {"task": "imdb"}):
    try:
        minipeft.train(**{"task": "sst2", "model": "roberta-mini", "data": "standin", **wrong})
    except minipeft.MinipeftError as error:
        print(str(error).replace(str(output), "OUTPUT"))
    else:
        raise AssertionError("not refused")

# %% [markdown]
# ## Summary
#
# - AdamW moves a number with a steady gradient by one learning rate a step, whatever the gradient's size, and by less
#   where the gradient is noise; bias correction makes that true from the first step on, and decoupled decay shrinks all
#   decaying weights alike.
# - Decay pulls towards zero: this suits LoRA's matrices, but not pretrained values that are trained themselves.
# - The step's loss is a mean over sequences, so any way to cut the batch up gives the same gradient, if sums are
#   divided by the count of the whole step.
# - The best of many epochs on few rows is biased upwards. Report the last epoch's figure next to it.
#
# Next: [where the time goes](06_where_the_time_goes.ipynb).

# %% [markdown]
# ## Exercises
#
# The notebook has three exercises here, each with a check and a collapsed solution. In a clone the same exercises are
# in `exercises/05_the_training_loop.py`: write your answers there, then run
# `python walkthroughs/check.py 5`. It says what is right and gives hints. The solutions are in `solutions/`.
