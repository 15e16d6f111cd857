"""Dropout against its definition: how often, how much, independently, and the same again from the same state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from minipeft.model.layers import dropout

PROBABILITIES = [0.01, 0.1, 0.25, 0.5, 0.9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", PROBABILITIES)
def test_a_number_is_dropped_with_its_probability_and_the_others_grow(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    y = dropout(torch.ones(999, 1001, dtype=dtype), probability)
    assert y.dtype == dtype
    dropped = y == 0
    assert binomtest(int(dropped.sum()), y.numel(), probability).pvalue > 1e-3
    expected = torch.tensor([1 / (1 - probability)], dtype=dtype)
    torch.testing.assert_close(y[~dropped].unique(), expected, rtol=1e-4 if dtype == torch.float32 else 0.01, atol=0)


@pytest.mark.parametrize("probability", PROBABILITIES)
def test_numbers_are_dropped_independently_of_their_neighbours(probability: float) -> None:
    """Pairs 1 to 5 apart, all four cases as often as they should."""
    torch.manual_seed(1)
    dropped = (dropout(torch.ones(500_000), probability) == 0).long()
    for distance in (1, 2, 3, 4, 5):
        pairs = 2 * dropped[:-distance:2] + dropped[distance::2]
        counts, q = torch.bincount(pairs, minlength=4).numpy(), 1 - probability
        expected = np.array([q * q, q * probability, probability * q, probability**2]) * len(pairs)
        assert chisquare(counts, expected).pvalue > 1e-3


@given(shape=st.lists(st.integers(0, 7), min_size=1, max_size=4), probability=st.sampled_from(PROBABILITIES))
@settings(deadline=None)
def test_the_gradient_passes_where_the_number_did_and_the_state_decides_which(
    shape: list[int], probability: float
) -> None:
    x = (torch.rand(shape) + 1).requires_grad_()
    torch.manual_seed(len(shape))
    state = torch.random.get_rng_state()
    y = dropout(x, probability)
    grad = torch.rand(shape)
    (dx,) = torch.autograd.grad(y, x, grad)
    factor = (y / x).detach()  # 0 or 1 / (1 − p)
    torch.testing.assert_close(dx, grad * factor)
    torch.random.set_rng_state(state)
    assert torch.equal(dropout(x, probability), y)


def test_without_a_probability_or_outside_training_nothing_is_drawn() -> None:
    x = torch.randn(5)
    state = torch.random.get_rng_state()
    assert dropout(x, 0.0) is x and dropout(x, 0.5, training=False) is x
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("probability", [0.00001, 1e-9, 1e-50])
def test_a_small_probability_is_exact(probability: float) -> None:
    torch.manual_seed(2)
    y = dropout(torch.ones(2**24 + 1, dtype=torch.float64), probability)  # float32 rounds this length
    assert float(y.max()) == 1 / (1 - probability)
    assert binomtest(int((y == 0).sum()), len(y), probability).pvalue > 1e-3


def test_numbers_in_another_order_in_memory_are_dropped_in_place_of_none() -> None:
    x = torch.arange(1.0, 13).view(3, 4).t().requires_grad_()
    torch.manual_seed(3)
    y = dropout(x, 0.5)
    (dx,) = torch.autograd.grad(y, x, torch.ones(()).expand(4, 3))
    torch.testing.assert_close(y, x * dx)
    assert 0 < int((y == 0).sum()) < 12


def test_all_can_be_dropped() -> None:
    assert not dropout(torch.ones(100), 1.0).any()
