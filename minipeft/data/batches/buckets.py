"""Padding of packed batches to a few shapes, because CUDA graphs and oneDNN kernels are built once per shape."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from minipeft.data.batches.packing import PackedBatch
from minipeft.data.tokens.token_table import PackingConfig
from minipeft.problems import problem_class

MAX_SEQLENS = (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class BucketSizes:
    """Allowed batch sizes: each function rounds a number of tokens, or of sequences, up to an allowed one."""

    tokens: Callable[[int], int]
    sequences: Callable[[int], int]


def round_up(number: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is not below `number`."""
    return -(-number // multiple) * multiple


def _coarse_tokens(tokens: int) -> int:
    """Round up to a multiple of 256, or of 1/8 of the power of two below: at most 1/8 more from 2048 on."""
    return round_up(tokens, max(256, 1 << max(0, tokens.bit_length() - 4)))


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


# COARSE is for CUDA graphs, which take a second to record. FINE is for oneDNN kernels, which take a millisecond to
# compile and keep half a megabyte; a single short text is not padded to several times its length.
COARSE = BucketSizes(_coarse_tokens, _power_of_two)
FINE = BucketSizes(
    lambda tokens: round_up(tokens, 64 if tokens > 64 else 8),
    lambda count: round_up(count, 8) if count > 8 else _power_of_two(count),
)


def pad_to_bucket(
    batch: PackedBatch, config: PackingConfig, longest: int | None = None, sizes: BucketSizes = FINE
) -> PackedBatch:
    """Append dummy sequences to a batch, so that its sizes come from a small set.

    A dummy sequence has at least one pad token; its label is one that has no loss. The batch's max_seqlen becomes one
    of MAX_SEQLENS, or `longest`, which is its present one by default. A batch for the head alone needs no padding.
    """
    if batch.features is not None:
        return batch
    longest = longest or batch.max_seqlen
    max_seqlen = min(
        [bound for bound in (*MAX_SEQLENS, longest) if batch.max_seqlen <= bound <= longest], default=batch.max_seqlen
    )
    extra = _dummies(batch, max_seqlen, sizes)
    added, offset = torch.tensor(extra, dtype=torch.int64), config.position_offset
    types, labels, hidden = batch.token_type_ids, batch.labels, batch.hidden_states
    if types is None and config.type_vocab_size > 1:  # a batch with token types and one without would be two shapes
        types = torch.zeros_like(batch.input_ids)
    if labels is not None:
        labels = problem_class(config.problem_type, config.num_labels).pad(labels, extra)
    weights = None if batch.weights is None else torch.cat([batch.weights, batch.weights.new_ones(len(extra))])
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
        weights=weights,
        hidden_states=None if hidden is None else torch.cat([hidden, hidden.new_zeros(sum(extra), hidden.shape[1])]),
    )


def _dummies(batch: PackedBatch, longest: int, sizes: BucketSizes) -> tuple[int, ...]:
    """Lengths of the dummy sequences, nearly equal, that reach the nearest allowed sizes."""
    sequences = sizes.sequences(len(batch))
    while True:
        count = sequences - len(batch)
        tokens = sizes.tokens(batch.total_tokens + count) - batch.total_tokens
        if count <= tokens <= count * longest:
            return tuple(tokens // count + (place < tokens % count) for place in range(count))
        sequences = sizes.sequences(sequences + 1)
