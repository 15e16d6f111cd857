# %% [markdown]
# # Comparing fairly
#
# "LoRA is two points above BitFit" is the difference of two numbers, and each of them would be different with another
# seed, on other validation rows, or with another learning rate. This page measures how much of a figure is chance,
# derives what a few seeds can and cannot show, shows how selection biases a figure, and then reads a comparison made by
# `minipeft compare`.
#
# It is also a script: `python walkthroughs/07_comparing_fairly.py`. Every number below is computed when it runs.

# %%
import contextlib
import io
import json
import math
import re
import tempfile
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from showing import picture, piece, source

import minipeft
from minipeft.adapters.adapter import initialize_from_adapter, read_initial_adapter
from minipeft.cli import main
from minipeft.compare import table as rule
from minipeft.compare.formatting import describe_differences, format_text, join_names
from minipeft.data.batches.sampling import epoch_order
from minipeft.data.tasks.synthetic import generate
from minipeft.model.layers import init_weights
from minipeft.model.roberta import ClassificationHead
from minipeft.training.optimization.optimizer import adamw, set_learning_rate

torch.set_num_threads(1)
rng = np.random.default_rng(0)


def say(text):
    """Print, with sentences that are longer than any table folded for a narrow screen."""
    for line in text.splitlines():
        print(line if len(line) < 120 else textwrap.fill(line, 76))


# %% [markdown]
# ## What a seed changes
#
# A run's seed decides four things: the new head, LoRA's $A$ ($B$ starts at zero), the order of the examples in each
# epoch, and the dropout masks. It changes neither the encoder nor the text. Here are two seeds side by side:

# %%
tokenizer = minipeft.load_tokenizer("roberta-mini")
assert isinstance(tokenizer, minipeft.Tokenizer)
rows = generate("sst2", "train")


def beginning(seed):
    """What a run with this seed begins with."""
    torch.manual_seed(seed)
    model = minipeft.apply(minipeft.load_pretrained("roberta-mini"), minipeft.LoRA(rank=2))
    query = model.encoder.layers[0].query
    assert isinstance(query, minipeft.LoRALinear)
    return {
        "token ids of the first texts": tokenizer.encode(rows["sentence"][:64]),
        "the encoder's weights": query.weight.tolist(),
        "LoRA's B": query.lora_B.tolist(),
        "LoRA's A": query.lora_A.tolist(),
        "the head": model.head.dense.weight.tolist(),
        "the order of the first epoch": list(epoch_order(512, seed, 1)),
    }


first, second = beginning(1), beginning(2)
different = [name for name in first if first[name] != second[name]]
for name in first:
    print(f"{name:30} {'different' if name in different else 'the same'}")
assert different == ["LoRA's A", "the head", "the order of the first epoch"]

# %% [markdown]
# None of these differences is a property of the method, but all of them affect the figure.
#
# ## How much a seed changes a figure
#
# A spread needs many runs, and many runs take long. So this section trains only the head, on the vectors that the
# frozen encoder gives for the synthetic data for SST-2. These vectors are computed once, and then a run takes a
# fraction of a second. The example is small (and synthetic data say nothing about English), but its random variation is
# real: twenty seeds, three learning rates, eight epochs each, and for every epoch we keep which of the 872 validation
# rows it got right.

# %%
config = minipeft.load_pretrained("roberta-mini").config
encoder = minipeft.load_pretrained("roberta-mini").encoder


def features(split, count):
    """The encoder's vectors of <s> (count, hidden_size), and the labels."""
    part = generate("sst2", split)
    with torch.no_grad():
        found = [
            encoder(minipeft.pack(tokenizer.encode(part["sentence"][i : min(i + 64, count)]), config=config), True)
            for i in range(0, count, 64)
        ]
    return torch.cat(found), torch.tensor(part["label"][:count])


train, train_labels = features("train", 384)
validation, labels = features("validation", 872)
assert len(labels) == len(generate("sst2", "validation")["label"])
rates, epochs, seeds = (3e-4, 1e-3, 3e-3), 8, range(20)


def train_head(seed, lr):
    """Train a head → which validation rows it gets right after each epoch (epochs, rows)."""
    torch.manual_seed(seed)
    head = ClassificationHead(config)
    init_weights(head, config.initializer_range)
    optimizer, right = adamw(head, weight_decay=0.01), []
    set_learning_rate(optimizer, lr)
    for epoch in range(epochs):
        head.train()
        for chosen in torch.tensor(list(epoch_order(len(train), seed, epoch))).split(96):
            optimizer.zero_grad()
            (F.cross_entropy(head(train[chosen]), train_labels[chosen], reduction="sum") / len(chosen)).backward()
            optimizer.step()
        with torch.no_grad():
            right.append(head.eval()(validation).argmax(dim=1) == labels)
    return torch.stack(right).numpy()


right = np.array([[train_head(seed, lr) for lr in rates] for seed in seeds])  # (seeds, rates, epochs, rows)
ends = right[:, 1, -1]  # the middle learning rate, the last epoch: (seeds, rows)
accuracies = ends.mean(axis=1)
p, seed_spread = accuracies.mean(), accuracies.std(ddof=1)
print("accuracy of the first six seeds:", *(f"{value:.3f}" for value in accuracies[:6]))
print(f"all {len(seeds)}: {accuracies.min():.3f} to {accuracies.max():.3f}, mean {p:.3f}, ", end="")
print(f"standard deviation {seed_spread:.4f}")
assert accuracies.max() - accuracies.min() > 2 * seed_spread > 0

# %% [markdown]
# A single run gives one of these numbers.
#
# ## The validation rows are a sample, too
#
# Seeds are not the only source of chance. The validation rows are a sample, too. Let $X_i$ be 1 where row $i$ is
# answered correctly and 0 where it is not, with probability $p$ for a 1. Then $X_i^2 = X_i$, so its variance is
# $E[X_i^2] - E[X_i]^2 = p - p^2 = p(1-p)$. The variance of a sum of $n$ independent rows is $n$ times that, and
# dividing the sum by $n$ divides the variance by $n^2$. So the accuracy of *one fixed model* has the standard deviation
#
# $$\mathrm{se} = \sqrt{\frac{p\,(1-p)}{n}}$$
#
# over all splits that could have been drawn. To check that, draw splits: 277 rows (as many as RTE has), with
# replacement, from our 872, again and again, and measure the first seed's model on each.

# %%
n = len(generate("rte", "validation")["label"])
drawn = rng.integers(0, len(labels), (2000, n))
measured = ends[0][drawn].mean(axis=1)
by_formula = rule.standard_error("accuracy", accuracies[0], n)
print(f"over {len(drawn)} drawn splits of {n} rows: {measured.std():.4f}; by the formula: {by_formula:.4f}")
for size in (277, 408, 872, 9815):
    print(f"one standard error at p = {p:.2f} on {size:5,} rows: {rule.standard_error('accuracy', p, size):.4f}")
assert n == 277 and abs(measured.std() - by_formula) < 0.1 * by_formula

# %% [markdown]
# These are the sizes of RTE's, MRPC's, SST-2's and MNLI's (matched) validation. To halve the error one needs four times
# the rows.
#
# Both matter, because neither removes the other. Averaging over seeds makes the first part small, but the seeds all
# answer the *same* rows, and a row that one of them gets wrong is likely to be wrong for another. Below, a split is
# drawn, then $k$ of the seeds, and their mean accuracy is taken: how much does it vary from draw to draw?

# %%
pairs = [(one, other) for one in seeds for other in range(one)]
agree = np.mean([np.mean(ends[one] == ends[other]) for one, other in pairs])
independent = p**2 + (1 - p) ** 2
print(f"two seeds are both right or both wrong on {agree:.0%} of the rows; independent ones: {independent:.0%}")
assert agree > independent + 0.05

counts, moves = (1, 2, 3, 5, 10, 20), []
for k in counts:
    who = np.argsort(rng.random((2000, len(seeds))), axis=1)[:, :k]
    moves.append(np.mean(ends[who[:, :, None], drawn[:, None, :]], axis=(1, 2)).std())
    print(f"mean of {k:2} seeds on a drawn split of {n}: standard deviation {moves[-1]:.4f}")
assert moves[-1] > 0.4 * moves[0]

figure, (left, middle) = plt.subplots(1, 2, figsize=(8, 3))
left.plot(range(1, len(seeds) + 1), accuracies, "o")
all_rows = rule.standard_error("accuracy", p, len(labels))
left.axhspan(p - all_rows, p + all_rows, alpha=0.15)
left.set(xlabel="seed", ylabel=f"accuracy on {len(labels)} rows", title="One method, 20 seeds")
middle.plot(counts, moves, "o-", label="measured")
middle.plot(counts, [moves[0] / math.sqrt(k) for k in counts], "--", label="if seeds were all")
middle.set(xlabel="seeds averaged", ylabel="standard deviation", title="What more seeds remove", ylim=(0, None))
middle.legend(fontsize=8)
figure.tight_layout()
picture(
    figure,
    "Left, the accuracies of twenty seeds as dots, scattered about their mean, with a band of one standard error of "
    "their 872 rows on either side. Right, the standard deviation of the mean of several seeds on a drawn split: it "
    "falls a little with the number of seeds and then stays level, far above the dashed curve that falls as one over "
    "the root of that number.",
)

# %% [markdown]
# With more seeds on the same rows the error does not fall below that of the split. And a larger split alone does not
# show how much the seeds differ. A figure needs both: several seeds, and the error of the rows.
#
# ## Three seeds say little
#
# Suppose that two methods are the same, with three seeds each. How often do all three of one lie above all three of the
# other? Put the six results in order. Every choice of three places for the first method is equally likely: there are
# $\binom{6}{3}$ choices, and exactly one of them is "the three highest". This holds for every distribution.

# %%
for k in (1, 2, 3, 5):
    exact = 1 / math.comb(2 * k, k)
    one, other = rng.standard_normal((2, 200_000, k))
    simulated = np.mean(one.min(axis=1) > other.max(axis=1))
    print(f"{k} seeds each: 1 in {math.comb(2 * k, k):3} = {exact:.4f} one way, simulated {simulated:.4f}; ", end="")
    print(f"either way 1 in {math.comb(2 * k, k) / 2:g}")
    assert abs(simulated - exact) < 0.005
assert math.comb(6, 3) == 20

# %% [markdown]
# With three seeds it is 1 in 20 if the better method was named beforehand, and 1 in 10 if either may be the better one.
# A table usually has more than two methods. Expectations add up, so the expected number of separated pairs in a table
# of *equal* methods is the number of pairs divided by 10:

# %%
for methods in (2, 4, 8):
    count = math.comb(methods, 2)
    print(f"{methods} equal methods, 3 seeds each: {count:2} pairs, {count / 10:.1f} separated by chance")

# %% [markdown]
# This is why `minipeft compare` has a second condition before it calls two rows significantly different:

# %%
say(rule.RULE)
source(rule.standard_error, rule._significant_pairs)

# %% [markdown]
# The first condition is about the seeds, the second about the rows. To see what the rule does, draw results from normal
# distributions and count. The unit is one standard error of the split.


# %%
def called_apart(k, difference, spread, draws=20_000):
    """How often the rule calls the first of two methods the better one; lengths in standard errors of the split."""
    one = difference + spread * rng.standard_normal((draws, k))
    other = spread * rng.standard_normal((draws, k))
    return np.mean((one.min(axis=1) > other.max(axis=1)) & (np.median(one, axis=1) - np.median(other, axis=1) > 1))


false = {}
for k in (3, 5):
    for spread in (0.25, 0.5, 1.0, 2.0):
        false[k, spread] = 2 * called_apart(k, 0.0, spread)
    line = ", ".join(f"{false[k, spread]:.3f} at {spread:g}" for spread in (0.25, 0.5, 1.0, 2.0))
    print(f"equal methods, {k} seeds, apart either way, by the seeds' spread: {line}")
assert false[3, 0.25] < 0.01 < false[3, 2.0] < 0.11 and all(false[5, s] <= false[3, s] for s in (0.5, 1.0, 2.0))

differences, found = np.linspace(0, 5, 21), {}
figure, axes = plt.subplots(figsize=(6, 3))
for k, spread, line in ((3, 0.5, "-"), (5, 0.5, "--"), (3, 1.0, "-"), (5, 1.0, "--")):
    found[k, spread] = [called_apart(k, difference, spread) for difference in differences]
    axes.plot(differences, found[k, spread], line, label=f"{k} seeds, spread {spread:g} se", color=f"C{int(spread)}")
axes.set(xlabel="true difference in standard errors", ylabel="called apart", title="How often the rule sees it")
axes.legend(fontsize=8)
figure.tight_layout()
picture(
    figure,
    "The probability that two methods are called apart, against their true difference in standard errors, for three "
    "and five seeds and two spreads. All curves rise from nearly zero to one; with the larger spread, and with five "
    "seeds in place of three, they rise later.",
)
print(f"a true difference of 1 standard error, 3 seeds, spread 0.5: seen in {found[3, 0.5][4]:.0%} of comparisons")
assert differences[4] == 1 and found[3, 0.5][4] < 0.5 and found[5, 1.0][8] <= found[3, 1.0][8]

# %% [markdown]
# Two results. Where the seeds scatter more than the rows, the second condition adds little, and the rate of false
# statements approaches 1 in 10 for three seeds. And the rule is strict: it misses small true differences most of the
# time, and where the seeds scatter as widely as the rows it sees less with five seeds than with three, since *every*
# seed must lie above. So "not significantly different" does not mean "equal".
#
# ## Selection biases a figure
#
# [The training loop](05_the_training_loop.ipynb) showed that the best of many epochs is too high even if nothing was
# learned. A grid of learning rates adds another selection on the same rows. Our example has 3 × 8 candidates per seed.
# Take 277 rows as the validation split, select the best candidate on them, and measure the same candidate on other
# rows:

# %%
candidates = right.reshape(len(seeds), -1, len(labels))  # (seeds, rates x epochs, rows)
gains = {"epoch on the validation": [], "epoch and rate on the validation": [], "epoch and rate on a holdout": []}
for _ in range(100):
    order = rng.permutation(len(labels))
    on, held, fresh = (candidates[:, :, part].mean(axis=2) for part in (order[:n], order[n : 2 * n], order[2 * n :]))
    middle_rate = slice(epochs, 2 * epochs)  # the candidates with the middle learning rate
    choices = (
        epochs + on[:, middle_rate].argmax(axis=1),
        on.argmax(axis=1),
        held.argmax(axis=1),
    )
    for name, best in zip(gains, choices, strict=True):
        gains[name].append(np.mean(on[range(len(seeds)), best] - fresh[range(len(seeds)), best]))
for name, values in gains.items():
    print(f"chosen: {name:34} validation above fresh rows by {np.mean(values):+.4f} on average")
assert candidates.shape[1] == 3 * 8
by_epoch, by_both, by_holdout = (np.mean(values) for values in gains.values())
assert by_both > by_epoch - 0.002 and by_both > abs(by_holdout) and by_epoch > 0

# %% [markdown]
# The first two figures are the bias from selecting on the validation split. In the third the selection used separate
# rows, and the remainder is chance. That is what `--holdout` does: `minipeft train --holdout 0.1` separates 10 percent
# of the *training* rows, selects the best epoch on them, and reports the validation split at that epoch. The cost is 10
# percent of the training data. It does not select a learning rate: `compare` keeps, of several, the one with the best
# median on the validation split, which is a biased figure. So
#
# - give every method a grid of the same size (more tries give more bias), and say how large;
# - read the last epoch next to the best one, or use `--holdout`;
# - never tune your own method and run the other one with its defaults.
#
# ## A comparison, executed
#
# `minipeft compare` takes the flags of `train`, several tasks, methods, ranks, learning rates and seeds, and makes
# every combination a run of its own; `--resume` continues where it was stopped. A very small one, on the synthetic
# data:

# %%
scratch = tempfile.TemporaryDirectory()  # removed when the script ends
folder = Path(scratch.name) / "comparison"
command = "compare --task sst2 --method lora bitfit --rank 2 --lr 3e-3 --seed 1 2 --epochs 1 --warmup-steps 2"
limits = "--batch-size 8 --grad-accum 1 --train-limit 64 --eval-limit 128 --max-length 64"
where = ["--model", "roberta-mini", "--data", "standin", "--device", "cpu", "--precision", "fp32"]
where += ["--jobs", "1", "--quiet"]
say(f"minipeft {command} {limits} …")
with contextlib.redirect_stdout(io.StringIO()):  # its last line names a temporary folder
    status = main([*command.split(), *limits.split(), *where, "--output", str(folder)])
small = json.loads((folder / "table.json").read_text(encoding="utf-8"))
say(format_text(small).replace(str(Path(minipeft.__file__).parents[1]), "…"))
assert status == 0 and [row["best"]["seeds"] for row in small["tasks"][0]["rows"]] == [2, 2]
assert describe_differences(small["tasks"][0], "best")[0].startswith("No statement about differences")

# %% [markdown]
# Each row has its median over the seeds with the worst and the best seed, by the best epoch and by the last. Then come
# the differences, and here the command makes no statement: with two seeds, 1 of 3 pairs of equal methods is in perfect
# order. The folder also has `page.html` with the pictures, `table.csv`, and each run as `train` leaves it.
#
# ## Reading a real one
#
# `walkthroughs/comparison/` is for a larger comparison, on real data: `page.html` to look at, and its figures in
# `table.json`, which the rest of this section reads. All sentences below are made from that file when this page runs.
# Read such a page in this order:
#
# 1. **What was compared?** The encoder, the data, the number of seeds, and the command.
# 2. **The standard error.** One standard error of the split, which the page draws as a band. A difference inside it
#    says nothing.
# 3. **The spread.** The range over the seeds of the two rows in question: do they overlap?
# 4. **The sentences**, by the last epoch as well as by the best. Where two rows differ only by the best epoch, the
#    selection of the epoch may be the reason.
# 5. **How many pairs were looked at?** Some differ by chance.

# %%
file = Path(minipeft.__file__).parents[1] / "walkthroughs" / "comparison" / "table.json"
table = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"tasks": []}
tasks = [task for task in table["tasks"] if any(row["best"] for row in task["rows"])]
if not tasks:
    print("There is no walkthroughs/comparison/table.json here yet, so there is nothing to read.")
else:
    say(re.sub(r"(?<=[ =])/\S*/", "…/", table["command"]))  # folders of the machine that it was made on
for task in tasks:
    done = [row for row in task["rows"] if row["best"]]
    error = rule.standard_error(task["metric"], max(row["last"]["median"] for row in done), task["validation_examples"])
    print(f"\n{task['task']}: {task['metric']} on {task['validation_examples']:,} rows, one standard error {error:.3f}")
    for row in done:
        best, last = row["best"], row["last"]
        print(f"  {row['name']:12} best {best['median']:.3f} ({best['min']:.3f} to {best['max']:.3f}), ", end="")
        print(f"last {last['median']:.3f} ({last['min']:.3f} to {last['max']:.3f}), {best['seeds']} seeds")
    for which in ("best", "last"):
        say(f"  By the {which} epoch: " + "\n    ".join(describe_differences(task, which)))

# %% [markdown]
# And what does the rank do? A picture first: each task's last epoch against LoRA's rank, the median over the seeds as a
# line and the range of the seeds as a band.

# %%
ranked = {task["task"]: [row for row in task["rows"] if row["best"] and row["method"] == "lora"] for task in tasks}
ranked = {name: rows for name, rows in ranked.items() if len(rows) > 1}
if not ranked:
    print("No task here has two ranks to draw.")
else:
    figure, panels = plt.subplots(len(ranked), 1, figsize=(5.5, 2.4 * len(ranked)), squeeze=False)
    for number, (axes, (name, of_rank)) in enumerate(zip(panels[:, 0], ranked.items(), strict=True)):
        ranks, spread = [row["rank"] for row in of_rank], [row["last"] for row in of_rank]
        axes.plot(ranks, [one["median"] for one in spread], "o-", color=f"C{number}")
        lows, highs = [one["min"] for one in spread], [one["max"] for one in spread]
        axes.fill_between(ranks, lows, highs, color=f"C{number}", alpha=0.2)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks, [str(rank) for rank in ranks])
        axes.minorticks_off()
        task = next(task for task in tasks if task["task"] == name)
        axes.set(xlabel="rank", ylabel=task["metric"], title=name)
    figure.tight_layout()
    picture(figure, "The last epoch's median against LoRA's rank, with the range of the seeds, a panel for each task.")

# %% [markdown]
# The next cell states what these figures show, for that encoder, that data and those settings only:


# %%
def about_rank(task, rows, which):
    """What a task's figures say about LoRA's rank, in sentences."""
    names, seeds = {row["name"]: row["rank"] for row in rows}, min(row[which]["seeds"] for row in rows)
    apart = [pair for pair in task["apart"][which] if {pair["above"], pair["below"]} <= names.keys()]
    said = " ".join(describe_differences({"rows": rows, "apart": {which: apart}}, which))
    said = f"{task['task']}, {which} epoch, ranks {join_names([str(rank) for rank in names.values()])}: {said}"
    if seeds < rule.MIN_SEEDS:
        return said
    medians = [row[which]["median"] for row in rows]
    error = max(rule.standard_error(task["metric"], value, task["validation_examples"]) for value in medians)
    by_chance = 2 * math.comb(len(rows), 2) / math.comb(2 * seeds, seeds)
    said += f" The medians span {(max(medians) - min(medians)) / error:.1f} standard errors. Of equal rows the seeds "
    said += f"alone would order {by_chance:.1f} pairs by chance. "
    if not apart:
        return said + "So these figures tell no rank from another, which does not say that the ranks are equal."
    upwards = sum(names[pair["above"]] > names[pair["below"]] for pair in apart)
    return said + f"Of the pairs that are apart, the higher rank is the better in {upwards} of {len(apart)}."


for name, rows_of_rank in ranked.items():
    task = next(task for task in tasks if task["task"] == name)
    rates_used = sorted({row["lr"] for row in rows_of_rank})
    for which in ("last", "best"):
        say(about_rank(task, rows_of_rank, which))
    print(f"  (learning rates of these rows: {join_names([f'{lr:g}' for lr in rates_used])})\n")
if not ranked:
    print("Without figures there is nothing to say.")

# %% [markdown]
# A table does not show what *else* changed. With `--alpha` left alone, the factor alpha / rank on LoRA's update ([page
# 3](03_lora.ipynb)) falls as the rank grows, so a study of ranks with one alpha and one learning rate is also a study
# of step sizes. The command above shows whether this was the case.
#
# ## The LoRA paper's MNLI start
#
# The last problem is a comparison of runs with different starting points. RTE, MRPC and STS-B are small. Hu et al.
# (2021, appendix D.1) therefore do not begin them at $B = 0$, but with the LoRA matrices of their best MNLI run, whose
# hundreds of thousands of sentence pairs are the same kind of task as RTE. They also report the median of five seeds,
# each at its best epoch. In a second setup, for a comparison with adapters, they begin from the pretrained model alone,
# and mark these rows with a dagger. Comparing the two kinds of figures says nothing about the methods: they differ in
# what the model has seen before.
#
# `--init-adapter RUN` is that start. This is all of it:

# %%
piece(initialize_from_adapter, "labels, own =", "_copy(wanted, found)")

# %% [markdown]
# $A$ and $B$ are taken over. The head is taken where the labels are the same, and new where they differ, as with MNLI's
# three labels and RTE's two. A tiny chain on the synthetic data: an SST-2 run of the comparison above is the start,
# once for SST-2 itself and once for RTE.

# %%
parent, heads = folder / "runs" / "sst2-lora-r2-lr0.003-seed1", {}
for labels_there in (["negative", "positive"], ["entailment", "not_entailment"]):
    torch.manual_seed(7)
    model = minipeft.apply(minipeft.load_pretrained("roberta-mini"), minipeft.LoRA(rank=2))
    model.config = model.config.with_labels(labels_there)
    new = model.head.dense.weight.detach().clone()
    start = read_initial_adapter(parent, model.config)
    print(initialize_from_adapter(model, start).replace(str(parent), "…"))
    query = model.encoder.layers[0].query
    theirs = next(t for name, t in start.state.items() if "layer.0.attention.self.query.lora_B" in name)
    assert torch.equal(query.lora_B, theirs) and theirs.abs().max() > 0
    heads[labels_there[0]] = torch.equal(model.head.dense.weight, new)
assert heads == {"negative": False, "entailment": True}

child = minipeft.train(
    task="rte",
    method="lora",
    init_adapter=str(parent),
    model="roberta-mini",
    data="standin",
    **{"train_limit": 64, "eval_limit": 64, "epochs": 1, "warmup_steps": 1, "seed": 1, "device": "cpu"},
    precision="fp32",
    output=str(folder.parent / "child"),
    quiet=True,
)
record = json.loads((folder.parent / "child" / "config.json").read_text(encoding="utf-8"))
began_with = Path(record["init_adapter"]).resolve().relative_to(parent.parent.resolve())
print(f"config.json of the run on {child.content['task']} says where it began: {began_with}")
assert began_with.parts[0] == parent.name

# %% [markdown]
# Such a short chain shows how it is done, not whether it helps. On real data:
#
# ```bash
# python train.py --task mnli --method lora --rank 8 --output runs/mnli
# minipeft compare --task rte mrpc stsb --method lora --rank 8 --seed 1 2 3 4 5 --output runs/plain
# minipeft compare --task rte mrpc stsb --method lora --rank 8 --seed 1 2 3 4 5 --output runs/start \
#   --init-adapter runs/mnli
# ```
#
# Two comparisons that differ in one flag are a fair comparison. The five seeds of the last command share one MNLI run.
# Their spread does not contain the seed of that run, so it is too small for a statement about the whole recipe.
#
# ## Summary
#
# - A figure has two kinds of chance in it, seeds and rows. Report a median with its range, and the split's error.
# - Equal methods with three seeds are in perfect order in 1 of 10 pairs. Count your pairs.
# - Rows that were used for a selection give a biased figure. Give the last epoch too, or hold rows out, and give all
#   methods equal grids.
# - "Not significantly different" is not "equal", and a table says nothing about other encoders, data or settings.

# %% [markdown]
# ## Exercises
#
# The notebook has three exercises here, each with a check and a collapsed solution. In a clone the same exercises are
# in `exercises/07_comparing_fairly.py`: write your answers there, then run
# `python walkthroughs/check.py 7`. It says what is right and gives hints. The solutions are in `solutions/`.
