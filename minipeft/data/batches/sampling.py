"""Examples → batches: the order of an epoch, which examples a batch has, and the packed batch with their labels."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from minipeft.data.batches.packing import PackedBatch, pack
from minipeft.data.tokens.examples import Encoded
from minipeft.data.tokens.token_table import Array, PackingConfig
from minipeft.problems import problem_row


def epoch_order(count: int, seed: int, epoch: int) -> Sequence[int]:
    """Return a random order of `count` examples, a pure function of seed and epoch, so that a resumed run repeats it.

    The order is an array of 8 bytes per example; a list takes 40.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return array("q", torch.randperm(count, generator=generator).numpy().tobytes())


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


def pack_sequences(
    examples: Encoded, indices: list[int], config: PackingConfig, labels: Sequence[Any] | None = None
) -> PackedBatch:
    """Return the sequences at `indices`, packed, with the cached output of frozen layers if there is one."""
    batch = pack(examples.sequences.take(indices), labels, config=config)
    return batch if examples.layer_cache is None else replace(batch, **examples.layer_cache.take(indices))


def pack_examples(examples: Encoded, indices: list[int], config: PackingConfig) -> PackedBatch:
    """Return the sequences at `indices`, packed with labels and weights; the windows of an example share its weight."""
    windows, labels, problem = examples.windows, examples.split.labels, examples.split.task.problem
    if problem_row(problem.name).per_token:
        targets: Any = cast("Any", windows).token_labels(indices, examples.lengths, labels)
        return pack_sequences(examples, indices, config, targets)
    owners = indices if windows is None else windows.owners[indices].tolist()
    targets = problem.as_packed([labels[owner] for owner in owners])
    batch = pack_sequences(examples, indices, config, targets)
    if windows is None and examples.weights is None:
        return batch
    weights = np.ones(len(owners)) if examples.weights is None else examples.weights[owners]
    weights = weights if windows is None else weights / windows.counts[owners]
    return replace(batch, weights=torch.from_numpy(weights).float())
