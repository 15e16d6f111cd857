"""Attention over packed sequences in small groups of near-equal length, through matrix products: the CPU's way.

Shapes: tokens = total_tokens of the batch; heads × head_size = hidden_size; slots = the places of all groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minipeft.data.batches.buckets import round_up
from minipeft.model.dropout import dropout
from minipeft.model.local_attention import attend_window

# Keys and values (num_virtual_tokens, hidden_size) that all tokens attend to, in addition to their sequence's.
Prefix = tuple[Tensor, Tensor]
# The queries (count, heads, 1 or longest, head_size) and keys (count, heads, longest, head_size) of a group → scores.
Scores = Callable[[Tensor, Tensor], Tensor]

# Sequences share a group while the padding in it stays below this part of its slots.
PADDING_BOUND = 0.15

# On the CPU, sequences up to these lengths are faster through matrix products than through the fused kernel; beyond
# them that one saves the memory of the weights. With dropout it saves none, and takes up to three times as long.
LONGEST_BY_PRODUCTS, LONGEST_BY_BF16_PRODUCTS = 256, 512

# For products in bfloat16 a kernel is compiled for each shape, and kept: a millisecond, and half a megabyte. There a
# group's length is a multiple of this, and its sequences are 1, 2, 4, 8, …
LENGTH_STEP = 16


@dataclass(frozen=True)
class Group:
    """Sequences of near-equal length, attended together as (count, longest) slots from `start` on."""

    start: int
    count: int
    longest: int
    mask: Tensor | None  # (count, 1, 1, longest), added to the scores: 0 at tokens, -inf at padding; None without any


@dataclass(frozen=True)
class Groups:
    """Where each token stands when sequences of near-equal length lie side by side.

    Attributes:
        token_of_slot: (slots,); a padding slot repeats its sequence's first token, and is masked.
        slot_of_token: (tokens,).
        sequence_order: (num_sequences,); sequences in the order of the groups, and place_of_sequence its inverse.
        window: Largest distance that a token sees; None without a limit.
    """

    groups: tuple[Group, ...]
    token_of_slot: Tensor
    slot_of_token: Tensor
    sequence_order: Tensor
    place_of_sequence: Tensor
    window: int | None = None
    _by_head: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def by_head(self, num_heads: int) -> tuple[Tensor, Tensor]:
        """The same two for each head's part of a token, with (count, heads, longest) slots a group; made once.

        Token t's head h is row t · heads + h → row_of_slot (slots · heads,), slot_of_row (tokens · heads,).
        """
        if num_heads not in self._by_head:
            device = self.token_of_slot.device
            first = [torch.arange(g.start, g.start + g.count * g.longest, g.longest) for g in self.groups]
            longest = torch.tensor([g.longest for g in self.groups for _ in range(g.count)])
            before = torch.cat(first).repeat_interleave(longest)  # (slots,), the slots before each one's sequence
            longest = longest.repeat_interleave(longest)
            head = torch.arange(num_heads)
            slot = torch.arange(len(before)) + (num_heads - 1) * before  # of the first head
            slot = (slot[:, None] + head * longest[:, None]).to(device)  # (slots, heads)
            rows = self.token_of_slot[:, None] * num_heads + head.to(device)
            row_of_slot = torch.empty_like(rows).flatten().index_copy_(0, slot.flatten(), rows.flatten())
            self._by_head[num_heads] = row_of_slot, slot.index_select(0, self.slot_of_token).flatten()
        return self._by_head[num_heads]


def group_by_length(
    lengths: Sequence[int], device: torch.device, dtype: torch.dtype, window: int | None = None
) -> Groups:
    """Plan the groups of a batch, once for all of its layers; computed on the host from `lengths`."""
    few_shapes = device.type == "cpu" and dtype == torch.bfloat16
    padded = [round_up(length, LENGTH_STEP) for length in lengths] if few_shapes else lengths
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    runs = _runs(order, padded)
    if few_shapes:
        runs = [part for run in runs for part in _powers_of_two(run)]
    starts = torch.tensor([0, *lengths]).cumsum(0)
    groups, token_of_slot = [], []
    slot_of_token = torch.empty(int(starts[-1]), dtype=torch.int64)
    start = 0
    for run in runs:
        longest = padded[run[-1]]
        run_lengths = torch.tensor([lengths[sequence] for sequence in run])
        real = torch.arange(longest) < run_lengths[:, None]  # (count, longest)
        tokens_of_run = starts[run][:, None] + torch.arange(longest) * real
        slot_of_token[tokens_of_run[real]] = start + real.flatten().nonzero().flatten()
        token_of_slot.append(tokens_of_run.flatten())
        mask = None
        if not bool(real.all()):
            mask = torch.zeros(real.shape, dtype=dtype).masked_fill(~real, -math.inf)[:, None, None, :].to(device)
        groups.append(Group(start, len(run), longest, mask))
        start += len(run) * longest
    sequence_order = torch.tensor(order)
    return Groups(
        tuple(groups),
        torch.cat(token_of_slot).to(device),
        slot_of_token.to(device),
        sequence_order.to(device),
        torch.argsort(sequence_order).to(device),
        window,
    )


def _runs(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Sequences in the order of their lengths → runs of near-equal length."""
    runs: list[list[int]] = []
    tokens = 0
    for sequence in order:
        slots = (len(runs[-1]) + 1) * lengths[sequence] if runs else 0
        if not runs or (slots - tokens - lengths[sequence]) > PADDING_BOUND * slots:
            runs.append([])
            tokens = 0
        runs[-1].append(sequence)
        tokens += lengths[sequence]
    return runs


def _powers_of_two(run: list[int]) -> Iterator[list[int]]:
    """The run in parts of 1, 2, 4, 8, … sequences, the largest first."""
    while run:
        size = 1 << (len(run).bit_length() - 1)
        yield run[:size]
        run = run[size:]


def attend_grouped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: Groups,
    num_heads: int,
    dropout: float = 0.0,
    first_only: bool = False,
    prefix: Prefix | None = None,
    scores: Scores | None = None,
) -> Tensor:
    """Compute the same as `attend_plain`, in small groups of near-equal length; `scores` replaces q kᵀ."""
    head_size = query.shape[-1] // num_heads
    row_of_slot, slot_of_row = groups.by_head(num_heads)
    sizes = [group.count * num_heads * group.longest for group in groups.groups]

    def in_groups(x: Tensor) -> Sequence[Tensor]:
        return _rearrange(x.reshape(-1, head_size), row_of_slot, slot_of_row).split(sizes)

    keys, values = in_groups(key), in_groups(value)  # each (count · heads · longest, head_size)
    query = query / math.sqrt(head_size)
    if first_only:
        counts = [group.count for group in groups.groups]
        queries = _rearrange(query, groups.sequence_order, groups.place_of_sequence).split(counts)
    else:
        queries = in_groups(query)
    outputs = []
    for group, q, k, v in zip(groups.groups, queries, keys, values, strict=True):
        # (count, heads, 1 or longest, head_size)
        q, k, v = (x.view(group.count, num_heads, -1, head_size) for x in (q, k, v))
        mask = group.mask
        if prefix is not None:
            k, v = (_prepend(before, x) for before, x in zip(prefix, (k, v), strict=True))
            mask = None if mask is None else F.pad(mask, (len(prefix[0]), 0))  # 0: every token sees the prefix
        if groups.window is not None and group.longest > groups.window + 1:
            attended = attend_window(q, k, v, mask, groups.window, dropout)
        else:
            attended = _attend(q, k, v, mask, dropout, scores)
        outputs.append(attended.reshape(-1, query.shape[-1] if first_only else head_size))
    output = torch.cat(outputs)
    if first_only:
        return _rearrange(output, groups.place_of_sequence, groups.sequence_order)
    return _rearrange(output, slot_of_row, row_of_slot).view(query.shape)


def _prepend(prefix: Tensor, x: Tensor) -> Tensor:
    """(num_virtual_tokens, hidden_size) before x (count, heads, longest, head_size), along the tokens."""
    count, num_heads = x.shape[:2]
    heads = prefix.to(x.dtype).unflatten(-1, (num_heads, -1)).transpose(0, 1)  # (heads, num_virtual_tokens, head_size)
    return torch.cat([heads.expand(count, -1, -1, -1), x], dim=2)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, probability: float, scores_of: Scores | None = None
) -> Tensor:
    """softmax(q kᵀ + mask) v, q being divided by √head_size already."""
    longest = LONGEST_BY_BF16_PRODUCTS if q.dtype == torch.bfloat16 else LONGEST_BY_PRODUCTS
    if scores_of is None and (q.device.type != "cpu" or (k.shape[-2] > longest and probability == 0)):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=probability, scale=1.0)
    dtype = q.dtype
    if q.shape[-2] == 1:  # too little to compute for kernels of its own
        q, k, v = q.float(), k.float(), v.float()
    scores: Tensor = _Scores.apply(q, k) if scores_of is None else scores_of(q, k)  # type: ignore[no-untyped-call]
    if mask is not None:
        scores += mask
    return (dropout(torch.softmax(scores, dim=-1), probability) @ v).to(dtype)


class _Scores(torch.autograd.Function):
    """q kᵀ; the gradient of k is made as the next product makes v's, and so takes the same kernel."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor) -> Tensor:
        ctx.save_for_backward(q, k)
        return q @ k.transpose(-1, -2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        q, k = ctx.saved_tensors
        of_q, of_k = ctx.needs_input_grad
        return grads[0] @ k if of_q else None, grads[0].transpose(-1, -2) @ q if of_k else None


def _rearrange(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    return _Rearrange.apply(x, index, inverse)  # type: ignore[no-untyped-call]


class _Rearrange(torch.autograd.Function):
    """Rows by index, where `inverse` says in which row of the result each row of the input stands.

    Either the result holds every row (and padding repeats some: its gradient is zero, for it is masked), or every row
    of the result comes from a row of its own. Both ways the gradient is a plain selection of rows, without the
    scattered additions that index_select's own backward makes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(index, inverse)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = ctx.saved_tensors
        if len(inverse) <= len(index):
            return grads[0].index_select(0, inverse), None, None
        grad = grads[0].new_zeros(len(inverse), grads[0].shape[1])
        return grad.index_copy_(0, index, grads[0]), None, None
