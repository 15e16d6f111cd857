"""Random orders and random parts of examples: epochs, validation splits, held-out examples."""

from array import array
from collections.abc import Sequence

import numpy as np
import torch

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
