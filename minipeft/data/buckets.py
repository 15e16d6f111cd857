"""Batches of few different shapes, for what is made once a shape and used again, as CUDA graphs are."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import torch

from minipeft.data.batching import PackedBatch, PackingConfig

NO_CLASS = -100  # F.cross_entropy's ignore_index; of numbers it is NaN
FEWEST_TOKENS = 256  # tokens come in multiples of it; of an eighth of the power of two below them, where that is more
LONGEST = (32, 64, 128, 256, 512)


class FillingConfig(PackingConfig, Protocol):
    """What filling must know of a model; EncoderConfig has it."""

    @property
    def pad_token_id(self) -> int: ...


def fill(batch: PackedBatch, config: FillingConfig, longest: int) -> PackedBatch:
    """The batch with dummy sequences behind its own, so that its sizes are of a small set.

    longest   the most tokens that a sequence may have

    total_tokens becomes a rung of a ladder, num_sequences a power of two, max_seqlen one of LONGEST or `longest`. A
    dummy is of pad tokens, one at least, and its label (NO_CLASS, or NaN) is one that `sequence_loss` leaves out.
    """
    max_seqlen = min(
        [bound for bound in (*LONGEST, longest) if batch.max_seqlen <= bound <= longest], default=batch.max_seqlen
    )
    extra = _dummies(batch, max_seqlen)
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


def _dummies(batch: PackedBatch, longest: int) -> tuple[int, ...]:
    """The lengths of the dummies that lead to the nearest sizes, nearly equal."""
    sequences = 1
    while True:
        count = sequences - len(batch)
        if count >= 0:
            tokens = _rung(batch.total_tokens + count) - batch.total_tokens
            if count <= tokens <= count * longest:
                return tuple(tokens // count + (place < tokens % count) for place in range(count))
        sequences *= 2


def _rung(tokens: int) -> int:
    """The next size of a batch: at most an eighth more, from 8 · FEWEST_TOKENS on."""
    step = max(FEWEST_TOKENS, 1 << max(0, tokens.bit_length() - 4))
    return -(-tokens // step) * step
