"""The report of an evaluation: numbers equal to scikit-learn's, and files for a split, a file and regression."""

from __future__ import annotations

import json
import sys
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import classification_report, mean_absolute_error, root_mean_squared_error
from sklearn.metrics import confusion_matrix as reference_matrix

from minipeft import load_run, train
from minipeft.cli.cli import main
from minipeft.data.tasks.task import Split, Task
from minipeft.inference import evaluation_report as report_module
from minipeft.inference.evaluation_files import describe_matrix, format_table, render_report, write_report
from minipeft.inference.evaluation_report import build_report
from minipeft.inference.predict import LoadedRun
from minipeft.problems.figures import calibration
from minipeft.problems.multi_label import MultiLabel
from minipeft.problems.regression import Regression
from minipeft.problems.single_label import SingleLabel
from minipeft.version import __version__

NAMES = ("a", "b & <c>", "d")
CONFIDENCE = st.one_of(st.floats(0, 1), st.integers(0, 15).map(lambda number: number / 15))
ROWS = st.lists(st.tuples(st.integers(0, 2), st.lists(st.floats(-9, 9, width=32), min_size=3, max_size=3)), min_size=1)


class Fixed:
    """A run whose logits are given: text i is the number of its row."""

    def __init__(self, logits: list[list[float]], task: Task) -> None:
        self.logits, self.task = torch.tensor(logits, dtype=torch.float32), task
        self.settings = {"model": "test"}

    def predict_logits(self, texts: list[str], pairs: list[str] | None = None) -> torch.Tensor:
        return self.logits[[int(text) for text in texts]]


def report_of(
    logits: list[list[float]],
    labels: list[Any],
    names: tuple[str, ...] = NAMES,
    chunk: int = 7,
    task: Task | None = None,
) -> Any:
    task = task or Task("task", ("text",), SingleLabel(names) if names else Regression())
    chunks = [
        Split(task, list(map(str, range(start, min(start + chunk, len(labels))))), None, labels[start : start + chunk])
        for start in range(0, len(labels), chunk)
    ]
    run: Any = Fixed(logits, task)
    return build_report(run, chunks, "test")


@settings(max_examples=30, deadline=None)
@given(ROWS, st.integers(1, 9))
def test_figures_are_those_of_scikit_learn(rows: list[tuple[int, list[float]]], chunk: int) -> None:
    labels, logits = [label for label, _ in rows], [values for _, values in rows]
    report = report_of(logits, labels, chunk=chunk)
    predicted = torch.tensor(logits).argmax(1).tolist()
    occurring = sorted({*labels, *predicted})
    expected = classification_report(
        labels, predicted, labels=[0, 1, 2], target_names=NAMES, output_dict=True, zero_division=0
    )
    for row in report["classes"]:
        of_class = expected[row["label"]]
        for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert row[ours] == pytest.approx(of_class[theirs], abs=1e-12)
        assert row["support"] == of_class["support"]
    expected = classification_report(labels, predicted, labels=occurring, output_dict=True, zero_division=0)
    same = (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score"), ("support", "support"))
    for kind in ("macro", "weighted"):
        for ours, theirs in same:
            assert report["averages"][kind][ours] == pytest.approx(expected[f"{kind} avg"][theirs], abs=1e-12)
    assert report["averages"]["macro"]["f1"] == pytest.approx(report["metrics"]["macro_f1"], abs=1e-12)
    matrix = reference_matrix(labels, predicted, labels=[0, 1, 2])
    assert report["confusion_matrix"] == {"labels": list(NAMES), "rows": matrix.tolist()}
    counts = [(row["label"], row["prediction"], row["count"]) for row in report["confusions"]]
    assert sum(count for *_, count in counts) == matrix.sum() - matrix.trace()
    assert all(matrix[NAMES.index(label), NAMES.index(other)] == count for label, other, count in counts)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(CONFIDENCE, st.booleans()), min_size=1))
def test_the_calibration_error_is_the_plain_definition(pairs: list[tuple[float, bool]]) -> None:
    found = calibration(np.array([p for p, _ in pairs]), np.array([c for _, c in pairs]))
    error = 0.0
    edges = np.linspace(0, 1, 16).tolist()
    for low, high, row in zip(edges[:-1], edges[1:], found["bins"], strict=True):
        inside = [(p, c) for p, c in pairs if (low < p <= high) or (p == 0 and low == 0)]
        assert row["examples"] == len(inside)
        if inside:
            accuracy = sum(c for _, c in inside) / len(inside)
            confidence = sum(p for p, _ in inside) / len(inside)
            error += len(inside) / len(pairs) * abs(accuracy - confidence)
    assert found["expected_calibration_error"] == pytest.approx(error, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(ROWS, st.integers(1, 9))
def test_the_mistakes_are_the_most_confident_ones(rows: list[tuple[int, list[float]]], chunk: int) -> None:
    labels, logits = [label for label, _ in rows], torch.tensor([values for _, values in rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_module, "MISTAKES", 4)
        found = report_of(logits.tolist(), labels, chunk=chunk)["mistakes"]
    confidence = logits.double().softmax(1).max(1).values.tolist()
    wrong = [place for place in range(len(rows)) if int(logits[place].argmax()) != labels[place]]
    expected = sorted(wrong, key=lambda place: -confidence[place])[:4]
    assert [row["index"] for row in found] == expected == [int(row["text"]) for row in found]
    for row, place in zip(found, expected, strict=True):
        assert row["label"] == NAMES[labels[place]] and row["prediction"] == NAMES[int(logits[place].argmax())]
        assert row["confidence"] == confidence[place]


SETS = st.lists(
    st.tuples(st.sets(st.integers(0, 2)).map(sorted).map(tuple), *[st.floats(-4, 4, width=32)] * 3), min_size=1
)


@settings(max_examples=30, deadline=None)
@given(SETS, st.sampled_from([0.3, 0.5, 0.8]), st.integers(1, 9))
def test_figures_of_sets_of_labels_are_those_of_scikit_learn(
    rows: list[tuple[Any, ...]], threshold: float, chunk: int
) -> None:
    labels, logits = [row[0] for row in rows], [list(row[1:]) for row in rows]
    task = Task("task", ("text",), MultiLabel(NAMES, thresholds=(threshold,)), ("micro_f1",))
    report = report_of(logits, labels, chunk=chunk, task=task)
    probabilities = torch.tensor(logits).double().sigmoid().numpy()
    predicted = probabilities >= threshold
    actual = np.array([[number in row for number in range(3)] for row in labels])
    expected = classification_report(actual, predicted, target_names=NAMES, output_dict=True, zero_division=0)
    averages = [
        (f"{kind} avg", row) for kind, row in report["averages"].items() if kind == "micro" or actual.any(0).all()
    ]
    assert len(averages) in (1, 3)
    same = (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score"), ("support", "support"))
    for name, row in [*((row["label"], row) for row in report["classes"]), *averages]:
        for ours, theirs in same:
            assert row[ours] == pytest.approx(expected[name][theirs], abs=1e-12)
    assert [row["support"] for row in report["classes"]] == actual.sum(0).tolist()
    wrong = np.where(predicted == actual, 0.0, np.abs(probabilities - actual)).max(1)
    confidences = [row["confidence"] for row in report["mistakes"]]
    assert confidences == pytest.approx(sorted(wrong[wrong > 0], reverse=True)[:20], abs=1e-12)
    assert len({row["index"] for row in report["mistakes"]}) == len(confidences)
    for row in report["mistakes"]:
        assert row["label"] == [NAMES[number] for number in labels[row["index"]]]
        assert row["prediction"] == [NAMES[number] for number in np.flatnonzero(predicted[row["index"]])]
        number = NAMES.index(row["wrong"])
        assert predicted[row["index"], number] != actual[row["index"], number]
        assert row["confidence"] == pytest.approx(abs(probabilities - actual)[row["index"], number], abs=1e-12)
        assert row["confidence"] == pytest.approx(wrong[row["index"]], abs=1e-12)
    assert "confusion_matrix" not in report and "A label is predicted from" in render_report(report)


def test_regression_has_errors_and_the_largest_of_them() -> None:
    labels, scores = [1.0, 2.0, 3.0, 4.0], [1.5, 2.0, 0.5, 4.25]
    report = report_of([[score] for score in scores], labels, (), chunk=3)
    assert report["errors"]["mean_absolute_error"] == pytest.approx(mean_absolute_error(labels, scores))
    assert report["errors"]["root_mean_squared_error"] == pytest.approx(root_mean_squared_error(labels, scores))
    assert [(row["index"], row["label"], row["prediction"]) for row in report["mistakes"]] == [
        (2, 3.0, 0.5),
        (0, 1.0, 1.5),
        (3, 4.0, 4.25),
    ]
    assert "classes" not in report and "Largest errors" in render_report(report)


# -- files --


@pytest.fixture(scope="module")
def reviews(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A custom file of three classes, and a run on it."""
    folder = tmp_path_factory.mktemp("report")
    rows = [{"text": f"film {number} <b>{number % 3}</b>", "label": NAMES[number % 3]} for number in range(60)]
    (folder / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        train(
            data=str(folder / "reviews.jsonl"),
            model=str(tiny_checkpoint),
            method="head",
            epochs=1,
            precision="fp32",
            output=str(folder / "run"),
            quiet=True,
        )
    return folder / "reviews.jsonl", folder / "run"


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[dict[str, float], str]:
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments)]) == 0
    out, errors = capsys.readouterr()
    return json.loads(out), errors


class Page(HTMLParser):
    """Counts tags, and checks that they are nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "link", "path", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_report_on_a_file_holds_what_evaluate_prints(
    reviews: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = reviews
    plain, _ = evaluated(capsys, run, "--input", data)
    printed, said = evaluated(capsys, run, "--input", data, "--report", tmp_path / "report")
    assert printed == plain
    assert f"{tmp_path / 'report'}: confusion_matrix.png, confusion_matrix.txt, report.html, report.json" in said
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["metrics"] == plain and report["examples"] == 60 and report["data"] == str(data)
    of_run = {"run": str(run), "method": "head", "minipeft": __version__, "date": date.today().isoformat()}
    assert {name: report[name] for name in of_run} == of_run
    assert [row["support"] for row in report["classes"]] == [20, 20, 20]
    assert (tmp_path / "report" / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "b &amp; &lt;c&gt;" in page and "<b>" not in page and "http" not in page
    assert all(value in page for value in (*of_run.values(), Path(report["model"]).name))
    rows = sum(1 for tag in Page(page).tags if tag == "tr")
    mistakes, confusions, figures = len(report["mistakes"]), len(report["confusions"]), len(report["metrics"])
    assert rows == figures + (1 + 3 + 2) + (1 + 3) + (1 + confusions) + (1 + mistakes)
    error = refused(["evaluate", run, "--input", data, "--report", tmp_path / "report"], tmp_path, capsys)
    assert "already holds a report. Choose another --report" in error


def test_a_report_on_a_split_of_a_task_and_without_matplotlib(
    small_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for task in ("sst2", "rte"):
        plain, _ = evaluated(capsys, small_runs[task])
        printed, _ = evaluated(capsys, small_runs[task], "--report", tmp_path / task)
        assert printed == pytest.approx(plain, abs=1e-3) and printed["accuracy"] == plain["accuracy"]
        report = json.loads((tmp_path / task / "report.json").read_text())
        assert report["data"].endswith("split validation") and ("pair" in report["mistakes"][0]) == (task == "rte")
        names = sorted(path.name for path in (tmp_path / task).iterdir())
        assert names == ["confusion_matrix.txt", "report.html", "report.json"]
    printed, _ = evaluated(capsys, small_runs["sst2"], "--split", "train", "--report", tmp_path / "train")
    assert json.loads((tmp_path / "train" / "report.json").read_text())["examples"] == 96


@pytest.mark.full
def test_a_report_on_a_run_of_several_labels_per_text(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"text": f"film {number}", "label": [NAMES[n] for n in range(3) if number >> n & 1]} for number in range(64)
    ]
    (tmp_path / "sets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(
        data=str(tmp_path / "sets.jsonl"),
        label_type="multilabel",
        model=str(tiny_checkpoint),
        method="head",
        epochs=1,
        precision="fp32",
        output=str(tmp_path / "run"),
        quiet=True,
    )
    plain, _ = evaluated(capsys, tmp_path / "run", "--input", tmp_path / "sets.jsonl")
    printed, _ = evaluated(
        capsys, tmp_path / "run", "--input", tmp_path / "sets.jsonl", "--report", tmp_path / "report"
    )
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert printed == plain == report["metrics"] and [row["support"] for row in report["classes"]] == [32, 32, 32]
    assert report["averages"]["micro"]["f1"] == pytest.approx(plain["micro_f1"])
    names = [path.name for path in sorted((tmp_path / "report").iterdir())]
    assert names == ["report.html", "report.json"] and Page((tmp_path / "report" / "report.html").read_text()).tags


def test_a_terminal_gets_a_table_and_everything_else_json(
    reviews: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["evaluate", str(reviews[1])]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["eval_loss", "accuracy", "macro_f1"]
    assert main(["evaluate", str(reviews[1]), "--report", str(tmp_path / "report")]) == 0
    assert capsys.readouterr().out == out
    assert "b & <c>" in out and "macro average" in out and "expected calibration error" in out
    assert main(["evaluate", str(reviews[1]), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"eval_loss", "accuracy", "macro_f1"}


def test_bad_folders_are_refused_before_anything_is_computed(
    reviews: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(LoadedRun, "predict_logits", never)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for folder in ("full", "full/mine.txt"):
        error = refused(["evaluate", reviews[1], "--report", tmp_path / folder], tmp_path, capsys)
        assert str(tmp_path / folder) in error and "--report" in error and "--output" not in error


def test_of_many_classes_the_most_frequent_confusions_are_shown(tmp_path: Path) -> None:
    names = tuple(f"class {number}" for number in range(300))
    logits = torch.eye(300)[torch.arange(300).roll(1)].tolist()
    report = report_of(logits, list(range(300)), names)
    assert report["confusion_matrix"] is None and len(report["confusions"]) == 20
    files = write_report(report, tmp_path / "report")
    assert [file.name for file in files] == ["report.html", "report.json"]
    assert "largest cells outside the diagonal" in (tmp_path / "report" / "report.html").read_text()


def test_text_tables_are_aligned() -> None:
    matrix = {"labels": ["a", "a long\nname of a class that is cut"], "rows": [[10, 2], [0, 3]]}
    lines = describe_matrix(matrix).splitlines()
    assert len({len(line) for line in lines}) == 1 and "…" in lines[2] and lines[1].split() == ["a", "10", "2"]
    assert format_table([["x", "1"], ["yy", "10"]]) == "x    1\nyy  10\n"


def test_a_run_may_be_reported_from_python(reviews: tuple[Path, Path]) -> None:
    report = report_module.report_split(load_run(reviews[1], "cpu"))
    assert report["examples"] == 6 and report["metrics"] == pytest.approx(load_run(reviews[1], "cpu").evaluate())
