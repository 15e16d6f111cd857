"""docs/report.md and docs/ablations.md: cells run, commands parse, tables and curves are those of the recorded rows."""

import importlib
import re
import shlex
import sys
from types import ModuleType
from typing import Any

import pytest
from conftest import REPOSITORY
from test_examples import parse

DOCS = REPOSITORY / "docs"


@pytest.fixture(scope="module")
def curves() -> ModuleType:
    """The script that draws the curves, which is no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(DOCS), *sys.path])
        return importlib.import_module("curves")


def test_the_ten_sentences_hold() -> None:
    text = (DOCS / "report.md").read_text(encoding="utf-8")
    assert re.findall(r"^\*\*(\d+)\. ", text, re.MULTILINE) == [str(number) for number in range(1, 11)]
    cells = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(cells) == 11 and all("assert " in cell for cell in cells)
    namespace: dict[str, Any] = {}
    for cell in cells:
        exec(cell, namespace)


def test_the_curves_are_those_of_the_recorded_rows(curves: ModuleType) -> None:
    for name, svg in curves.pictures().items():
        assert (DOCS / "_static" / name).read_text(encoding="utf-8") == svg, "run python docs/curves.py"


def test_a_study_that_was_not_run_says_so(curves: ModuleType) -> None:
    assert "not run" in "".join(curves.panel("RTE", "epoch", "loss", []))


def test_a_row_of_the_ablations_is_one_command_that_parses(curves: ModuleType) -> None:
    tables = importlib.import_module("ablation_tables")
    names = [row.name for row in tables.ROWS]
    assert len(set(names)) == len(names) and tables.REFERENCE in names
    for row in tables.ROWS:
        words = shlex.split(row.command())
        if row.flags:
            assert words[:2] == ["python", row.script]
            parse(["train.py", *words[2:]])
            once = [word for word in words if word.startswith("--")]
            assert len(once) == len(set(once)), row.name


def test_a_lesson_says_no_difference_within_two_standard_errors(curves: ModuleType) -> None:
    tables = importlib.import_module("ablation_tables")
    reference = [0.82, 0.82]
    assert "Not distinguishable" in tables.lesson("BitFit", [0.80, 0.81], reference)
    assert tables.lesson("BitFit", [0.90], reference).startswith("Better than the reference by 0.080")
    assert tables.lesson("BitFit", [0.70], reference).startswith("Worse")
    rows = [
        {"name": name, "seed": 42, "last": {"value": value}}
        for name, value in ((tables.REFERENCE, 0.82), ("BitFit", 0.80), ("bf16", 0.9))
    ]
    assert tables.close_to_reference(rows) == ["BitFit"]


def test_the_verdict_on_the_ranks_compares_the_seeds(curves: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = importlib.import_module("report_tables")

    def row(rank: int, seed: int, train: float, evaluation: float) -> dict[str, Any]:
        epoch = {"train_loss": train, "eval_loss": evaluation, "accuracy": 0.8}
        return {"part": "rank", "name": str(rank), "seed": seed, "epochs": [epoch]}

    rows = [row(1, 1, 0.50, 0.60), row(1, 2, 0.51, 0.62), row(64, 1, 0.30, 0.61), row(64, 2, 0.31, 0.61)]
    monkeypatch.setattr(tables, "entries", lambda name: {"CPU": {"rows": rows}})
    said = tables.report_verdict("en")
    assert "-0.200 ± 0.007" in said and "lowest rank fits less" in said and "no overfitting" in said
    monkeypatch.setattr(tables, "entries", lambda name: {"CPU": {"rows": rows[:2]}})
    assert "no conclusion" in tables.report_verdict("en")
