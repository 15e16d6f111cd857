"""Equal texts: examples of one split that occur in another one, and examples of one text with different labels.

Texts are compared with their case and white space folded, by a hash of 8 bytes each, so that the texts themselves need
not be in memory. Left out: near duplicates.
"""

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np

from minipeft.data.tasks.splits import read_chunks
from minipeft.data.tasks.task import Split, Task
from minipeft.data.tasks.text_hashes import first_occurrences, text_hash
from minipeft.errors import MinipeftError, printable, short_repr
from minipeft.problems.metrics import Array


@dataclass
class Hashes:
    """The hashes of a split's texts and labels, 16 bytes for each example."""

    texts: Any = field(default_factory=lambda: array("q"))
    labels: Any = field(default_factory=lambda: array("q"))

    def read(self, chunks: Iterable[Split]) -> Iterator[Split]:
        """Yield a split chunk by chunk, and add the hashes of its examples."""
        for chunk in chunks:
            self.texts.extend(map(text_hash, chunk.texts, chunk.pairs or repeat(None)))
            self.labels.extend(map(hash, chunk.labels))
            yield chunk


def is_duplicate(splits: Mapping[str, Hashes]) -> Array:
    """Return which examples of the first split, training, have the text of an earlier one or of another split."""
    train, *others = (np.asarray(split.texts) for split in splits.values())
    return (first_occurrences(train) != np.arange(len(train))) | np.isin(train, np.concatenate(others))


def find_duplicates(splits: Mapping[str, Hashes]) -> Iterator[tuple[int, str, int, int]]:
    """Find the leaks between splits, "train" first, and the training examples with one text and different labels.

    Yields:
        For each other split with texts of the training split, their number, the split's name, and the indices of the
        first such example and of the training example with its text. For different labels the number of training
        examples whose text has several, "train", and two of them.
    """
    texts, labels = (np.asarray(values) for values in (splits["train"].texts, splits["train"].labels))
    for name, other in list(splits.items())[1:]:
        leaked = np.flatnonzero(np.isin(np.asarray(other.texts), texts))
        if len(leaked):
            yield len(leaked), name, int(leaked[0]), int(np.argmax(texts == other.texts[leaked[0]]))
    first = first_occurrences(texts)
    different = np.flatnonzero(labels != labels[first])
    if len(different):
        count = int(np.isin(first, first[different]).sum())
        yield count, "train", int(different[0]), int(first[different[0]])


def check_duplicates(task: Task, source: str, splits: dict[str, Hashes], drop: bool) -> tuple[Array, tuple[str, ...]]:
    """Return which training examples stay, (num_examples,), and what there is to say about duplicates, one line each.

    `splits` are those that the run reads, "train" first. With `drop` the duplicates that `is_duplicate` finds go.
    """
    if "test" in dict(task.files):
        splits = splits | {"test": Hashes()}
        with suppress(MinipeftError):  # a test file that cannot be read need not be
            deque(splits["test"].read(read_chunks(task, "test", source, labelled=False)), maxlen=0)
    if not drop:
        return np.ones(len(splits["train"].texts), dtype=bool), describe_duplicates(task, source, splits)
    kept = ~is_duplicate(splits)
    if not kept.any():
        raise MinipeftError("--drop-duplicates: the text of every training row occurs in another split. Leave it out.")
    dropped = f"{(~kept).sum():,} of {len(kept):,} training rows have the text of an earlier row or of another split"
    return kept, () if kept.all() else (f"{dropped} and are left out",)


def describe_duplicates(task: Task, source: str, splits: Mapping[str, Hashes]) -> tuple[str, ...]:
    """Return a line on what `find_duplicates` finds in each split, with the text and the row numbers of one example."""
    lines = []
    for count, name, index, other in find_duplicates(splits):
        split = {"validation": task.validation, **dict(task.also)}.get(name, name)
        row, train_row = _row_number(task, split, index), _row_number(task, "train", other)
        *_, chunk = read_chunks(task, split, source, index + 1, labelled=name != "test")
        what = (
            f"{name} rows have a text that occurs in training, such as row {row:,}, which is training row {train_row:,}"
        )
        remedy = "--drop-duplicates leaves it out of training."
        if name == "train":
            what = f"training rows have texts with different labels, such as rows {train_row:,} and {row:,}"
            remedy = "--drop-duplicates keeps the first row of each text."
        lines.append(printable(f"{count:,} {what}: {short_repr(chunk.texts[-1])}. {remedy}"))
    return tuple(lines)


def _row_number(task: Task, split: str, index: int) -> int:
    """Return the number in its file, from 1, of the row of an example; a drawn split has some of the file's rows."""
    if task.validation_rows is None or split not in ("train", task.validation):
        return index + 1
    return int(np.flatnonzero(task.validation_rows == (split == task.validation))[index]) + 1
