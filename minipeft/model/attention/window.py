"""Attention within a window: a token sees the tokens at most `window` positions away (Beltagy et al. 2020).

Long sequences are cut into blocks of `window` tokens. A block's tokens see its own keys, those of the block before and
those of the block after, so that time and memory grow with the length, not with its square.

Shapes: count sequences of a group, heads, length (padded), blocks = length / window.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minipeft.model.layers import dropout

HIDDEN = -1e30  # added to a score that must not count; finite, since a padded query may see padding alone


def attend_window(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: int, probability: float) -> Tensor:
    """softmax(q kᵀ + mask) v over the keys of each query's window, for one group.

    Args:
        q: (count, heads, length, head_size), divided by √head_size already; or (count, heads, 1, head_size), the first
            token's.
        k: (count, heads, length, head_size).
        v: (count, heads, length, head_size).
        mask: (count, 1, 1, length), added to the scores: 0 at tokens, −inf at padding; None without padding.
        window: Largest distance that a token sees.
        probability: Dropout probability of the weights.
    """
    mask = None if mask is None else mask.clamp(min=HIDDEN)
    length = k.shape[2]
    if q.shape[2] == 1:
        near = slice(0, window + 1)
        return _attend(q, k[:, :, near], v[:, :, near], None if mask is None else mask[..., near], probability)
    if length <= 3 * window:
        positions = torch.arange(length, device=q.device)
        band = _hidden((positions[:, None] - positions).abs() > window, q)
        return _attend(q, k, v, band if mask is None else band + mask, probability)
    return _attend_blocks(q, k, v, mask, window, probability)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, probability: float) -> Tensor:
    scores = q @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    return dropout(torch.softmax(scores, dim=-1), probability) @ v


def _hidden(where: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(where.shape, dtype=like.dtype, device=like.device).masked_fill_(where, HIDDEN)


def _attend_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: int, probability: float) -> Tensor:
    length = q.shape[2]
    blocks = -(-length // window)
    more = blocks * window - length

    def in_blocks(x: Tensor, around: int) -> Tensor:
        """(…, length, head_size) → (…, blocks + 2 · around, window, head_size), with empty blocks around."""
        padded = F.pad(x, (0, 0, around * window, around * window + more))
        return padded.unflatten(-2, (blocks + 2 * around, window))

    queries, keys, values = in_blocks(q, 0), in_blocks(k, 1), in_blocks(v, 1)
    shifts = [slice(shift, shift + blocks) for shift in range(3)]  # the block before, the same one, the block after
    scores = torch.cat([queries @ keys[:, :, near].transpose(-1, -2) for near in shifts], dim=-1)
    positions = torch.arange(window, device=q.device)
    band = _hidden((positions[:, None] + window - torch.arange(3 * window, device=q.device)).abs() > window, q)
    padding = q.new_zeros(1, 1, length, 1) if mask is None else mask.transpose(-1, -2)  # (count or 1, 1, length, 1)
    padding = F.pad(padding, (0, 0, window, window + more), value=HIDDEN).squeeze(-1)
    padding = padding.unfold(-1, 3 * window, window).unsqueeze(-2)  # (count or 1, 1, blocks, 1, 3 · window)
    weights = dropout(torch.softmax(scores + (band + padding), dim=-1), probability).chunk(3, dim=-1)
    previous, same, following = (part @ values[:, :, near] for part, near in zip(weights, shifts, strict=True))
    return (previous + same + following).flatten(2, 3)[:, :, :length]
