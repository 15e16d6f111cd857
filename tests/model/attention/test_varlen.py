"""The variable-length attention against its plain twin and the groups, with the operators of varlen_operators.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import largest, ragged, reference_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from varlen_operators import plan_as_on_cuda

from minipeft import IA3, BitFit, Full, LoRA, PrefixTuning, PromptTuning, apply, load_pretrained, pack
from minipeft.data.batches.packing import PackedBatch
from minipeft.model import roberta
from minipeft.model.attention import attend, attend_plain
from minipeft.model.attention.varlen import Varlen, plan_varlen, prefix_rows, prepend_to_each

RAGGED = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def batch_of(lengths: list[int]) -> PackedBatch:
    """A batch of which only the lengths matter."""
    tokens, starts = torch.zeros(sum(lengths), dtype=torch.int64), torch.tensor([0, *lengths]).cumsum(0).int()
    return PackedBatch(tokens, tokens, None, starts, max(lengths), tuple(lengths))


@pytest.mark.parametrize("first_only", [False, True])
@given(lengths=RAGGED, num_heads=st.integers(1, 3), head_size=st.integers(1, 5), virtual=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
@example(lengths=[1, 512, 300, 3], num_heads=2, head_size=8, virtual=0)
@example(lengths=[1, 512, 300, 3], num_heads=2, head_size=8, virtual=20)
@example(lengths=[1], num_heads=1, head_size=1, virtual=0)
def test_varlen_equals_plain_forward_and_backward(
    first_only: bool, lengths: list[int], num_heads: int, head_size: int, virtual: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [len(lengths) if first_only else sum(lengths), sum(lengths), sum(lengths)] + [virtual] * 2 * (virtual > 0)
    tensors = [torch.randn(count, num_heads * head_size, generator=generator).requires_grad_() for count in rows]
    prefix = (tensors[3], tensors[4]) if virtual else None
    plan = plan_varlen(batch_of(lengths), virtual)
    plain = attend_plain(*tensors[:3], lengths, num_heads, first_only=first_only, prefix=prefix)
    fast = attend(*tensors[:3], plan, num_heads, first_only=first_only, prefix=prefix)
    assert largest(plain, fast) < 1e-5
    weights = torch.linspace(-1, 1, plain.numel()).view(plain.shape)
    expected, found = (torch.autograd.grad((output * weights).sum(), tensors) for output in (plain, fast))
    for a, b in zip(expected, found, strict=True):
        assert largest(a, b) < 1e-4


@given(lengths=RAGGED, number=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_rows_stand_before_each_sequence(lengths: list[int], number: int) -> None:
    batch = batch_of(lengths)
    first, own = -1 - torch.arange(number), torch.arange(batch.total_tokens)
    expected = torch.cat([part for piece in own.split(lengths) for part in (first, piece)])
    assert torch.equal(prepend_to_each(first, own, prefix_rows(batch, number)), expected)


@pytest.mark.parametrize("virtual", [0, 3])
def test_dropout_falls_on_the_weights_with_the_plain_distribution(virtual: int) -> None:
    """Equal scores, values of 1: each row sums kept weights of 1 / (L (1 − p)): mean 1, variance p / (L (1 − p))."""
    probability, heads, length, count = 0.3, 4, 8, 2500
    torch.manual_seed(0)
    query, key, value = torch.zeros(count, heads), torch.zeros(count * length, heads), torch.ones(count * length, heads)
    prefix = (key[:virtual], value[:virtual]) if virtual else None
    plan = plan_varlen(batch_of([length] * count), virtual)
    output = attend(query, key, value, plan, heads, probability, first_only=True, prefix=prefix)
    length += virtual
    variance, draws = probability / (length * (1 - probability)), output.numel()
    assert abs(float(output.mean()) - 1) < 4 * math.sqrt(variance / draws)
    kept = output * length * (1 - probability)
    assert largest(kept, kept.round()) < 1e-3  # whole weights are dropped
    share = 1 - float(kept.sum()) / (draws * length)
    assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / (draws * length))


@pytest.mark.parametrize(
    "method",
    [Full(), BitFit(), LoRA(), IA3(), PromptTuning(3), PrefixTuning(3)],
    ids=lambda method: type(method).__name__,
)
def test_a_model_computes_the_same_either_way(method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference_model().save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = apply(load_pretrained(tmp_path), method)
    batch = pack(ragged((7, 1, 40, 3)), [0, 1, 0, 1], config=model.config)
    by_groups = step(model, batch)
    plans: list[Varlen] = []

    def as_on_cuda(*given: Any, **others: Any) -> Varlen:
        plans.append(plan_as_on_cuda(*given, **others))
        return plans[-1]

    monkeypatch.setattr(roberta, "plan_attention", as_on_cuda)
    for a, b in zip(by_groups, step(model, batch), strict=True):
        assert largest(a, b) < 1e-4
    with torch.inference_mode():
        assert largest(model(batch), by_groups[0]) < 1e-5
    assert len(plans) == 2  # once a batch


def step(model: roberta.SequenceClassifier, batch: PackedBatch) -> list[Tensor]:
    """The logits, and the gradients of the trainable parameters."""
    logits = model(batch)
    assert batch.labels is not None
    F.cross_entropy(logits, batch.labels, reduction="sum").backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return [logits.detach(), *gradients]
