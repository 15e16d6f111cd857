"""Synthetic data in the format of GLUE's RTE and SST-2, for a machine without a network; never a benchmark.

Both have the columns of nyu-mll/glue; RTE has its original sizes, and SST-2 a shorter training split. A score on them
shows that training works. It says nothing about a model's English and cannot be compared with any published number.

Examples are generated in matched groups, so that single words do not give the label away:

    RTE      two premises and two hypotheses; each premise entails its own hypothesis and not the other one.
             Every word occurs equally often under both labels.
    SST-2    pairs or quartets of minimal changes: a judging word, a negation, the order of two clauses.

All examples of a group are in one split, and no premise or sentence is in both splits. RTE_WEIGHTS here,
and SST2_WEIGHTS in synthetic_sst2.py, say how often each kind of group is generated: only they set the difficulty.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from minipeft.errors import MinipeftError

T = TypeVar("T")
Row = tuple[tuple[str, ...], int]  # (the texts in the order of the task's columns, label)
Group = list[Row]  # matched examples; the labels alternate, so that a group cut in the middle stays balanced
Grammar = dict[Callable[[random.Random], Group], int]

TASKS = ("rte", "sst2")
SIZES = {"rte": {"train": 2490, "validation": 277}, "sst2": {"train": 6000, "validation": 872}}
TEXT_COLUMNS = {"rte": ("sentence1", "sentence2"), "sst2": ("sentence",)}
SEED = 20190220  # one seed for all: another would be another data set

ENTAILMENT, NOT_ENTAILMENT = 0, 1


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


# Only Random.random() gives the same sequence in every Python version; choice() and shuffle() do not.


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """Return one of the items."""
    return items[int(rng.random() * len(items))]


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    """Return the items in random order."""
    remaining = list(items)
    return [remaining.pop(int(rng.random() * len(remaining))) for _ in items]


PEOPLE = ("Tom", "Mary", "John", "David", "Sarah", "Peter", "Helen", "George", "Jane", "Paul", "Alice")
PLACES = ("garden", "kitchen", "park", "church", "school", "street", "station", "library", "village")
STATES = ("tired", "happy", "angry", "sad", "ill", "afraid", "late", "alone", "cold", "ready")
SAID_AND_DENIED = (("always", "never"), ("still", "no longer"), ("really", "not"))
GROUPS = ("dogs", "horses", "birds", "boys", "girls", "men", "women", "children", "soldiers", "students")


def _quartet(premises: Sequence[str], hypotheses: Sequence[str]) -> Group:
    """Cross two premises with two hypotheses; the first entails the first, the second the second."""
    (one, two), (of_one, of_two) = premises, hypotheses
    return [
        ((one, of_one), ENTAILMENT),
        ((one, of_two), NOT_ENTAILMENT),
        ((two, of_two), ENTAILMENT),
        ((two, of_one), NOT_ENTAILMENT),
    ]


def negation(rng: random.Random) -> Group:
    """Jane was never tired in the park. => Jane was not tired. Not: Jane was tired."""
    person, state, place = pick(rng, PEOPLE), pick(rng, STATES), pick(rng, PLACES)
    premises = tuple(f"{person} was {form} {state} in the {place}." for form in pick(rng, SAID_AND_DENIED))
    return _quartet(premises, (f"{person} was {state}.", f"{person} was not {state}."))


def quantifiers(rng: random.Random) -> Group:
    """All the dogs in the park were tired. => Some dogs were tired. Not: Some dogs were not tired."""
    group, state, place = pick(rng, GROUPS), pick(rng, STATES), pick(rng, PLACES)
    rest = f"the {group} in the {place} were {state}."
    hypotheses = (f"Some {group} were {state}.", f"Some {group} were not {state}.")
    return _quartet((f"All {rest}", f"None of {rest}"), hypotheses)


# Groups in 100. Both kinds are about the polarity of two words, which a small model learns in a few epochs.
RTE_WEIGHTS: Grammar = {negation: 50, quantifiers: 50}
