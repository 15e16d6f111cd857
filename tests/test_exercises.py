"""The exercises of the walkthroughs: a stub and a typical mistake get a hint, a solution is right."""

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, run_command

import minipeft

FOLDER = REPOSITORY / "walkthroughs"
FILES = sorted(path.stem for path in (FOLDER / "exercises").glob("[0-9]*.py"))
NAMES = ("compute", "change", "explain")


@pytest.fixture(scope="module", autouse=True)
def check() -> ModuleType:
    """The script that checks answers, which is no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(FOLDER), *sys.path])
        yield importlib.import_module("check")


def zero_both(layer: Any) -> str:
    torch.nn.init.zeros_(layer.lora_A)
    torch.nn.init.zeros_(layer.lora_B)
    return "A"


def freeze_queries(model: Any) -> int:
    for layer in model.encoder.layers:
        layer.query.bias.requires_grad_(False)
    return minipeft.count_parameters(model).method


def without_warmup(step: int, warmup_steps: int, total_steps: int) -> float:
    return 0.5 * (1 + float(np.cos(np.pi * step / total_steps)))


def with_variance(layer: Any) -> bool:
    torch.nn.init.normal_(layer.diagonal, std=0.02**0.5)
    return False


def sums_of_rows(q: torch.Tensor, k: torch.Tensor) -> tuple[float, float]:
    """The sum over the rows in the place of the mean."""
    weights = [torch.softmax(q @ k.T / scale, dim=1) for scale in (q.shape[1] ** 0.5, 1.0)]
    first, second = (float(-(w * w.log()).sum()) for w in weights)
    return first, second


def only_after_begin(tags: list[str]) -> list[tuple[int, int, str]]:
    """Every B- is an entity of one word."""
    return [(place, place + 1, tag[2:]) for place, tag in enumerate(tags) if tag.startswith("B-")]


# Typical mistakes: page → (compute, change, explain).
MISTAKES: dict[int, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    1: (
        lambda: (160, 400, 0.4),
        lambda batch: [ids.tolist() for ids in batch.input_ids.chunk(len(batch.lengths))],
        lambda: "abc",
    ),
    2: (lambda: 12 * 768**2, sums_of_rows, lambda: "bc"),
    3: (lambda: 768, zero_both, lambda: "c"),
    4: (lambda: 11 * 1024 * 24, freeze_queries, lambda: "a"),
    5: (lambda: (25 * 2490 // 64, 475 / 875), without_warmup, lambda: "b"),
    6: (
        lambda: 512 * 768 * 3072,
        lambda model: minipeft.apply(model, minipeft.LoRA(rank=8)),
        lambda: "d",
    ),
    7: (lambda: (0.9 * 0.1 / 408, 3600), lambda one, other: one.mean(axis=1) - other.mean(axis=1) > 1, lambda: "ac"),
    8: (lambda: 12 * 768, with_variance, lambda: "ad"),
    9: (lambda: 768 * 13, only_after_begin, lambda: "ab"),
}


def test_every_page_has_exercises_and_solutions_with_the_same_functions() -> None:
    pages = [path.stem for path in sorted(FOLDER.glob("[0-9]*.py"))]
    assert FILES == pages == sorted(path.stem for path in (FOLDER / "solutions").glob("*.py"))
    for name in FILES:
        stub, solution = (importlib.import_module(f"{folder}.{name}") for folder in ("exercises", "solutions"))
        for function in NAMES:
            assert getattr(stub, function).__doc__ and getattr(solution, function).__doc__, f"{name}, {function}"
            signatures = [inspect.signature(getattr(module, function)) for module in (stub, solution)]
            assert list(signatures[0].parameters) == list(signatures[1].parameters), f"{name}, {function}"


@pytest.mark.parametrize("name", FILES)
def test_a_solution_is_right_and_a_stub_and_a_typical_mistake_get_a_hint(
    check: ModuleType, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = int(name[:2])
    stub, solution = (importlib.import_module(f"{folder}.{name}") for folder in ("exercises", "solutions"))
    for function, mistake in zip(NAMES, MISTAKES[page], strict=True):
        assert check.is_right(page, getattr(solution, function)), capsys.readouterr().out
        assert capsys.readouterr().out.rstrip().endswith(": right")
        mistake.__name__ = function
        for answer in (getattr(stub, function), mistake):
            assert not check.is_right(page, answer)
            printed = capsys.readouterr().out
            assert re.search(r": not yet\. [`\w]", printed) and "raises" not in printed, printed


@pytest.mark.parametrize("name", FILES)
def test_a_hint_does_not_name_the_solution(check: ModuleType, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = int(name[:2])
    solution = importlib.import_module(f"solutions.{name}")
    for function, mistake in zip(NAMES, MISTAKES[page], strict=True):
        mistake.__name__ = function
        check.is_right(page, mistake)
    printed = capsys.readouterr().out.replace(",", "")
    value = solution.compute()
    for number in value if isinstance(value, tuple) else (value,):
        assert f"{number:g}" not in printed.split() and str(number) not in printed.split()
    assert f" {solution.explain()}" not in printed


def test_the_letters_of_statements_may_be_a_list_or_have_commas_and_capitals(check: ModuleType) -> None:
    letters = importlib.import_module("solutions.03_lora").explain()
    for answer in (list(letters), ", ".join(letters.upper()), letters[::-1]):

        def explain(answer: Any = answer) -> Any:
            return answer

        assert check.is_right(3, explain)


def test_an_answer_that_raises_is_reported(check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def compute() -> int:
        return int(1 / 0)

    assert not check.is_right(3, compute)
    assert "raises ZeroDivisionError" in capsys.readouterr().out


def test_the_command_checks_a_page_and_names_a_wrong_one(tmp_path: Path) -> None:
    done = run_command(FOLDER / "check.py", "3")
    assert done.returncode == 1 and done.stdout.count("not yet.") == 3, done.stderr
    done = run_command(FOLDER / "check.py", "99")
    assert done.returncode == 1 and "page 99 has no exercises. Name one of 1, 2" in done.stderr
