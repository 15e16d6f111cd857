"""Texts compared by hashes of 8 bytes, with their case and white space folded, so that they need not be in memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minipeft.problems.metrics import Array


def text_hash(text: Any, pair: Any = None) -> int:
    """Return a hash of a text (or a list of words) and its pair; equal texts have one hash within a process."""
    return hash((_fold(text), None if pair is None else _fold(pair)))


def _fold(text: Any) -> str:
    return " ".join((text if isinstance(text, str) else " ".join(map(str, text or ()))).casefold().split())


def first_occurrences(texts: Sequence[int] | Array) -> Array:
    """Return for each example the index of the first one with its text, (num_examples,)."""
    _, first, groups = np.unique(np.asarray(texts), return_index=True, return_inverse=True)
    return first[groups]
