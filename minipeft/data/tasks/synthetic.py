"""Synthetic data in the format of GLUE's RTE and SST-2, for a machine without a network; never a benchmark.

Both have the columns of nyu-mll/glue; RTE has its original sizes, and SST-2 a shorter training split. A score on them
shows that training works. It says nothing about a model's English and cannot be compared with any published number.

Examples are generated in matched groups, so that single words do not give the label away:

    RTE      two premises and two hypotheses; each premise entails its own hypothesis and not the other one.
             Every word occurs equally often under both labels.
    SST-2    pairs or quartets of minimal changes: a judging word, a negation, the order of two clauses.

All examples of a group are in one split, and no premise or sentence is in both splits. RTE_WEIGHTS
(synthetic_rte.py) and SST2_WEIGHTS (synthetic_sst2.py) say how often each kind of group is generated: only they set the
difficulty.
"""

import random
from collections.abc import Iterator
from typing import Any

from minipeft.data.tasks.synthetic_rte import RTE_WEIGHTS, Grammar, Group, Row, shuffled
from minipeft.errors import MinipeftError

TASKS = ("rte", "sst2")
SIZES = {"rte": {"train": 2490, "validation": 277}, "sst2": {"train": 6000, "validation": 872}}
TEXT_COLUMNS = {"rte": ("sentence1", "sentence2"), "sst2": ("sentence",)}
SEED = 20190220  # one seed for all: another would be another data set


def generate(task: str, split: str) -> dict[str, list[Any]]:
    """Return the columns of one split, the texts, "label" and "idx"; the same on every machine and Python version."""
    if task not in TASKS:
        raise MinipeftError(f"no synthetic data for task {task!r}; only for {' and '.join(TASKS)}")
    if split not in SIZES[task]:
        raise MinipeftError(f"the synthetic data for {task} have no split {split!r}; only {' and '.join(SIZES[task])}")
    texts, labels = zip(*_splits(task)[split], strict=True)
    columns = dict(zip(TEXT_COLUMNS[task], map(list, zip(*texts, strict=True)), strict=True))
    return columns | {"label": list(labels), "idx": list(range(len(labels)))}


def _splits(task: str) -> dict[str, list[Row]]:
    """Generate every split of a task; together, because no text may be in two of them."""
    rng = random.Random(SEED)
    grammar = RTE_WEIGHTS
    if task == "sst2":
        from minipeft.data.tasks.synthetic_sst2 import SST2_WEIGHTS

        grammar = SST2_WEIGHTS
    groups = _new_groups(rng, grammar)
    splits: dict[str, list[Row]] = {}
    for split, size in SIZES[task].items():
        rows: list[Row] = []
        while len(rows) < size:
            rows += next(groups)
        splits[split] = shuffled(rng, rows[:size])
    return splits


def _new_groups(rng: random.Random, grammar: Grammar) -> Iterator[Group]:
    """Yield groups that share no premise (or sentence), each phenomenon in proportion to its weight."""
    deck = [phenomenon for phenomenon, weight in grammar.items() for _ in range(weight)]
    taken: set[str] = set()
    while True:
        for phenomenon in shuffled(rng, deck):
            group = phenomenon(rng)
            # This ends, because each phenomenon has far more groups than are needed.
            while any(texts[0] in taken for texts, _ in group):
                group = phenomenon(rng)
            taken.update(texts[0] for texts, _ in group)
            yield group
