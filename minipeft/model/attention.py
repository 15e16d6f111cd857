"""Attention over packed sequences: a plain version to read, and two fast ones that the tests hold against it.

    attention(Q, K, V) = softmax(Q Kᵀ / √head_size) V        within each sequence    (Vaswani et al. 2017, equation 1)

Shapes: tokens = total_tokens of the batch; heads × head_size = hidden_size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minipeft.data.batches.packing import PackedBatch
from minipeft.errors import first_line
from minipeft.model.grouped import Groups, Prefix, attend_grouped, group_by_length
from minipeft.model.varlen import Varlen, attend_varlen, plan_varlen, varlen_supports

logger = logging.getLogger("minipeft")


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
    """Every sequence by itself, written as the equation.

    Args:
        query: (tokens, hidden_size), or (num_sequences, hidden_size) with first_only: the first token's alone.
        key, value: (tokens, hidden_size).
        prefix: Keys and values (num_virtual_tokens, hidden_size) before those of each sequence.
        window: Largest distance between a query and a key that it sees; None without a limit. Not with a prefix.

    Returns:
        A tensor of the query's shape.
    """
    outputs = []
    query_lengths = [1] * len(lengths) if first_only else list(lengths)
    for q, k, v in zip(query.split(query_lengths), key.split(list(lengths)), value.split(list(lengths)), strict=True):
        if prefix is not None:
            k, v = (torch.cat([before.to(x.dtype), x]) for before, x in zip(prefix, (k, v), strict=True))
        q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(0, 1) for x in (q, k, v))  # (heads, length, head_size)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if window is not None:
            distance = torch.arange(q.shape[1])[:, None] - torch.arange(k.shape[1])
            scores = scores.masked_fill(distance.abs().to(scores.device) > window, -math.inf)
        weights = F.dropout(torch.softmax(scores, dim=-1), dropout)
        outputs.append((weights @ v).transpose(0, 1).flatten(1))
    return torch.cat(outputs)


# What a batch's layers share: how its sequences lie, for the device that it is on.
Plan = Groups | Varlen


def plan_attention(
    batch: PackedBatch,
    dtype: torch.dtype,
    head_size: int,
    num_virtual_tokens: int = 0,
    window: int | None = None,
    dropout: float = 0.0,
) -> Plan:
    """For `attend`, once a batch: variable-length kernels on CUDA, groups of near-equal length elsewhere.

    The kernel for a window has no dropout.
    """
    device = batch.cu_seqlens.device
    fits = varlen_supports(head_size) and (window is None or dropout == 0)
    if device.type == "cuda" and fits and varlen_agrees(device, dtype, head_size, window is not None):
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
    """The same as `attend_plain`, as `plan` has it."""
    if isinstance(plan, Varlen):
        return attend_varlen(query, key, value, plan, num_heads, dropout, first_only, prefix)
    return attend_grouped(query, key, value, plan, num_heads, dropout, first_only, prefix)


@cache
def varlen_agrees(device: torch.device, dtype: torch.dtype, head_size: int, in_window: bool = False) -> bool:
    """Whether `attend_varlen` gives the plain result and gradients there; tried once, on three short sequences.

    The plain version computes in float32, so that only one side's rounding counts: up to 0.007 of the largest number
    in bfloat16. Sequences that are cut in a wrong place, or scores a tenth too large, make 0.1 and more.
    """
    lengths, tolerance, window = [5, 1, 9], 1e-3 if dtype == torch.float32 else 0.03, 2 if in_window else None

    def computed(attention: Callable[..., Tensor], plan: Any, computes_in: torch.dtype) -> Tensor:
        drawn = torch.randn(3, 15, 2 * head_size, generator=torch.Generator().manual_seed(0)).to(dtype)
        qkv = drawn.to(device, computes_in).requires_grad_()
        output = attention(*qkv, plan, 2)
        (gradient,) = torch.autograd.grad(output.square().sum(), qkv)
        return torch.cat([output.detach()[None], gradient]).float()

    try:
        with torch.inference_mode(False), torch.enable_grad():
            starts = torch.tensor([0, 5, 6, 15], dtype=torch.int32, device=device)
            plan = Varlen(starts, torch.arange(4, dtype=torch.int32, device=device), starts, 9, 9, window=window)
            plain = computed(partial(attend_plain, window=window), lengths, torch.float32)
            difference = float((computed(attend_varlen, plan, dtype) - plain).abs().max() / plain.abs().max())
        why = "" if difference <= tolerance else f"differ by {difference}"  # NaN differs too
    except RuntimeError as error:
        why = first_line(error)
    if why:
        kind = "variable-length attention" + " in windows" * in_window
        logger.warning("%s in %s: no %s (%s); slower groups instead", device, dtype, kind, why)
    return not why
