"""Which examples a batch has: random orders, held-out parts, batches of near-equal length."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch


def epoch_order(count: int, seed: int, epoch: int) -> Sequence[int]:
    """Return a random order of `count` examples, a pure function of seed and epoch, so that a resumed run repeats it.

    The order is an array of 8 bytes per example; a list takes 40.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return array("q", torch.randperm(count, generator=generator).numpy().tobytes())


def draw_mask(labels: Sequence[Any], fraction: float, seed: int, stratified: bool) -> bytearray:
    """Return a mask of the examples, 1 for a random `fraction` of them, or of each class."""
    if stratified:
        return stratified_mask([int(label) for label in labels], fraction, seed)
    return random_mask(len(labels), fraction, seed)


def random_mask(count: int, fraction: float, seed: int) -> bytearray:
    """Return a mask of `count` examples, 1 for a random `fraction` of them; a pure function of the seed."""
    mask = bytearray(count)
    for index in epoch_order(count, seed, -1)[: round(count * fraction)]:  # -1: not the order of an epoch
        mask[index] = 1
    return mask


def stratified_mask(labels: Sequence[int], fraction: float, seed: int) -> bytearray:
    """Return a mask of the examples, 1 for a random `fraction` of each class; a pure function of labels and seed.

    A class of two or more examples has both selected and other examples; a class of one has none selected. Within
    these limits, the classes with the largest remainders are rounded up (as `train_test_split(stratify=...)` of
    scikit-learn does), so that `fraction` of all examples is selected.
    """
    counts = Counter(labels)
    quotas = {label: min(max(int(count * fraction), 1), count - 1) for label, count in sorted(counts.items())}
    missing = round(len(labels) * fraction) - sum(quotas.values())
    for label in sorted(quotas, key=lambda label: counts[label] * fraction - quotas[label], reverse=True):
        if missing > 0 and quotas[label] < counts[label] - 1 and counts[label] * fraction > quotas[label]:
            quotas[label] += 1
            missing -= 1
    mask = bytearray(len(labels))
    for index in epoch_order(len(labels), seed, -1):
        if quotas[labels[index]] > 0:
            quotas[labels[index]] -= 1
            mask[index] = 1
    return mask


def split_by_tokens(indices: Sequence[int], lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield batches of at most `max_tokens` tokens; a longer example is a batch of its own.

    Examples are sorted by length, so that a batch has near-equal lengths. Each index occurs exactly once.
    """
    batch: list[int] = []
    tokens = 0
    for index in sorted(indices, key=lambda index: (lengths[index], index)):
        if batch and tokens + lengths[index] > max_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch
