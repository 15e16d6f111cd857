"""Attention over a padded batch, for exported programs: one graph holds for every number and length of sequences.

    packed    (total_tokens, hidden_size)      lengths are numbers on the host, which a graph would hold as constants
    padded    (batch · length, hidden_size)    lengths are in a mask, which is an input of the graph

Linear layers and LayerNorms see rows in both cases, so every family is exported as it is. Padding stands after the
tokens, as tokenizers put it: the head reads the first column. Training and prediction here are never padded.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minipeft.data.batches.packing import PackedBatch
from minipeft.model.attention.grouped import Prefix, Scores, prepend
from minipeft.model.config import EncoderConfig

HIDDEN = -1e30  # added to a score that must not count; finite, since a sequence may be padding alone


def padded_batch(
    input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None, config: EncoderConfig
) -> PackedBatch:
    """Return (batch, length) token ids with one row per position, in the fields of a packed batch without `lengths`.

    The attention mask is 1 at tokens and 0 at padding; token_type_ids is None for a family without token types.
    """
    count, length = input_ids.shape
    position_ids = (torch.arange(length) + config.position_offset).expand(count, length)
    return PackedBatch(
        input_ids.flatten(),
        position_ids.flatten(),
        None if token_type_ids is None else token_type_ids.flatten(),
        length * torch.arange(count + 1),
        length,
        (),
        attention_mask=attention_mask,
    )


@dataclass(frozen=True)
class Padded:
    """Which keys a query sees: `mask`, (batch, 1, 1 or length, virtual tokens + length), is added to the scores."""

    mask: Tensor


def plan_padded(attention_mask: Tensor, num_virtual_tokens: int = 0, window: int | None = None) -> Padded:
    """Plan a batch once for all of its layers; see `plan_attention`."""
    count, length = attention_mask.shape
    seen = attention_mask[:, None, None].bool()  # (batch, 1, 1, length)
    if window is not None:
        positions = torch.arange(length)
        seen = seen & ((positions[:, None] - positions).abs() <= window)
    seen = torch.cat([seen.new_ones(count, 1, seen.shape[2], num_virtual_tokens), seen], dim=3)
    return Padded(torch.where(seen, 0.0, HIDDEN))


def attend_padded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Padded,
    num_heads: int,
    dropout: float = 0.0,
    first_only: bool = False,
    prefix: Prefix | None = None,
    scores: Scores | None = None,
) -> Tensor:
    """Compute the same as `attend_plain` for the rows of a padded batch; `scores`, if given, replaces q kᵀ."""
    assert dropout == 0  # an exported program predicts
    head_size = query.shape[1] // num_heads
    # (batch, heads, 1 or length, head_size)
    q, k, v = (
        x.view(plan.mask.shape[0], -1, num_heads, head_size).transpose(1, 2)
        for x in (query / math.sqrt(head_size), key, value)
    )
    if prefix is not None:
        k, v = (prepend(virtual, x) for virtual, x in zip(prefix, (k, v), strict=True))
    products = q @ k.transpose(2, 3) if scores is None else scores(q, k)
    weights = torch.softmax(products + (plan.mask[:, :, :1] if first_only else plan.mask), dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2).flatten(0, 1)
