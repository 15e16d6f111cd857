"""Attention over packed sequences: a plain version to read, and the choice between the fast ones.

    attention(Q, K, V) = softmax(Q Kᵀ / √head_size) V        within each sequence    (Vaswani et al. 2017, equation 1)

    grouped.py   matrix products over groups of sequences of near-equal length: the CPU, and every fallback
    varlen.py    one operator for all sequences: CUDA
    padded.py    a padded batch and a mask: exported programs alone, whose graph must not depend on the lengths

The tests hold all of them against the plain version. Nothing else is padded: padding a random batch of 16 to its
longest sequence would more than double the tokens of RTE and SST-2. There is no causal mask, because an encoder has
none.

Shapes: tokens = total_tokens of the batch; heads × head_size = hidden_size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from minipeft.data.batches.packing import PackedBatch
from minipeft.model.attention.grouped import Groups, Prefix, attend_grouped, group_by_length

if TYPE_CHECKING:
    from minipeft.model.attention.padded import Padded
    from minipeft.model.attention.varlen import Varlen


def attend_plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    num_heads: int,
    dropout: float = 0.0,
    first_only: bool = False,
    prefix: Prefix | None = None,
    window: int | None = None,
) -> Tensor:
    """Compute each sequence separately, as the equation is written.

    Args:
        query: (tokens, hidden_size); with `first_only` (num_sequences, hidden_size), the first token of each sequence.
        key: (tokens, hidden_size).
        value: (tokens, hidden_size).
        lengths: Length of each sequence in tokens.
        num_heads: Number of heads.
        dropout: Dropout probability of the attention weights.
        first_only: Whether only the first token of each sequence has a query.
        prefix: Keys and values (num_virtual_tokens, hidden_size) before those of each sequence.
        window: Largest distance between a query and a key that it sees; None without a limit. Not with a prefix.

    Returns:
        A tensor of the query's shape.
    """
    outputs = []
    # A Python loop over sequences, which keeps the code as short as the equation. The fast versions have none.
    query_lengths = [1] * len(lengths) if first_only else list(lengths)
    for q, k, v in zip(query.split(query_lengths), key.split(list(lengths)), value.split(list(lengths)), strict=True):
        if prefix is not None:
            # Virtual tokens are keys and values without queries: all tokens see them, and they see nothing.
            k, v = (torch.cat([virtual.to(x.dtype), x]) for virtual, x in zip(prefix, (k, v), strict=True))
        q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(0, 1) for x in (q, k, v))  # (heads, length, head_size)
        # Without the scale, scores would grow with head_size, and softmax would put all weight on one key.
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (heads, 1 or length, length)
        if window is not None:
            distance = torch.arange(q.shape[1])[:, None] - torch.arange(k.shape[1])
            scores = scores.masked_fill(distance.abs().to(scores.device) > window, -math.inf)
        # Dropout on the weights, as in BERT: they no longer sum to 1, but do in expectation.
        weights = F.dropout(torch.softmax(scores, dim=-1), dropout)  # (heads, 1 or length, length)
        outputs.append((weights @ v).transpose(0, 1).flatten(1))  # (1 or length, hidden_size)
    return torch.cat(outputs)


# How the sequences of a batch lie; computed once for all of its layers.
Plan: TypeAlias = "Groups | Varlen | Padded"


def plan_attention(
    batch: PackedBatch,
    dtype: torch.dtype,
    head_size: int,
    num_virtual_tokens: int = 0,
    window: int | None = None,
    dropout: float = 0.0,
) -> Plan:
    """Plan a batch for `attend`: for the variable-length operators where they work, else for groups.

    Args:
        batch: The packed batch.
        dtype: Of queries, keys and values.
        head_size: hidden_size / heads.
        num_virtual_tokens: Length of the prefix, which takes part as keys and values of every sequence.
        window: Largest distance that a token sees; None without a limit.
        dropout: Dropout probability that `attend` will get.
    """
    if batch.attention_mask is not None:
        from minipeft.model.attention.padded import plan_padded  # exported programs alone

        return plan_padded(batch.attention_mask, num_virtual_tokens, window)
    device = batch.cu_seqlens.device
    if device.type == "cuda":
        # Imported here, because a CPU has no use for them.
        from minipeft.model.attention.varlen import plan_varlen, varlen_supports
        from minipeft.model.attention.varlen_trial import varlen_agrees

        # No release of torch promises these operators, so they are tried once before the first batch.
        supported = varlen_supports(dtype, head_size, window)
        if supported and varlen_agrees(device, dtype, head_size, window is not None, dropout > 0):
            return plan_varlen(batch, num_virtual_tokens, window)
    return group_by_length(batch.lengths, device, dtype, window)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Plan,
    num_heads: int,
    dropout: float = 0.0,
    first_only: bool = False,
    prefix: Prefix | None = None,
) -> Tensor:
    """Compute the same as `attend_plain`, in groups or with the variable-length operators, as planned."""
    # The plan has decided already, so that no layer decides again.
    if isinstance(plan, Groups):
        return attend_grouped(query, key, value, plan, num_heads, dropout, first_only, prefix)
    from minipeft.model.attention.varlen import Varlen, attend_varlen

    if isinstance(plan, Varlen):
        return attend_varlen(query, key, value, plan, num_heads, dropout, first_only, prefix)
    from minipeft.model.attention.padded import attend_padded

    return attend_padded(query, key, value, plan, num_heads, dropout, first_only, prefix)
