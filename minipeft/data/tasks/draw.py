"""Random parts of examples: validation splits and held-out examples.

Examples with equal texts, or of one group, are in one part. Texts are compared by hashes, so that they need not be in
memory.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from minipeft.data.tables.table import Table
from minipeft.data.tasks.text_hashes import first_occurrences, text_hash
from minipeft.errors import MinipeftError
from minipeft.problems.metrics import Array

# The validation split of custom data without a validation file, as a fraction of the training file. Its seed does not
# depend on --seed, so that the metrics of several seeds can be compared.
VALIDATION_FRACTION, VALIDATION_SEED = 0.1, 0


def random_order(count: int, seed: int) -> Array:
    """Return a random order of `count` examples, which is not that of an epoch (data/batches/sampling.py)."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 - 1)).numpy()


def draw_mask(count: int, strata: Sequence[int] | Array | None, fraction: float, seed: int) -> Array:
    """Return a mask of `count` examples, true for a random `fraction` of each class in `strata`, or of all.

    A pure function of its arguments.
    """
    labels = np.zeros(count, dtype=np.int64) if strata is None else np.asarray(strata, dtype=np.int64)
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = random_order(count, seed)
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
