"""Attention over packed sequences through the variable-length operators that torch has on CUDA.

    bfloat16   aten::_flash_attention_forward (Dao 2023), with dropout and windows
    float32    aten::_efficient_attention_forward (Rabe and Staats 2021), with dropout and without windows

The operators are called directly, because the public ways to them are slower or do less: with nested tensors a call
takes 9 to 12 ms of Python, and torch.nn.attention.varlen has no dropout and is absent before torch 2.10. No release
promises the operators either, so `varlen_agrees` (varlen_trial.py) tries them before they are used.

The plan is computed on the device from cu_seqlens. Only sizes come from the host, so no step waits for the device, and
a captured CUDA graph holds for other batches of the same sizes.

Shapes: tokens = total_tokens of the batch; heads × head_size = hidden_size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minipeft.data.batches.packing import PackedBatch


@dataclass(frozen=True)
class Varlen:
    """Where the sequences of a batch start, for queries and for keys.

    Attributes:
        cu_seqlens_q: (num_sequences + 1,), int32, of the tokens.
        cu_seqlens_k: (num_sequences + 1,), int32, of the keys: the virtual tokens and the tokens of each sequence.
        cu_seqlens_first: (num_sequences + 1,), int32, where each sequence has one query: 0, 1, 2, …
        max_seqlen_q: Bound on the tokens of a sequence.
        max_seqlen_k: Bound on the keys of a sequence.
        key_rows: (total keys,), the rows of `prepend_to_each`; None without virtual tokens.
        window: Largest distance that a token sees; None without a limit. Not with virtual tokens.
    """

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    cu_seqlens_first: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    key_rows: Tensor | None = None
    window: int | None = None


def varlen_supports(dtype: torch.dtype, head_size: int, window: int | None) -> bool:
    """Whether the operators have a kernel for heads of that size in that dtype, and for a window if there is one."""
    return head_size % 8 == 0 and head_size <= 256 and (window is None or dtype == torch.bfloat16)


def plan_varlen(batch: PackedBatch, num_virtual_tokens: int = 0, window: int | None = None) -> Varlen:
    """Plan a batch once for all of its layers."""
    cu_seqlens, max_seqlen = batch.cu_seqlens, batch.max_seqlen
    first = torch.arange(len(batch) + 1, dtype=torch.int32, device=cu_seqlens.device)
    if num_virtual_tokens == 0:
        return Varlen(cu_seqlens, cu_seqlens, first, max_seqlen, max_seqlen, window=window)
    cu_seqlens_k = cu_seqlens + num_virtual_tokens * first
    rows = prefix_rows(batch, num_virtual_tokens)
    return Varlen(cu_seqlens, cu_seqlens_k, first, max_seqlen, max_seqlen + num_virtual_tokens, rows)


def prefix_rows(batch: PackedBatch, number: int) -> Tensor:
    """Return the rows of [`number` rows for each sequence; the tokens] that put those rows before each sequence.

    Returns:
        (total_tokens + num_sequences · number,), int64; each row occurs once.
    """
    count, device = len(batch), batch.cu_seqlens.device
    cu_seqlens = batch.cu_seqlens + number * torch.arange(count + 1, dtype=torch.int32, device=device)
    positions = torch.arange(batch.total_tokens + count * number, device=device)  # in the longer batch
    sequences = torch.searchsorted(cu_seqlens, positions.int(), right=True) - 1
    offsets = positions - cu_seqlens.index_select(0, sequences)  # of each position in its sequence
    token_rows = count * number + positions - number * (sequences + 1)
    return torch.where(offsets < number, number * sequences + offsets, token_rows)


def prepend_to_each(first: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    """Return x (total_tokens, …) with the rows of `first` (number, …) before each sequence; see `prefix_rows`.

    The copies of `first` do not overlap, so its gradient is one sum over the sequences, in a fixed order.
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
    """Compute the same as `attend_plain` with one operator for all sequences."""
    if prefix is not None:
        assert plan.key_rows is not None
        key, value = (
            prepend_to_each(virtual.to(x.dtype), x, plan.key_rows)
            for virtual, x in zip(prefix, (key, value), strict=True)
        )
    cu_seqlens_q, max_seqlen_q = plan.cu_seqlens_q, plan.max_seqlen_q
    first_tokens = cu_seqlens_q[:-1]
    if first_only and plan.window is None:
        cu_seqlens_q, max_seqlen_q = plan.cu_seqlens_first, 1
    elif first_only:
        # The operator aligns the last query with the last key, so a window needs as many queries as keys.
        query = torch.zeros_like(key).index_copy(0, first_tokens.long(), query)
    q, k, v = (x.unflatten(-1, (num_heads, -1)) for x in (query, key, value))  # (tokens, heads, head_size)
    # Arguments go by name, so that a release with another signature raises instead of computing something else.
    if q.dtype == torch.float32:
        assert plan.window is None
        output, *_ = torch.ops.aten._efficient_attention_forward(
            query=q[None],  # the operator takes a batch, of 1 with cu_seqlens
            key=k[None],
            value=v[None],
            bias=None,
            cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_k=plan.cu_seqlens_k,
            max_seqlen_q=max_seqlen_q,
            max_seqlen_k=plan.max_seqlen_k,
            dropout_p=dropout,
            custom_mask_type=0,  # none
            compute_log_sumexp=any(x.requires_grad for x in (q, k, v)),  # which the backward pass needs
        )
        output = output[0]
    else:
        windows = {} if plan.window is None else dict.fromkeys(("window_size_left", "window_size_right"), plan.window)
        output, *_ = torch.ops.aten._flash_attention_forward(
            query=q,
            key=k,
            value=v,
            cum_seq_q=cu_seqlens_q,
            cum_seq_k=plan.cu_seqlens_k,
            max_q=max_seqlen_q,
            max_k=plan.max_seqlen_k,
            dropout_p=dropout,
            is_causal=False,
            return_debug_mask=False,
            **windows,
        )
    output = output.flatten(1)  # (tokens, hidden_size), or (num_sequences, hidden_size)
    return output.index_select(0, first_tokens) if first_only and plan.window is not None else output
