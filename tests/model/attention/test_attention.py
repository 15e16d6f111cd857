"""The fast attention against its plain twin: forward, backward, dropout; and the plan of its groups."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import largest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from minipeft.model.attention import attend_plain
from minipeft.model.attention.grouped import (
    LENGTH_STEP,
    LONGEST_BY_BF16_PRODUCTS,
    LONGEST_BY_PRODUCTS,
    PADDING_BOUND,
    attend_grouped,
    group_by_length,
)

CPU, FLOAT = torch.device("cpu"), torch.float32
RAGGED = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def inputs(
    lengths: list[int], num_heads: int, head_size: int, first_only: bool, virtual: int = 0, seed: int = 0
) -> list[Tensor]:
    """query, key and value; with `virtual`, the key and value of a prefix as well."""
    generator = torch.Generator().manual_seed(seed)
    rows = [len(lengths) if first_only else sum(lengths), sum(lengths), sum(lengths)] + [virtual] * 2 * (virtual > 0)
    return [torch.randn(count, num_heads * head_size, generator=generator).requires_grad_() for count in rows]


def with_gradients(output: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    return [output, *torch.autograd.grad((output * weights).sum(), tensors)]


def compare(lengths: list[int], num_heads: int, head_size: int, first_only: bool, virtual: int = 0) -> None:
    tensors = inputs(lengths, num_heads, head_size, first_only, virtual)
    (query, key, value), prefix = tensors[:3], (tensors[3], tensors[4]) if virtual else None
    groups = group_by_length(lengths, CPU, FLOAT)
    plain = attend_plain(query, key, value, lengths, num_heads, first_only=first_only, prefix=prefix)
    fast = attend_grouped(query, key, value, groups, num_heads, first_only=first_only, prefix=prefix)
    for a, b in zip(with_gradients(plain, tensors), with_gradients(fast, tensors), strict=True):
        assert largest(a, b) < 1e-5


@pytest.mark.parametrize("first_only", [False, True])
@given(lengths=RAGGED, num_heads=st.integers(1, 3), head_size=st.integers(1, 5), virtual=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
@example(lengths=[20, 19, 20, 18, 1], num_heads=2, head_size=4, virtual=0)  # a group with padding
@example(lengths=[20, 19, 20, 18, 1], num_heads=2, head_size=4, virtual=7)  # and with a prefix before it
@example(lengths=[1], num_heads=1, head_size=1, virtual=0)
def test_grouped_equals_plain_forward_and_backward(
    first_only: bool, lengths: list[int], num_heads: int, head_size: int, virtual: int
) -> None:
    compare(lengths, num_heads, head_size, first_only, virtual)


@pytest.mark.parametrize("virtual", [0, 5])
@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize(
    "lengths",
    [
        [LONGEST_BY_PRODUCTS, LONGEST_BY_PRODUCTS - 1, LONGEST_BY_PRODUCTS + 1],
        [300, 280, 512, 3, 500, 290],
        [LONGEST_BY_PRODUCTS + 1] * 3,
    ],
    ids=str,
)
def test_grouped_equals_plain_at_lengths_for_the_fused_kernel(
    lengths: list[int], first_only: bool, virtual: int
) -> None:
    compare(lengths, 2, 8, first_only, virtual)


def test_long_lengths_of_different_size_share_a_masked_group() -> None:
    groups = group_by_length([300, 290, 280], CPU, FLOAT).groups
    assert len(groups) == 1 and groups[0].mask is not None  # so the test above covers a mask in the fused kernel


def test_plain_is_the_equation() -> None:
    query, key, value = inputs([6], 1, 4, first_only=False)
    expected = torch.softmax(query @ key.T / math.sqrt(4), dim=-1) @ value
    assert largest(attend_plain(query, key, value, [6], 1), expected) < 1e-6


def test_a_prefix_stands_before_every_sequence() -> None:
    lengths = [6, 1, 9]
    query, key, value, before_key, before_value = inputs(lengths, 1, 4, first_only=False, virtual=3)
    expected = [
        torch.softmax(q @ torch.cat([before_key, k]).T / math.sqrt(4), dim=-1) @ torch.cat([before_value, v])
        for q, k, v in zip(*(x.split(lengths) for x in (query, key, value)), strict=True)
    ]
    output = attend_plain(query, key, value, lengths, 1, prefix=(before_key, before_value))
    assert largest(output, torch.cat(expected)) < 1e-6


def test_sequences_do_not_see_each_other_nor_padding() -> None:
    lengths = [19, 20, 18]
    query, key, value = (x.detach() for x in inputs(lengths, 2, 4, first_only=False))
    groups = group_by_length(lengths, CPU, FLOAT)
    assert len(groups.groups) == 1 and groups.groups[0].mask is not None
    before = attend_grouped(query, key, value, groups, 2)
    key[:19], value[:19] = 1e4, -1e4
    after = attend_grouped(query, key, value, groups, 2)
    assert torch.equal(before[19:], after[19:])
    assert not torch.equal(before[:19], after[:19])


@given(lengths=st.lists(st.integers(1, 512), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_groups_hold_every_token_once_and_little_padding(lengths: list[int]) -> None:
    plan = group_by_length(lengths, CPU, FLOAT)
    tokens, count = sum(lengths), len(lengths)
    assert torch.equal(plan.token_of_slot[plan.slot_of_token], torch.arange(tokens))
    assert torch.equal(plan.sequence_order.sort().values, torch.arange(count))
    assert torch.equal(plan.sequence_order[plan.inverse_order], torch.arange(count))
    sequence_of_token = torch.repeat_interleave(torch.arange(count), torch.tensor(lengths))
    slot = sequence = 0
    for group in plan.groups:
        assert group.start == slot
        members = plan.sequence_order[sequence : sequence + group.count]
        real = torch.arange(group.longest) < torch.tensor(lengths)[members][:, None]  # (count, longest)
        slots = plan.token_of_slot[slot : slot + group.count * group.longest].view(group.count, group.longest)
        assert torch.equal(sequence_of_token[slots], members[:, None].expand_as(slots))  # padding repeats its own
        assert real[:, 0].all() and real[-1].all()
        assert int((~real).sum()) <= PADDING_BOUND * real.numel()
        if group.mask is None:
            assert real.all()
        else:
            assert group.mask.shape == (group.count, 1, 1, group.longest) and group.mask.dtype == FLOAT
            assert torch.equal(group.mask[:, 0, 0] == 0, real)
            assert torch.equal(group.mask[:, 0, 0] == -math.inf, ~real)
        slot, sequence = slot + real.numel(), sequence + group.count
    assert slot == len(plan.token_of_slot) and sequence == count


@given(lengths=RAGGED, num_heads=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_each_heads_part_of_a_token_stands_once_and_in_its_groups_order(lengths: list[int], num_heads: int) -> None:
    plan = group_by_length(lengths, CPU, FLOAT)
    row_of_slot, slot_of_row = plan.by_head(num_heads)
    assert torch.equal(row_of_slot[slot_of_row], torch.arange(sum(lengths) * num_heads))
    for group in plan.groups:
        slots = slice(group.start, group.start + group.count * group.longest)
        tokens = plan.token_of_slot[slots].view(group.count, 1, group.longest)
        expected = tokens * num_heads + torch.arange(num_heads)[:, None]  # (count, heads, longest)
        there = row_of_slot[slots.start * num_heads : slots.stop * num_heads]
        assert torch.equal(there.view_as(expected), expected)


@pytest.mark.parametrize("virtual", [0, 3])
@pytest.mark.parametrize("length", [8, LONGEST_BY_PRODUCTS + 4])
@pytest.mark.parametrize("attend", [attend_plain, attend_grouped])
def test_dropout_falls_on_the_weights_with_the_same_distribution(attend: object, length: int, virtual: int) -> None:
    """Equal scores, values of 1: each row sums kept weights of 1 / (L (1 − p)): mean 1, variance p / (L (1 − p))."""
    probability, heads, lengths = 0.3, 4, [length] * (20_000 // length)
    torch.manual_seed(0)
    query = torch.zeros(len(lengths), heads)
    key, value = torch.zeros(sum(lengths), heads), torch.ones(sum(lengths), heads)
    plan = lengths if attend is attend_plain else group_by_length(lengths, CPU, FLOAT)
    prefix = (key[:virtual], value[:virtual]) if virtual else None
    output = attend(query, key, value, plan, heads, probability, True, prefix)  # type: ignore[operator]
    length += virtual
    variance, draws = probability / (length * (1 - probability)), output.numel()
    assert abs(float(output.mean()) - 1) < 4 * math.sqrt(variance / draws)
    assert abs(float(output.var()) / variance - 1) < 4 * math.sqrt(2 / draws) + 2 / length / math.sqrt(draws)
    kept = output * length * (1 - probability)
    assert largest(kept, kept.round()) < 1e-3  # whole weights are dropped


@pytest.mark.parametrize("with_prefix", [False, True])
@pytest.mark.parametrize("first_only", [False, True])
def test_bfloat16_groups_agree_with_plain(first_only: bool, with_prefix: bool) -> None:
    """Scores and weights are rounded to 8 bits: the outputs, near 1 and below, to a few hundredths."""
    lengths = [20, 19, 3, 300, 290, LONGEST_BY_BF16_PRODUCTS + 1]  # the last by the fused kernel
    exact_inputs = inputs(lengths, 2, 8, first_only=first_only, virtual=4)
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact_inputs]
    plan = group_by_length(lengths, CPU, torch.bfloat16)
    fast, plain = (
        attend(*x[:3], how, 2, first_only=first_only, prefix=(x[3], x[4]) if with_prefix else None)
        for attend, x, how in ((attend_grouped, rounded, plan), (attend_plain, exact_inputs, lengths))
    )
    assert fast.dtype == torch.bfloat16 and largest(fast.float(), plain) < 0.06
    for output in (fast, plain):
        output.float().sin().sum().backward()
    for a, b in zip(rounded[: 5 if with_prefix else 3], exact_inputs, strict=False):
        assert a.grad is not None and b.grad is not None
        assert largest(a.grad.float(), b.grad) < 0.06 * (1 + float(b.grad.abs().max()))


@given(lengths=st.lists(st.integers(1, 512), min_size=1, max_size=60))
def test_bfloat16_groups_have_few_shapes(lengths: list[int]) -> None:
    plan = group_by_length(lengths, CPU, torch.bfloat16)
    assert all(group.count.bit_count() == 1 and group.longest % LENGTH_STEP == 0 for group in plan.groups)
    assert sum(group.count for group in plan.groups) == len(lengths)
    assert torch.equal(plan.token_of_slot.index_select(0, plan.slot_of_token), torch.arange(sum(lengths)))
