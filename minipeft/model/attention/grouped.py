"""Attention over packed sequences through matrix products, in groups of sequences of near-equal length.

    packed rows → rows by group, head and sequence → softmax(Q Kᵀ + mask) V for each group → packed rows

This is how the CPU attends, and every device where the operators of varlen.py do not apply. Each group is a small
padded batch. Padding exists here alone, inside attention: linear layers and LayerNorms see packed rows.

It has no kernel of its own for the whole of attention. On the CPU the weights of short sequences fit the cache, and two
matrix products are faster there than torch's fused kernel; for long sequences the fused kernel is used.

Shapes: tokens = total_tokens of the batch; slots = tokens and padding of all groups; heads × head_size = hidden_size.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minipeft.data.batches.buckets import round_up
from minipeft.data.batches.packing import to_device
from minipeft.model.layers import dropout

# Keys and values (num_virtual_tokens, hidden_size) that all tokens attend to, in addition to their sequence's.
Prefix = tuple[Tensor, Tensor]
# The queries (count, heads, 1 or longest, head_size) and keys (count, heads, longest, head_size) of a group → scores.
Scores = Callable[[Tensor, Tensor], Tensor]

# Sequences share a group while padding is at most this fraction of its slots.
PADDING_BOUND = 0.15

# On the CPU, matrix products are faster than the fused kernel for sequences up to these lengths; for longer sequences
# the fused kernel saves the memory of the attention weights. With dropout it saves none, and is up to 3 times slower.
LONGEST_BY_PRODUCTS, LONGEST_BY_BF16_PRODUCTS = 256, 512

# For products in bfloat16 the CPU compiles a kernel for each shape (1 ms) and keeps it (0.5 MB). To have few shapes,
# the length of a group is a multiple of this, and its number of sequences a power of two.
LENGTH_STEP = 16


@dataclass(frozen=True)
class Group:
    """Sequences of near-equal length: a small padded batch of (count, longest) slots, from slot `start` on."""

    start: int
    count: int
    longest: int
    mask: Tensor | None  # (count, 1, 1, longest), added to the scores: 0 at tokens, −inf at padding; None without any


@dataclass(frozen=True)
class Groups:
    """The slots of all groups, and which token each slot holds.

    Attributes:
        token_of_slot: (slots,), int64; padding repeats the first token of its sequence, and is masked.
        slot_of_token: (tokens,), int64.
        sequence_order: (num_sequences,), int64: the sequences in the order of the groups.
        inverse_order: (num_sequences,), int64: the position of each sequence in that order.
        first_slot: (slots,), int64: the first slot of each slot's sequence.
        longest: (slots,), int64: the length of each slot's group.
        window: Largest distance that a token sees; None without a limit.
    """

    groups: tuple[Group, ...]
    token_of_slot: Tensor
    slot_of_token: Tensor
    sequence_order: Tensor
    inverse_order: Tensor
    first_slot: Tensor
    longest: Tensor
    window: int | None = None
    _by_head: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def by_head(self, num_heads: int) -> tuple[Tensor, Tensor]:
        """Return token_of_slot and slot_of_token for rows of one head each; computed once.

        A packed row holds all heads, but a product needs (count, heads, longest, head_size) in memory. Token t's head h
        is row t · heads + h of the packed rows → row_of_slot (slots · heads,), slot_of_row (tokens · heads,).
        """
        if num_heads not in self._by_head:
            head = torch.arange(num_heads, device=self.token_of_slot.device)
            # A sequence's heads follow each other, so the sequences before it take num_heads times their slots.
            slot = torch.arange(len(self.first_slot), device=head.device) + (num_heads - 1) * self.first_slot
            slot = slot[:, None] + head * self.longest[:, None]  # (slots, heads)
            rows = self.token_of_slot[:, None] * num_heads + head  # (slots, heads)
            row_of_slot = torch.empty_like(rows).flatten().index_copy_(0, slot.flatten(), rows.flatten())
            self._by_head[num_heads] = row_of_slot, slot.index_select(0, self.slot_of_token).flatten()
        return self._by_head[num_heads]


def group_by_length(
    lengths: Sequence[int], device: torch.device, dtype: torch.dtype, window: int | None = None
) -> Groups:
    """Plan the groups of a batch, once for all of its layers.

    Everything is computed on the host from `lengths`, and copied to the device at once, so that no step waits for it.
    """
    few_shapes = device.type == "cpu" and dtype == torch.bfloat16
    padded = [round_up(length, LENGTH_STEP) for length in lengths] if few_shapes else lengths
    # In the order of their lengths, neighbours differ little and share a group with little padding.
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    runs = _runs(order, padded)
    if few_shapes:
        runs = [part for run in runs for part in _powers_of_two(run)]

    sequence_order = torch.tensor(order)  # (num_sequences,), as are the next four
    length = torch.tensor(lengths)[sequence_order]
    longest = torch.tensor([padded[run[-1]] for run in runs for _ in run])  # of each sequence's group
    first_token = torch.tensor([0, *lengths]).cumsum(0)[sequence_order]
    first_slot = longest.cumsum(0) - longest
    # From one row per sequence to one per slot: (slots,).
    by_sequence = length, longest, first_token, first_slot
    length, longest, first_token, first_slot = (x.repeat_interleave(longest) for x in by_sequence)
    offset = torch.arange(len(longest)) - first_slot  # of each slot in its sequence
    is_token = offset < length
    token_of_slot = first_token + offset * is_token  # the first token at padding
    slot_of_token = torch.empty(sum(lengths), dtype=torch.int64)
    slot_of_token[token_of_slot[is_token]] = is_token.nonzero().flatten()

    indices = [token_of_slot, slot_of_token, sequence_order, torch.argsort(sequence_order), first_slot, longest]
    # One copy to the device instead of seven.
    copied = to_device(torch.cat([*indices, ~is_token]), device)
    token_of_slot, slot_of_token, sequence_order, inverse_order, first_slot, longest, is_padding = copied.split(
        [*map(len, indices), len(is_token)]
    )
    mask = torch.zeros(len(is_token), dtype=dtype, device=device).masked_fill_(is_padding.bool(), -math.inf)
    groups, start = [], 0
    for run in runs:
        count, longest_of_run = len(run), padded[run[-1]]
        slots = slice(start, start + count * longest_of_run)
        group_mask = None
        if lengths[run[0]] < longest_of_run:  # the shortest is the first
            # A tensor of its own, because the fused CUDA kernel reads masks in aligned blocks.
            group_mask = mask[slots].view(count, 1, 1, longest_of_run).clone()
        groups.append(Group(start, count, longest_of_run, group_mask))
        start = slots.stop
    return Groups(
        tuple(groups), token_of_slot, slot_of_token, sequence_order, inverse_order, first_slot, longest, window
    )


def _runs(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Divide sequences, in the order of their lengths, into runs of near-equal length."""
    runs: list[list[int]] = []
    tokens = 0
    for sequence in order:
        # If this sequence joined the last run, every sequence of the run would be padded to its length.
        slots = (len(runs[-1]) + 1) * lengths[sequence] if runs else 0
        if not runs or (slots - tokens - lengths[sequence]) > PADDING_BOUND * slots:
            runs.append([])
            tokens = 0
        runs[-1].append(sequence)
        tokens += lengths[sequence]
    return runs


def _powers_of_two(run: list[int]) -> Iterator[list[int]]:
    """Divide a run into parts of 1, 2, 4, 8, … sequences, the largest first."""
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
    """Compute the same as `attend_plain` in groups; `scores`, if given, replaces q kᵀ."""
    head_size = query.shape[-1] // num_heads
    row_of_slot, slot_of_row = groups.by_head(num_heads)
    sizes = [group.count * num_heads * group.longest for group in groups.groups]

    def in_groups(x: Tensor) -> Sequence[Tensor]:
        return _rearrange(x.reshape(-1, head_size), row_of_slot, slot_of_row).split(sizes)

    keys, values = in_groups(key), in_groups(value)  # for each group (count · heads · longest, head_size)
    query = query / math.sqrt(head_size)  # not the scores, which are more numbers
    if first_only:
        counts = [group.count for group in groups.groups]
        queries = _rearrange(query, groups.sequence_order, groups.inverse_order).split(counts)
    else:
        queries = in_groups(query)
    outputs = []
    # A batch of 16 has a few groups, so the loop has a few turns, where one over sequences would have 16.
    for group, q, k, v in zip(groups.groups, queries, keys, values, strict=True):
        # A view, because the rows were selected in the order (sequence, head, token).
        # (count, heads, 1 or longest, head_size)
        q, k, v = (x.view(group.count, num_heads, -1, head_size) for x in (q, k, v))
        mask = group.mask
        if prefix is not None:
            k, v = (prepend(virtual, x) for virtual, x in zip(prefix, (k, v), strict=True))
            mask = None if mask is None else F.pad(mask, (len(prefix[0]), 0))  # 0: every token sees the prefix
        if groups.window is not None and group.longest > groups.window + 1:
            from minipeft.model.attention.window import attend_window  # ModernBERT alone

            output = attend_window(q, k, v, mask, groups.window, dropout)
        else:
            output = _attend(q, k, v, mask, dropout, scores)
        outputs.append(output.reshape(-1, query.shape[-1] if first_only else head_size))
    # The groups' rows lie end to end again; one selection puts them in the order of the batch.
    output = torch.cat(outputs)  # (num_sequences, hidden_size), or (slots · heads, head_size)
    if first_only:
        return _rearrange(output, groups.inverse_order, groups.sequence_order)
    return _rearrange(output, slot_of_row, row_of_slot).view(query.shape)


def prepend(prefix: Tensor, x: Tensor) -> Tensor:
    """(num_virtual_tokens, hidden_size) before x (count, heads, longest, head_size), along the tokens."""
    count, num_heads = x.shape[:2]
    heads = prefix.to(x.dtype).unflatten(-1, (num_heads, -1)).transpose(0, 1)  # (heads, num_virtual_tokens, head_size)
    return torch.cat([heads.expand(count, -1, -1, -1), x], dim=2)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, probability: float, scores_of: Scores | None = None
) -> Tensor:
    """softmax(q kᵀ + mask) v; q has been divided by √head_size."""
    longest = LONGEST_BY_BF16_PRODUCTS if q.dtype == torch.bfloat16 else LONGEST_BY_PRODUCTS
    if scores_of is None and (q.device.type != "cpu" or (k.shape[-2] > longest and probability == 0)):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=probability, scale=1.0)
    dtype = q.dtype
    if q.shape[-2] == 1:  # a product of one row is too small to compile a bfloat16 kernel for
        q, k, v = q.float(), k.float(), v.float()
    scores: Tensor = _Scores.apply(q, k) if scores_of is None else scores_of(q, k)  # type: ignore[no-untyped-call]
    if mask is not None:
        scores += mask
    return (dropout(torch.softmax(scores, dim=-1), probability) @ v).to(dtype)


class _Scores(torch.autograd.Function):
    """q kᵀ. Its own backward pass computes the gradient of k with the same kernel as the gradient of v."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor) -> Tensor:
        ctx.save_for_backward(q, k)
        return q @ k.transpose(-1, -2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        q, k = ctx.saved_tensors
        grad_q = grads[0] @ k if ctx.needs_input_grad[0] else None
        grad_k = grads[0].transpose(-1, -2) @ q if ctx.needs_input_grad[1] else None
        return grad_q, grad_k


def _rearrange(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    return _Rearrange.apply(x, index, inverse)  # type: ignore[no-untyped-call]


class _Rearrange(torch.autograd.Function):
    """x[index], where `inverse` is the row of the result that holds each row of x.

    The gradient is a selection of rows too, without the scattered additions of index_select's backward pass. Two cases
    occur. The result holds every row of x, and padding repeats some: those have gradient zero, because they are masked.
    Or each row of the result is another row of x.
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
