"""Multi-label runs: reading sets of labels, metrics against scikit-learn's, threshold, prediction, files, export."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import details_of, padded
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from small_runs import rows, small_run, without_times
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from minipeft import EncoderConfig, MinipeftError, load_run, pack
from minipeft.cli.cli import main, main_train
from minipeft.data.tasks.custom import inspect_custom_data
from minipeft.problems import class_metrics as ours
from minipeft.problems.calibration import thresholds_for_macro_f1, thresholds_for_micro_f1
from minipeft.problems.multi_label import MultiLabel
from minipeft.problems.numeric_metrics import average_precision

TOPICS = {"art": "paint gallery", "news": "vote minister", "sport": "goal match"}


def topic_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts with the words of their topics; a third of them have none."""
    chooser = random.Random(seed)
    found = []
    for _ in range(count):
        labels = [name for name in TOPICS if chooser.random() < 0.5]
        words = " ".join(chooser.choice(TOPICS[name].split()) for name in labels)
        found.append({"text": f"{words or 'plain'} {chooser.choice(['today', 'there'])}", "label": labels})
    return found


def write_jsonl(path: Path, found: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def write_csv(path: Path, found: list[dict[str, Any]], separator: str) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([row["text"], separator.join(row["label"])] for row in found)
    return path


@settings(deadline=None, max_examples=60)
@pytest.mark.filterwarnings("ignore:No positive class found")
@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(2, 5), st.booleans())
def test_the_metrics_are_scikit_learn_s(seed: int, count: int, num_labels: int, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    probabilities = generator.random((count, num_labels))
    probabilities = probabilities.round(1) if ties else probabilities
    labels = generator.random((count, num_labels)) < 0.4
    predictions = probabilities >= 0.5
    for average, metric in (("micro", ours.micro_f1), ("macro", ours.macro_f1)):
        expected = reference.f1_score(labels, predictions, average=average, zero_division=0)
        assert metric(predictions, labels) == pytest.approx(expected, abs=1e-12)
    expected = reference.average_precision_score(labels, probabilities, average="macro")
    assert average_precision(probabilities, labels) == pytest.approx(expected, abs=1e-12)
    found = probabilities >= thresholds_for_micro_f1(probabilities, labels)
    tried = [ours.micro_f1(probabilities >= one, labels) for one in np.unique(probabilities)]
    assert ours.micro_f1(found, labels) >= max(tried) - 1e-12  # one threshold for all labels
    found = probabilities >= thresholds_for_macro_f1(probabilities, labels)
    each = [
        max(reference.f1_score(actual, scores >= one, zero_division=0) for one in np.unique(scores))
        for actual, scores in zip(labels.T, probabilities.T, strict=True)
    ]
    assert ours.macro_f1(found, labels) == pytest.approx(np.mean(each), abs=1e-12)


def test_a_batch_has_a_row_of_zeros_and_ones_per_sequence() -> None:
    config = EncoderConfig().with_labels(["a", "b", "c"], "multi_label_classification")
    batch = pack([[0, 5, 2], [0, 2]], MultiLabel(("a", "b", "c")).as_packed([(0, 2), ()]), config=config)
    assert batch.labels is not None and batch.labels.dtype == torch.float32
    assert batch.labels.tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    with pytest.raises(MinipeftError, match=r"label \[1, 2, 0\] of sequence 0 is not a list of 3 zeros and ones"):
        pack([[0, 2]], [[1, 2, 0]], config=config)


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("topics") / "topics.jsonl", topic_rows(64))


SETTINGS: dict[str, Any] = {"task": "auto", "label_type": "multilabel", "train_limit": None, "eval_limit": None}


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, topics: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("multilabel") / "run"
    options = {"threshold": "auto", "holdout": 0.25, "class_weights": "balanced", "precision": "fp32", "seed": 1}
    return small_run(tiny_checkpoint, topics, folder, **SETTINGS, **options, lr=5e-3, epochs=3).output


def test_a_run_keeps_its_threshold_and_predicts_with_it(finished: Path, topics: Path) -> None:
    result, history = json.loads((finished / "result.json").read_text()), rows(finished)
    assert result["metric"] == "micro_f1"
    best = max(history, key=lambda row: row["holdout_micro_f1"])
    assert result["thresholds"] == best["thresholds"] == details_of(finished / "adapter")["thresholds"]
    assert details_of(finished / "adapter")["problem_type"] == "multi_label_classification"
    run = load_run(finished)
    values = run.evaluate()
    assert values == {name: best[name] for name in ("eval_loss", "micro_f1", "macro_f1", "average_precision")}
    found = topic_rows(12, seed=5)
    texts = [row["text"] for row in found]
    probabilities = run.predict_proba(texts)
    for row, prediction in zip(probabilities, run.predict(texts), strict=True):
        named = dict(zip(TOPICS, row, strict=True))
        chosen = zip(TOPICS, best["thresholds"], strict=True)
        assert prediction["labels"] == [name for name, threshold in chosen if named[name] >= threshold]
        assert prediction["probabilities"] == pytest.approx(named, abs=1e-6)


def test_files_of_predictions_and_evaluation_of_files(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = topic_rows(9, seed=7)
    source = write_jsonl(tmp_path / "in.jsonl", found)
    expected = load_run(finished).predict([row["text"] for row in found])
    for name in ("out.jsonl", "out.csv"):
        assert main(["predict", str(finished), "--input", str(source), "--output", str(tmp_path / name)]) == 0
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == expected
    with open(tmp_path / "out.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["labels", *(f"probability_{name}" for name in TOPICS)]
    assert [row["labels"] for row in table] == [";".join(row["labels"]) for row in expected]
    capsys.readouterr()
    values = load_run(finished).evaluate_file(str(source))
    labels = np.array([[name in row["label"] for name in TOPICS] for row in found])
    predictions = np.array([[name in row["labels"] for name in TOPICS] for row in expected])
    assert values["micro_f1"] == pytest.approx(reference.f1_score(labels, predictions, average="micro"))


def test_an_adapter_folder_and_an_export_predict_sets_of_labels(finished: Path, tmp_path: Path) -> None:
    run = load_run(finished)
    texts = [row["text"] for row in topic_rows(8, seed=9)]
    expected = run.predict(texts)
    adapter = load_run(finished / "adapter", precision="fp32")
    assert adapter.task.problem.thresholds == run.task.problem.thresholds and adapter.predict(texts) == expected
    run.export(tmp_path / "export")
    exported = load_run(tmp_path / "export", precision="fp32").predict(texts)
    for one, row in zip(exported, run.predict_proba(texts), strict=True):
        assert one["labels"] == [name for name, value in zip(TOPICS, row, strict=True) if value >= 0.5]
    assert main(["evaluate", str(finished), "--report", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert tuple(report["thresholds"]) == run.task.problem.thresholds


def test_transformers_uses_an_export_as_multi_label(finished: Path, tmp_path: Path) -> None:
    run = load_run(finished)
    run.export(tmp_path / "export")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export")
    assert theirs.config.problem_type == "multi_label_classification"
    found = topic_rows(6, seed=3)
    texts = [row["text"] for row in found]
    sequences = [list(ids) for ids in run.tokenizer.encode(texts)]
    labels = run.task.problem.as_packed([run.task.problem.read(row["label"], "") for row in found])
    loss = theirs(**padded(sequences), labels=torch.tensor(labels)).loss
    write_jsonl(tmp_path / "in.jsonl", found)
    assert run.evaluate_file(str(tmp_path / "in.jsonl"))["eval_loss"] == pytest.approx(loss.item(), abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    for scores, row in zip(
        pipeline("text-classification", theirs, tokenizer=tokenizer, top_k=None)(texts),
        run.predict_proba(texts),
        strict=True,
    ):
        assert {score["label"]: score["score"] for score in scores} == pytest.approx(
            dict(zip(TOPICS, row, strict=True)), abs=1e-5
        )


def test_csv_json_and_parquet_give_the_same_run(tiny_checkpoint: Path, topics: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    found = topic_rows(64)
    sources: dict[str, dict[str, Any]] = {
        str(topics): {},
        str(write_csv(tmp_path / "topics.csv", found, "|")): {"label_separator": "|"},
        str(tmp_path / "topics.parquet"): {},
    }
    Dataset.from_list(found).to_parquet(tmp_path / "topics.parquet")
    histories = []
    for number, (source, options) in enumerate(sources.items()):
        folder = tmp_path / f"run-{number}"
        small_run(tiny_checkpoint, Path(source), folder, **SETTINGS, **options, epochs=1)
        histories.append(without_times(rows(folder)))
        config = json.loads((folder / "config.json").read_text())
        assert config["label_type"] == "multilabel" and config["labels"] == list(TOPICS)
    assert histories[0] == histories[1] == histories[2]


def test_labels_that_look_like_lists_give_a_warning(tmp_path: Path) -> None:
    def warnings(values: list[str]) -> tuple[str, ...]:
        found = [{"text": f"text number {number}", "label": value} for number, value in enumerate(values * 6)]
        names = {"text_column": None, "pair_column": None, "label_column": None, "validation": None}
        source = str(write_jsonl(tmp_path / "rows.jsonl", found))
        return inspect_custom_data("auto", source, label_type="auto", **names).warnings

    (one,) = warnings(["a", "b", "a;b"])
    assert "the label 'a;b' looks like several labels and is read as one class" in one
    assert one.endswith("pass --label-type multilabel --label-separator ';'")
    assert warnings(["a|b", "b|c"])[0].endswith("--label-separator '|'")
    assert warnings(['["a", "b"]', '["b"]'])[0].endswith("pass --label-type multilabel")
    assert warnings(["a", "b", "c; d"]) == warnings(["New York", "Los Angeles"]) == ()


@pytest.mark.parametrize(
    ("label", "flags", "message"),
    [
        ("a;b", [], "line 1: label 'a;b' is not a list. Pass --label-separator"),
        (None, [], "line 1: the labels are missing. Write [] where there are none."),
        ([["a"]], [], "line 1: label ['a'] is a list"),
        ('["a"', [], "line 1: label '[\"a\"' is not a list in JSON"),
        (["a"], [], "label has 1 different labels. At least two are needed"),
        (["a", "b"], ["--label-smoothing", "0.1"], "--label-smoothing 0.1 is for single classes"),
        (["a", "b"], ["--label-separator", ", "], "--label-separator ', ' is not a character"),
        (["a", "b"], ["--threshold", "1"], "--threshold '1' is not a probability between 0 and 1"),
        ("a", ["--label-type", "auto", "--threshold", "0.4"], "--threshold 0.4 is for --label-type multilabel"),
        (["a", "b"], ["--label-type", "auto"], "line 1: label ['a', 'b'] is a list. Pass --label-type multilabel"),
    ],
)
def test_bad_labels_and_settings_are_refused_in_one_line(
    label: Any,
    flags: list[str],
    message: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a text of words", "label": label}] * 12)
    output = tmp_path / "run"
    arguments = ["--data", str(source), "--model", str(tiny_checkpoint), "--output", str(output)]
    assert main_train([*arguments, "--label-type", "multilabel", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1, error
    assert not output.exists()
