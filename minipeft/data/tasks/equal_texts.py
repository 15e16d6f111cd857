"""Hashes of texts, with their case and white space folded: which texts are equal, without the texts in memory."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from minipeft.data.tables.table import Table
from minipeft.problems.metrics import Array


def text_hash(text: Any, pair: Any = None) -> int:
    """Return a hash of a text (or a list of words) and its pair; equal texts have one hash within a process."""
    return hash((_fold(text), None if pair is None else _fold(pair)))


def _fold(text: Any) -> str:
    return " ".join((text if isinstance(text, str) else " ".join(map(str, text or ()))).casefold().split())


def hash_texts(table: Table, columns: Sequence[str], label_column: str, hashes: "array[int]") -> Table:
    """Return the same table; whenever the label of a row is read, the hash of its text is appended to `hashes`."""

    def read(names: Sequence[str]) -> Iterator[tuple[str, Sequence[Any]]]:
        if tuple(names) != (label_column,):
            yield from table.read(names)
            return
        for place, (label, *texts) in table.read([label_column, *columns]):
            if label is not None or label_column not in table.classes:  # the others are no examples
                hashes.append(text_hash(*texts))
            yield place, [label]

    return replace(table, read=read)


def first_occurrences(texts: Sequence[int] | Array) -> Array:
    """Return for each example the index of the first one with its text, (num_examples,)."""
    _, first, groups = np.unique(np.asarray(texts), return_index=True, return_inverse=True)
    return first[groups]


def keep_together(mask: Array, texts: Sequence[int] | Array) -> Array:
    """Return a mask in which examples of one text are as the first of them; several texts are not all on one side."""
    first = first_occurrences(texts)
    if mask.all() or not mask.any() or not first.any():  # one text alone has to be on both sides
        return mask
    together = mask[first]
    if together.any() and not together.all():
        return together
    # All texts are on one side: the text of the first example of the other side changes it.
    chosen = first == first[int(np.argmax(mask != together))]
    return chosen ^ together
