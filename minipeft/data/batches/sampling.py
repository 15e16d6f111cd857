"""Which examples a batch has: batches of near-equal length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def split_by_tokens(indices: Sequence[int], lengths: Sequence[int] | Array, max_tokens: int) -> Iterator[list[int]]:
    """Yield batches of at most `max_tokens` tokens; a longer example is a batch of its own.

    Examples are sorted by length, so that a batch has near-equal lengths. Each index occurs exactly once.
    """
    batch: list[int] = []
    tokens = 0
    chosen = np.asarray(indices, dtype=np.int64)
    for length, index in sorted(zip(np.asarray(lengths)[chosen].tolist(), chosen.tolist(), strict=True)):
        if batch and tokens + length > max_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += length
    if batch:
        yield batch
