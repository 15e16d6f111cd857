"""Rotary positions (Su et al. 2021): the queries and keys of a token are rotated by angles that grow with its position.

Features i and i + head_size / 2 of a head are a pair, rotated by position · theta^(−2 i / head_size).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def angles(position_ids: Tensor, head_size: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of each token's angles, both (total_tokens, 1, head_size / 2)."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.float, device=position_ids.device) / head_size
    angle = position_ids[:, None, None].float() / theta**exponents
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate_plain(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the queries and keys among (total_tokens, 3 · hidden_size), and leave the values as they are."""
    query_key, value = qkv.split([qkv.shape[1] // 3 * 2, qkv.shape[1] // 3], dim=-1)
    a, b = query_key.unflatten(-1, (-1, 2, cos.shape[-1])).unbind(2)  # (total_tokens, 2 · heads, head_size / 2)
    rotated = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=2)
    return torch.cat([rotated.flatten(1), value], dim=-1)


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Compute the same as `rotate_plain`, with few passes over memory; the gradient is the rotation back."""
    return _Rotate.apply(qkv, cos, sin)  # type: ignore[no-untyped-call]


def _rotated(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    output = torch.empty_like(qkv)
    heads = qkv.shape[1] // (2 * cos.shape[-1]) // 3 * 2  # of queries and keys
    halves = [x.unflatten(-1, (-1, 2, cos.shape[-1]))[:, :heads].unbind(2) for x in (qkv, output)]
    (a, b), (new_a, new_b) = halves
    torch.mul(a, cos, out=new_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=new_b).addcmul_(a, sin)
    third = qkv.shape[1] // 3
    output[:, 2 * third :] = qkv[:, 2 * third :]
    return output


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(qkv, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(grads[0], cos, -sin), None, None
