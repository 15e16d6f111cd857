"""Disentangled attention over packed sequences (He et al. 2021): scores of contents and of relative positions.

    score(q, k) = (Q_q · K_k + Q_q · PK_b + K_k · PQ_b) / √(3 head_size),    b = bucket(q − k)    (equation 4)

PK and PQ are the keys and queries of one embedding per bucket, with the same projections as K and Q. The kernels for
sequences of variable length on CUDA take no such scores, so that every device computes in groups of near-equal length.

Shapes: tokens = total_tokens of the batch; heads × head_size = hidden_size; rows = embeddings that the batch needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from minipeft.model.attention.grouped import Groups, attend_grouped

if TYPE_CHECKING:
    from minipeft.model.attention.padded import Padded


@dataclass(frozen=True)
class RelativePlan:
    """What the layers share for one batch.

    Attributes:
        attention: How the sequences lie: in groups, or in a padded batch.
        embeddings: (rows, hidden_size), one embedding per bucket that occurs.
        row_of_distance: (2 · longest − 1,), the row of each distance q − k from 1 − longest to longest − 1.
    """

    attention: Groups | Padded
    embeddings: Tensor
    row_of_distance: Tensor


def bucket(distance: Tensor, position_buckets: int, max_relative_positions: int) -> Tensor:
    """Return the bucket of each distance q − k, int64, from −position_buckets to position_buckets − 1.

    A distance of up to position_buckets / 2 has a bucket of its own; larger ones share buckets on a logarithmic scale.
    """
    middle = position_buckets // 2
    size = distance.abs()
    largest = torch.log(torch.tensor((max_relative_positions - 1) / middle))
    far = torch.ceil(torch.log(size.clamp(min=middle) / middle) / largest * (middle - 1)) + middle
    buckets = torch.where(size <= middle, distance, (far * distance.sign()).long())
    return buckets.clamp(-position_buckets, position_buckets - 1)


def attend_disentangled_plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_query: Tensor,
    position_key: Tensor,
    row_of_distance: Tensor,
    lengths: Sequence[int],
    num_heads: int,
    dropout: float = 0.0,
    first_only: bool = False,
) -> Tensor:
    """Compute each sequence separately, as the equation is written.

    Args:
        query, key, value, lengths, num_heads, dropout, first_only: See `attend_plain` (__init__.py).
        position_query: (rows, hidden_size), PQ.
        position_key: (rows, hidden_size), PK.
        row_of_distance: See `RelativePlan`.
    """
    outputs = []
    query_lengths = [1] * len(lengths) if first_only else list(lengths)
    pq, pk = (x.unflatten(-1, (num_heads, -1)).transpose(0, 1) for x in (position_query, position_key))
    for q, k, v in zip(query.split(query_lengths), key.split(list(lengths)), value.split(list(lengths)), strict=True):
        q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(0, 1) for x in (q, k, v))  # (heads, length, head_size)
        distance = torch.arange(q.shape[1])[:, None] - torch.arange(k.shape[1])
        rows = row_of_distance[distance + len(row_of_distance) // 2]  # (queries, keys)
        content = torch.einsum("hqd,hkd->hqk", q, k)
        content_to_position = torch.einsum("hqd,hqkd->hqk", q, pk[:, rows])
        position_to_content = torch.einsum("hkd,hqkd->hqk", k, pq[:, rows])
        scores = (content + content_to_position + position_to_content) / math.sqrt(3 * q.shape[-1])
        weights = F.dropout(torch.softmax(scores, dim=-1), dropout)
        outputs.append((weights @ v).transpose(0, 1).flatten(1))
    return torch.cat(outputs)


def attend_disentangled(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_query: Tensor,
    position_key: Tensor,
    plan: RelativePlan,
    num_heads: int,
    dropout: float = 0.0,
    first_only: bool = False,
) -> Tensor:
    """Compute the same as `attend_disentangled_plain`, in groups of near-equal length."""
    scale = math.sqrt(3 * query.shape[-1] / num_heads)

    def by_distance(x: Tensor, rows: Tensor) -> Tensor:  # → (heads, 2 · longest − 1, head_size)
        return x.index_select(0, rows).unflatten(-1, (num_heads, -1)).transpose(0, 1)

    by_q_minus_k, by_k_minus_q = plan.row_of_distance, plan.row_of_distance.flip(0)
    pq = by_distance(position_query / scale, by_k_minus_q if first_only else by_q_minus_k)
    pk = by_distance(position_key, by_k_minus_q)
    scores = partial(_scores, pq, pk)
    query = query / math.sqrt(3)
    if isinstance(plan.attention, Groups):
        return attend_grouped(query, key, value, plan.attention, num_heads, dropout, first_only, scores=scores)
    from minipeft.model.attention.padded import attend_padded

    return attend_padded(query, key, value, plan.attention, num_heads, dropout, first_only, scores=scores)


def _scores(pq: Tensor, pk: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Return the scores (count, heads, 1 or length, length) of a group; q and pq are scaled already."""
    # pk is ordered by k − q, and so is pq where q is the first token alone; else pq is ordered by q − k.
    length, zero = k.shape[2], pq.shape[1] // 2  # the place of distance 0
    pq, pk = pq.to(k.dtype), pk.to(k.dtype)
    if q.shape[2] == 1:  # k − q is 0, 1, …, length − 1
        near = slice(zero, zero + length)
        return q @ (k + pk[:, near]).transpose(-1, -2) + (k * pq[:, near]).sum(-1).unsqueeze(2)
    near = slice(zero - length + 1, zero + length)
    content_to_position = _products_by_distance(q, pk[:, near])
    position_to_content = _products_by_distance(k, pq[:, near]).transpose(-1, -2)
    return q @ k.transpose(-1, -2) + content_to_position + position_to_content


def _products_by_distance(x: Tensor, rows: Tensor) -> Tensor:
    """Return x_i · rows[j − i + length − 1] as element (i, j) of (count, heads, length, length)."""
    count, heads, length, _ = x.shape  # rows: (heads, width, head_size)
    width = 2 * length - 1
    # All products of x and rows. In them, element (i, j) is width − 1 numbers behind (i − 1, j), so a view suffices.
    products = torch.bmm(x.transpose(0, 1).flatten(1, 2), rows.transpose(1, 2))  # (heads, count · length, width)
    if torch.compiler.is_compiling():  # the same through a copy, because ONNX has no views
        products = F.pad(products, (0, 1)).view(heads, count, -1)[:, :, length - 1 : length - 1 + length * width]
        return products.unflatten(2, (length, width))[..., :length].transpose(0, 1)
    strides = (length * width, count * length * width, width - 1, 1)
    return products.as_strided((count, heads, length, length), strides, length - 1)
