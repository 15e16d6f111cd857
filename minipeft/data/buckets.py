"""Batches of few different shapes, for what is made once a shape and used again: CUDA graphs, and oneDNN's kernels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from minipeft.data.batching import PackedBatch, PackingConfig

NO_CLASS = -100  # F.cross_entropy's ignore_index; of numbers it is NaN
LONGEST = (32, 64, 128, 256, 512)


class FillingConfig(PackingConfig, Protocol):
    """What filling must know of a model; EncoderConfig has it."""

    @property
    def pad_token_id(self) -> int: ...


@dataclass(frozen=True)
class Sizes:
    """The sizes that batches may have: the least number of tokens, and of sequences, that is not below a given one."""

    tokens: Callable[[int], int]
    sequences: Callable[[int], int]


def multiple(number: int, of: int) -> int:
    """The least multiple of `of` that is not below `number`."""
    return -(-number // of) * of


def _rung(tokens: int) -> int:
    """A multiple of 256, or of an eighth of the power of two below: at most an eighth more, from 2048 on."""
    return multiple(tokens, max(256, 1 << max(0, tokens.bit_length() - 4)))


# Few, for CUDA graphs: each takes a second to record. More, for oneDNN's kernels: each takes a millisecond to compile,
# and half a megabyte for good.
FEW = Sizes(_rung, lambda count: 1 << (count - 1).bit_length())
MORE = Sizes(lambda tokens: multiple(tokens, 64), lambda count: multiple(count, 8))


def fill(batch: PackedBatch, config: FillingConfig, longest: int | None = None, sizes: Sizes = MORE) -> PackedBatch:
    """The batch with dummy sequences behind its own, so that its sizes are of a small set.

    longest   the most tokens that a sequence may have [as the longest of the batch]
    sizes     FEW or MORE

    max_seqlen becomes one of LONGEST or `longest`. A dummy is of pad tokens, one at least, and its label (NO_CLASS, or
    NaN) is one that `sequence_loss` leaves out.
    """
    longest = longest or batch.max_seqlen
    max_seqlen = min(
        [bound for bound in (*LONGEST, longest) if batch.max_seqlen <= bound <= longest], default=batch.max_seqlen
    )
    extra = _dummies(batch, max_seqlen, sizes)
    added, offset = torch.tensor(extra, dtype=torch.int64), config.position_offset
    types, labels = batch.token_type_ids, batch.labels
    if types is None and config.type_vocab_size > 1:  # with them and without would be two shapes
        types = torch.zeros_like(batch.input_ids)
    if labels is not None:
        unknown = math.nan if labels.is_floating_point() else NO_CLASS
        labels = torch.cat([labels, labels.new_full((len(extra),), unknown)])
    positions = [torch.arange(length) + offset for length in extra]
    return dataclasses.replace(
        batch,
        input_ids=torch.cat([batch.input_ids, batch.input_ids.new_full((sum(extra),), config.pad_token_id)]),
        position_ids=torch.cat([batch.position_ids, *positions]),
        token_type_ids=None if types is None else torch.cat([types, types.new_zeros(sum(extra))]),
        cu_seqlens=torch.cat([batch.cu_seqlens, (batch.total_tokens + added.cumsum(0)).int()]),
        max_seqlen=max_seqlen,
        lengths=batch.lengths + extra,
        labels=labels,
    )


def _dummies(batch: PackedBatch, longest: int, sizes: Sizes) -> tuple[int, ...]:
    """The lengths of the dummies that lead to the nearest sizes, nearly equal."""
    sequences = sizes.sequences(len(batch))
    while True:
        count = sequences - len(batch)
        tokens = sizes.tokens(batch.total_tokens + count) - batch.total_tokens
        if count <= tokens <= count * longest:
            return tuple(tokens // count + (place < tokens % count) for place in range(count))
        sequences = sizes.sequences(sequences + 1)
