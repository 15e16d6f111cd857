"""Random orders and random parts of examples: epochs, validation splits, held-out examples.

Examples with equal texts, or of one group, are in one part. Texts are compared by hashes, with their case and white
space folded, so that they need not be in memory.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from minipeft.data.tables.table import Table
from minipeft.errors import MinipeftError
from minipeft.problems.metrics import Array

# The validation split of custom data without a validation file, as a fraction of the training file. Its seed does not
# depend on --seed, so that the metrics of several seeds can be compared.
VALIDATION_FRACTION, VALIDATION_SEED = 0.1, 0


def epoch_order(count: int, seed: int, epoch: int) -> Sequence[int]:
    """Return a random order of `count` examples, a pure function of seed and epoch, so that a resumed run repeats it.

    The order is an array of 8 bytes per example; a list takes 40.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return array("q", torch.randperm(count, generator=generator).numpy().tobytes())


def draw_mask(count: int, strata: Sequence[int] | Array | None, fraction: float, seed: int) -> Array:
    """Return a mask of `count` examples, true for a random `fraction` of each class in `strata`, or of all.

    A pure function of its arguments.
    """
    labels = np.zeros(count, dtype=np.int64) if strata is None else np.asarray(strata, dtype=np.int64)
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.asarray(epoch_order(count, seed, -1))  # -1: not the order of an epoch
    by_class = order[np.argsort(classes[order], kind="stable")]  # each class's examples, still in random order
    place_in_class = np.arange(count) - np.repeat(np.cumsum(counts) - counts, counts)
    mask = np.zeros(count, dtype=bool)
    mask[by_class[place_in_class < np.repeat(stratified_quotas(counts, fraction), counts)]] = True
    return mask


def draw_together(
    together: Sequence[int] | Array, strata: Sequence[int] | Array | None, fraction: float, seed: int
) -> Array:
    """Return the mask of `draw_mask`, in which examples with one number in `together` are as the first of them.

    Which numbers they are has no effect: hashes of texts differ between processes.
    """
    first, groups = np.unique(first_occurrences(together), return_inverse=True)
    if len(first) == 1:  # one text alone has to be on both sides
        return draw_mask(len(groups), strata, fraction, seed)
    mask = draw_mask(len(first), None if strata is None else np.asarray(strata)[first], fraction, seed)
    if not mask.any() and len(first) < len(groups):  # every class has one text, in several examples
        mask = draw_mask(len(first), None, fraction, seed)
    return mask[groups]


def stratified_quotas(counts: Sequence[int] | Array, fraction: float) -> Array:
    """Return how many examples of each class `draw_mask` selects.

    A class of two or more examples has both selected and other examples; a class of one has none selected. Within
    these limits, the classes with the largest remainders are rounded up (as `train_test_split(stratify=...)` of
    scikit-learn does), so that `fraction` of all examples is selected.
    """
    counts = np.asarray(counts)
    exact = counts * fraction
    quotas = np.minimum(np.maximum(exact.astype(np.int64), 1), counts - 1)
    missing = round(counts.sum() * fraction) - quotas.sum()
    by_remainder = np.argsort(quotas - exact, kind="stable")  # the largest remainder first
    may_grow = (quotas < counts - 1) & (exact > quotas)
    quotas[by_remainder[may_grow[by_remainder]][: max(0, missing)]] += 1
    return quotas


def text_hash(text: Any, pair: Any = None) -> int:
    """Return a hash of a text (or a list of words) and its pair; equal texts have one hash within a process."""
    return hash((_fold(text), None if pair is None else _fold(pair)))


def _fold(text: Any) -> str:
    return " ".join((text if isinstance(text, str) else " ".join(map(str, text or ()))).casefold().split())


def hash_texts(
    table: Table, columns: Sequence[str], label_column: str, hashes: "array[int]", group_column: str | None = None
) -> Table:
    """Return the same table; whenever the label of a row is read, the hash of its text is appended to `hashes`.

    With `group_column` the hash of the row's group follows.
    """
    groups = [] if group_column is None else [group_column]

    def read(names: Sequence[str]) -> Iterator[tuple[str, Sequence[Any]]]:
        if tuple(names) != (label_column,):
            yield from table.read(names)
            return
        for place, (label, *values) in table.read([label_column, *columns, *groups]):
            if label is not None or label_column not in table.classes:  # the others are no examples
                hashes.append(text_hash(*values[: len(columns)]))
                for group in values[len(columns) :]:
                    if group is None or group == "":
                        raise MinipeftError(f"{place}: {group_column} is missing. Fill it, or remove the row.")
                    hashes.append(hash(str(group)))
            yield place, [label]

    return replace(table, read=read)


def first_occurrences(texts: Sequence[int] | Array) -> Array:
    """Return for each example the index of the first one with its text, (num_examples,)."""
    _, first, groups = np.unique(np.asarray(texts), return_index=True, return_inverse=True)
    return first[groups]
