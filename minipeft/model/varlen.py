"""Attention over packed sequences without any rearranging: the variable-length kernels that torch has on CUDA.

Everything here is planned on the device from cu_seqlens, so that no step waits for it and a captured CUDA graph holds
for other sequences too: from the host come sizes alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nested import nested_tensor_from_jagged

from minipeft.data.batches.packing import PackedBatch


@dataclass(frozen=True)
class Varlen:
    """Where the sequences of a batch begin and end, for queries and for keys.

    Attributes:
        tokens, keys: (num_sequences + 1,), int32; the keys' with the virtual tokens before each sequence's own.
        firsts: (num_sequences + 1,), int32, of one query a sequence.
        longest, longest_keys: Bounds on the lengths, known on the host.
        key_rows: (total keys,); for each key its row in [the prefix once a sequence; the tokens].
        window: Largest distance that a token sees; None without a limit.
    """

    tokens: Tensor
    firsts: Tensor
    keys: Tensor
    longest: int
    longest_keys: int
    key_rows: Tensor | None = None
    window: int | None = None


def varlen_supports(head_size: int) -> bool:
    """Whether the kernels know heads of that size; torch would go on without them, and wait for the device."""
    return head_size % 8 == 0 and head_size <= 256


def plan_varlen(batch: PackedBatch, num_virtual_tokens: int = 0, window: int | None = None) -> Varlen:
    """Plan a batch once for all of its layers."""
    firsts = torch.arange(len(batch) + 1, dtype=torch.int32, device=batch.cu_seqlens.device)
    if num_virtual_tokens == 0:
        return Varlen(batch.cu_seqlens, firsts, batch.cu_seqlens, batch.max_seqlen, batch.max_seqlen, window=window)
    keys = batch.cu_seqlens + num_virtual_tokens * firsts
    longest_keys = batch.max_seqlen + num_virtual_tokens
    rows = prefix_rows(batch, num_virtual_tokens)
    return Varlen(batch.cu_seqlens, firsts, keys, batch.max_seqlen, longest_keys, rows)


def prefix_rows(batch: PackedBatch, number: int) -> Tensor:
    """Rows of [`number` rows for every sequence; the tokens] such that each sequence's stand before its tokens.

    Returns (total_tokens + num_sequences · number,) int64, each row once.
    """
    count, device = len(batch), batch.cu_seqlens.device
    starts = batch.cu_seqlens + number * torch.arange(count + 1, dtype=torch.int32, device=device)
    places = torch.arange(batch.total_tokens + count * number, device=device)
    sequences = torch.searchsorted(starts, places.int(), right=True) - 1
    offsets = places - starts.index_select(0, sequences)  # of each place in its sequence
    own = count * number + places - number * (sequences + 1)
    return torch.where(offsets < number, number * sequences + offsets, own)


def prepend_to_each(first: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    """The rows of `first` (number, …) before each sequence's in x (total_tokens, …), by `prefix_rows`.

    The copies of `first` do not overlap, so that its gradient is one sum over the sequences, in a fixed order.
    """
    count = (len(rows) - len(x)) // len(first)
    return torch.cat([first.expand(count, *first.shape).flatten(0, 1), x]).index_select(0, rows)


def attend_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Varlen,
    num_heads: int,
    dropout: float = 0.0,
    first_only: bool = False,
    prefix: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The same as `attend_plain`: on CUDA by flash attention, or in 32 bits a memory-efficient kernel; else plainly."""
    if prefix is not None:
        assert plan.key_rows is not None
        key, value = (
            prepend_to_each(before.to(x.dtype), x, plan.key_rows)
            for before, x in zip(prefix, (key, value), strict=True)
        )
    if plan.window is not None:
        return _attend_window(query, key, value, plan, num_heads, first_only)
    starts, longest = (plan.firsts, 1) if first_only else (plan.tokens, plan.longest)
    q = _nested(query, starts, longest, num_heads)
    k, v = (_nested(x, plan.keys, plan.longest_keys, num_heads) for x in (key, value))
    output = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # (num_sequences, heads, ragged, head_size)
    return output.transpose(1, 2).values().flatten(1)


def _attend_window(query: Tensor, key: Tensor, value: Tensor, plan: Varlen, num_heads: int, first_only: bool) -> Tensor:
    """Attention within a window through the kernel that torch has from 2.10 on: bfloat16, without dropout."""
    from torch.nn.attention.varlen import varlen_attn

    firsts = plan.tokens[:-1]
    if first_only:  # the kernel counts distances from the last key, so that it needs as many queries as keys
        query = torch.zeros_like(key).index_copy(0, firsts.long(), query)
    q, k, v = (x.contiguous().unflatten(-1, (num_heads, -1)) for x in (query, key, value))  # (tokens, heads, head_size)
    bounds = plan.tokens, plan.tokens, plan.longest, plan.longest
    assert plan.window is not None
    output = varlen_attn(q, k, v, *bounds, window_size=(plan.window, plan.window))
    assert isinstance(output, Tensor)  # it is a pair where its auxiliary result is asked for
    output = output.flatten(1)
    return output.index_select(0, firsts) if first_only else output


def _nested(x: Tensor, starts: Tensor, longest: int, num_heads: int) -> Tensor:
    """(tokens, hidden_size) → (num_sequences, heads, ragged, head_size), a view."""
    # With the bounds given, nobody asks the device for them; the lower one only says that no sequence is empty.
    heads = x.contiguous().unflatten(-1, (num_heads, -1))  # (tokens, heads, head_size)
    return nested_tensor_from_jagged(heads, starts, min_seqlen=1, max_seqlen=longest).transpose(1, 2)
