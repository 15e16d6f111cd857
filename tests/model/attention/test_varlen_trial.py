"""The variable-length operators are tried before they are used, and what is wrong with one is found and said."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from varlen_operators import LIBRARY  # noqa: F401 - registers the operators on the CPU

from minipeft.model.attention import attend_plain, varlen_trial
from minipeft.model.attention.varlen import Varlen, attend_varlen
from minipeft.model.attention.varlen_trial import varlen_agrees

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def untried() -> Any:
    varlen_agrees.cache_clear()
    yield
    varlen_agrees.cache_clear()


def trial(attempt: Any, monkeypatch: pytest.MonkeyPatch, *given: Any) -> bool:
    monkeypatch.setattr(varlen_trial, "attend_varlen", attempt)
    return varlen_agrees(CPU, *given)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("with_dropout", [False, True])
@pytest.mark.parametrize("dtype, in_window", [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)])
@pytest.mark.parametrize("head_size", [8, 64])
def test_right_operators_pass(
    head_size: int, dtype: torch.dtype, in_window: bool, with_dropout: bool, inference: bool
) -> None:
    with torch.inference_mode(inference):
        assert varlen_agrees(CPU, dtype, head_size, in_window, with_dropout)


def joined(q: Tensor, k: Tensor, v: Tensor, plan: Varlen, num_heads: int) -> Tensor:
    cu_seqlens = torch.tensor([0, 6, 15], dtype=torch.int32)  # the first two sequences as one
    return attend_varlen(q, k, v, Varlen(cu_seqlens, cu_seqlens, cu_seqlens, 9, 9), num_heads)


def cannot(error: Exception) -> Any:
    def attempt(*_: Any) -> Tensor:
        raise error

    return attempt


WRONG = {
    "the result differs by": lambda q, *_: q * 0.9,
    "the result differs by 0.": joined,
    "the result differs by nan": lambda q, *_: q * math.nan,
    "no kernel image": cannot(RuntimeError("no kernel image\nis available")),
    "has no attribute": cannot(AttributeError("'_OpNamespace' 'aten' object has no attribute '_flash'")),
    "unexpected keyword": cannot(TypeError("unexpected keyword argument 'window_size_left'")),
    "No module named": cannot(ModuleNotFoundError("No module named 'torch.nn.attention.varlen'")),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("problem", WRONG)
def test_a_wrong_or_absent_operator_is_not_used_and_the_log_says_why(
    problem: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert not trial(WRONG[problem], monkeypatch, dtype, 8)
    assert not varlen_agrees(CPU, dtype, 8)  # and it is said once
    (message,) = [record.message for record in caplog.records if record.name == "minipeft"]  # torch may log too
    assert problem in message and message.endswith("slower groups instead") and "\n" not in message


@pytest.mark.parametrize("older", ["no operator", "no windows"])
def test_an_older_torch_without_an_operator_or_its_argument_falls_back(
    older: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    operator = torch.ops.aten._flash_attention_forward

    def flash_attention(**given: Any) -> Any:
        if older == "no operator":
            return torch.ops.aten._flash_attention_of_another_release(**given)
        names = {"window_size_left": "window_of_another_release"}
        return operator(**{names.get(name, name): value for name, value in given.items()})

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash_attention)
    assert varlen_agrees(CPU, torch.bfloat16, 8) == (older == "no windows")
    assert not varlen_agrees(CPU, torch.bfloat16, 8, in_window=True)
    assert "in windows" in caplog.messages[-1]


@pytest.mark.parametrize("head_size", [8, 64, 128, 256])
def test_the_trial_has_room_for_bfloat16(head_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(q: Tensor, k: Tensor, v: Tensor, plan: Varlen, num_heads: int) -> Tensor:  # rounds after each operation
        return attend_plain(q, k, v, [5, 1, 9], num_heads)

    assert trial(plain, monkeypatch, torch.bfloat16, head_size)


def scaled(q: Tensor, k: Tensor, v: Tensor, plan: Varlen, heads: int, dropout: float = 0.0) -> Tensor:
    return attend_varlen(q, k, v, plan, heads, dropout) * (1 - dropout)  # kept weights do not grow


def whole_outputs(q: Tensor, k: Tensor, v: Tensor, plan: Varlen, heads: int, dropout: float = 0.0) -> Tensor:
    return torch.nn.functional.dropout(attend_varlen(q, k, v, plan, heads), dropout)


def without(q: Tensor, k: Tensor, v: Tensor, plan: Varlen, heads: int, dropout: float = 0.0) -> Tensor:
    return attend_varlen(q, k, v, plan, heads)


def other_in_backward(q: Tensor, k: Tensor, v: Tensor, plan: Varlen, heads: int, dropout: float = 0.0) -> Tensor:
    straight = attend_varlen(q, k, v, plan, heads)
    return straight + (attend_varlen(q, k, v, plan, heads, dropout) - straight).detach()


@pytest.mark.parametrize("attempt", [scaled, whole_outputs, without, other_in_backward])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_wrong_dropout_is_found(attempt: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trial(attempt, monkeypatch, dtype, 8)
    torch.manual_seed(0)
    assert not trial(attempt, monkeypatch, dtype, 8, False, True)
