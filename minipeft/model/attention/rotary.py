"""Rotary positions (Su et al. 2021): the queries and keys of a token are rotated by angles that grow with its position.

Features i and i + head_size / 2 of a head are a pair, rotated by position · theta^(−2 i / head_size).
"""

from typing import Any

import torch
from torch import Tensor


def angles(position_ids: Tensor, head_size: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of each token's angles, both (total_tokens, 1, head_size / 2)."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.float, device=position_ids.device) / head_size
    angle = position_ids[:, None, None].float() / theta**exponents
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate_plain(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split (total_tokens, 3 · hidden_size) into queries and keys, which are rotated, and values.

    Returns:
        Three tensors (total_tokens, hidden_size).
    """
    query, key, value = qkv.chunk(3, dim=-1)
    rotated = []
    for x in (query, key):
        a, b = x.unflatten(-1, (-1, 2, cos.shape[-1])).unbind(2)  # each (total_tokens, heads, head_size / 2)
        rotated.append(torch.stack([a * cos - b * sin, b * cos + a * sin], dim=2).flatten(1))
    return rotated[0], rotated[1], value


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the same as `rotate_plain`, with few passes over memory; the gradient is the rotation back."""
    if torch.compiler.is_compiling():  # an exported program has no operators that write to given memory
        return rotate_plain(qkv, cos, sin)
    return _Rotate.apply(qkv, cos, sin)  # type: ignore[no-untyped-call]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, output: Tensor) -> None:
    """Write x, rotated, to `output`; both are (total_tokens, hidden_size)."""
    (a, b), (new_a, new_b) = (t.unflatten(-1, (-1, 2, cos.shape[-1])).unbind(2) for t in (x, output))
    torch.mul(a, cos, out=new_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=new_b).addcmul_(a, sin)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        parts = qkv.chunk(3, dim=-1)
        outputs = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in parts]
        for part, output in zip(parts[:2], outputs[:2], strict=True):
            _rotate(part, cos, sin, output)
        query, key, value = (*outputs[:2], outputs[2].copy_(parts[2]))
        return query, key, value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        size = grads[0].shape[1]
        grad = grads[0].new_empty(len(grads[0]), 3 * size)
        parts = grad.split(size, dim=-1)
        for of_output, part in zip(grads[:2], parts[:2], strict=True):
            _rotate(of_output, cos, -sin, part)
        parts[2].copy_(grads[2])
        return grad, None, None
