"""The groups of the synthetic data for RTE, and what the groups of both tasks have in common."""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
Row = tuple[tuple[str, ...], int]  # (the texts in the order of the task's columns, label)
Group = list[Row]  # matched examples; the labels alternate, so that a group cut in the middle stays balanced
Grammar = dict[Callable[[random.Random], Group], int]

ENTAILMENT, NOT_ENTAILMENT = 0, 1


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
