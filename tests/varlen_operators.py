"""torch's variable-length attention operators on the CPU, where torch has none: plain, with their own backward pass.

Importing this file registers them. The arguments and results are those of the CUDA operators, so that a call that CUDA
would refuse (no sums for the backward pass, lengths that are not int32, a bound that is too small) raises here too.
`plan_as_on_cuda` plans a batch for them, as minipeft does on CUDA.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from minipeft.data.batches.packing import PackedBatch
from minipeft.model.attention.varlen import Varlen, plan_varlen

Sequence = tuple[slice, slice, Tensor, Tensor]  # its queries, its keys, the weights P, and D, dropout's factors

LIBRARY = torch.library.Library("aten", "IMPL")


def plan_as_on_cuda(
    batch: PackedBatch,
    dtype: torch.dtype,
    head_size: int,
    num_virtual_tokens: int = 0,
    window: int | None = None,
    dropout: float = 0.0,
) -> Varlen:
    """`plan_attention` on a CUDA device whose operators work."""
    return plan_varlen(batch, num_virtual_tokens, window)


def _sequences(
    q: Tensor, k: Tensor, bounds: tuple[Any, ...], dropout: float, window: tuple[int, int] | None, seed: int
) -> Iterator[Sequence]:
    cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k = bounds
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32 and len(cu_seqlens_q) == len(cu_seqlens_k)
    assert q.stride(-1) == k.stride(-1) == 1 and q.shape[1:] == k.shape[1:]
    generator = torch.Generator().manual_seed(seed)
    starts_q, starts_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    assert (starts_q[-1], starts_k[-1]) == (len(q), len(k))
    for i in range(len(starts_q) - 1):
        queries, keys = slice(starts_q[i], starts_q[i + 1]), slice(starts_k[i], starts_k[i + 1])
        length_q, length_k = queries.stop - queries.start, keys.stop - keys.start
        assert length_q <= max_seqlen_q and length_k <= max_seqlen_k
        scores = torch.einsum("qhd,khd->hqk", q[queries].float(), k[keys].float()) / math.sqrt(q.shape[-1])
        if window is not None:  # the last query stands at the last key
            distance = torch.arange(length_k) - (torch.arange(length_q) + length_k - length_q)[:, None]
            scores = scores.masked_fill((distance < -window[0]) | (distance > window[1]), -math.inf)
        keep = torch.rand(scores.shape, generator=generator) >= dropout
        yield queries, keys, scores.softmax(-1), keep / (1 - dropout)


def _forward(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    seed = torch.randint(1 << 40, ())
    output = torch.empty_like(q, memory_format=torch.contiguous_format)
    for queries, keys, weights, factors in _sequences(q, k, *settings, int(seed)):
        output[queries] = torch.einsum("hqk,khd->qhd", weights * factors, v[keys].float()).to(q.dtype)
    return output, seed


def _backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    scale = 1 / math.sqrt(q.shape[-1])
    for queries, keys, weights, factors in _sequences(q, k, *settings):
        of_output = grad[queries].float()
        grad_v[keys] = torch.einsum("hqk,qhd->khd", weights * factors, of_output).to(v.dtype)
        of_weights = torch.einsum("qhd,khd->hqk", of_output, v[keys].float()) * factors
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * scale
        grad_q[queries] = torch.einsum("hqk,khd->qhd", of_scores, k[keys].float()).to(q.dtype)
        grad_k[keys] = torch.einsum("hqk,qhd->khd", of_scores, q[queries].float()).to(k.dtype)
    return grad_q, grad_k, grad_v


def _window(left: int | None, right: int | None) -> tuple[int, int] | None:
    return None if left is None or right is None else (left, right)


def _flash_forward(
    query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask, *, scale=None,
    window_size_left=None, window_size_right=None, **others,
):  # fmt: skip
    assert query.dtype == torch.bfloat16 and not is_causal and not any(x is not None for x in others.values())
    bounds = cum_seq_q, cum_seq_k, max_q, max_k
    output, seed = _forward(query, key, value, bounds, dropout_p, _window(window_size_left, window_size_right))
    sums = query.new_zeros(query.shape[1], len(query), dtype=torch.float32)
    return output, sums, seed.to(torch.uint64).expand(2).clone(), seed.to(torch.uint64), query.new_empty(0)


def _flash_backward(
    grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, rng_state,
    unused, *, scale=None, window_size_left=None, window_size_right=None,
):  # fmt: skip
    window = _window(window_size_left, window_size_right)
    bounds = cum_seq_q, cum_seq_k, max_q, max_k
    return _backward(grad_out, query, key, value, bounds, dropout_p, window, int(rng_state[0]))


def _efficient_forward(
    query, key, value, bias, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, custom_mask_type,
    compute_log_sumexp=False, *, scale=None, seqlen_k=None, window_size=None,
):  # fmt: skip
    assert bias is None and custom_mask_type == 0 and window_size is None and len(query) == 1
    bounds = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    output, seed = _forward(query[0], key[0], value[0], bounds, dropout_p, None)
    sums = query.new_zeros(1, query.shape[2], max_seqlen_q if compute_log_sumexp else 0)
    return output[None], sums, seed, torch.zeros_like(seed), max_seqlen_q, max_seqlen_k


def _efficient_backward(
    grad_out_, query, key, value, bias, out, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, logsumexp,
    dropout_p, philox_seed, philox_offset, custom_mask_type, bias_requires_grad, **others,
):  # fmt: skip
    assert logsumexp.numel(), "the forward pass has not computed the sums that the backward pass reads"
    bounds = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    found = _backward(grad_out_[0], query[0], key[0], value[0], bounds, dropout_p, None, int(philox_seed))
    return *(x[None] for x in found), query.new_empty(0)


for name, operator in {
    "_flash_attention_forward": _flash_forward,
    "_flash_attention_backward": _flash_backward,
    "_efficient_attention_forward": _efficient_forward,
    "_efficient_attention_backward": _efficient_backward,
}.items():
    LIBRARY.impl(name, operator, "CPU")
