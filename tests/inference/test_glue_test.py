"""GLUE's test splits as its server takes them: names of files and of classes, every row once, nothing overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import contents, shared

from minipeft import load_run, train
from minipeft.cli.cli import main
from minipeft.data.tasks.task import TASKS, get_task
from minipeft.inference.glue_test import FILES
from minipeft.inference.predict import LoadedRun

SMALL: dict[str, Any] = {
    "epochs": 1,
    "train_limit": 16,
    "eval_limit": 8,
    "method": "head",
    "device": "cpu",
    "precision": "fp32",
}
# What gluebenchmark.com's FAQ and its sample submission ask for.
SERVER = {
    "cola": {"CoLA.tsv": {"0", "1"}},
    "sst2": {"SST-2.tsv": {"0", "1"}},
    "mrpc": {"MRPC.tsv": {"0", "1"}},
    "stsb": {"STS-B.tsv": None},
    "qqp": {"QQP.tsv": {"0", "1"}},
    "mnli": {name: {"entailment", "neutral", "contradiction"} for name in ("MNLI-m.tsv", "MNLI-mm.tsv")},
    "qnli": {"QNLI.tsv": {"entailment", "not_entailment"}},
    "rte": {"RTE.tsv": {"entailment", "not_entailment"}},
    "wnli": {"WNLI.tsv": {"0", "1"}},
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def generated(folder: Path, name: str) -> Path:
    """A small task in the columns of nyu-mll/glue; the test splits' labels are hidden."""
    task = get_task(name)
    (folder / name).mkdir(parents=True)
    tests = [split for _, split in FILES[name]]
    for split in ("train", task.validation, *(other for _, other in task.also), *tests):
        rows = [
            {column: f"{column} {number}" for column in task.columns}
            | {"label": -1 if split in tests else number % task.num_labels, "idx": number}
            for number in range(20)
        ]
        (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run_of(name: str, data: Path, checkpoint: Path, output: Path) -> LoadedRun:
    train(task=name, data=str(data), model=str(checkpoint), output=str(output), quiet=True, **SMALL)
    return load_run(output)


def lines_of(path: Path) -> list[list[str]]:
    header, *lines = [line.split("\t") for line in path.read_text().splitlines()]
    assert header == ["index", "prediction"]
    assert [line[0] for line in lines] == [str(index) for index in range(len(lines))]
    return lines


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_predicted_in_the_servers_layout(
    name: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(name, generated(tmp_path / "data", name), tiny_checkpoint, tmp_path / "run")
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), "--glue-test", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "out" / file) for file in SERVER[name]]
    assert set(contents(tmp_path / "out")) == set(SERVER[name])
    task = get_task(name)
    texts = [[f"{column} {number}" for number in range(20)] for column in task.columns]
    expected = run.predict(texts[0], texts[1] if len(texts) == 2 else None)
    for file, classes in SERVER[name].items():
        lines = lines_of(tmp_path / "out" / file)
        for (_, prediction), row in zip(lines, expected, strict=True):
            if classes is None:
                assert float(prediction) == pytest.approx(min(max(row["score"], 0), 5), abs=1e-5)
            else:
                assert prediction in classes
                named = prediction if not prediction.isdigit() else task.labels[int(prediction)]
                assert named == row["label"]
    before = contents(tmp_path)
    assert main(["predict", str(tmp_path / "run"), "--glue-test", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "is there already; choose another folder" in error and len(error.splitlines()) == 1
    assert contents(tmp_path) == before


def test_scores_lie_between_0_and_5(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run = run_of("stsb", generated(tmp_path / "data", "stsb"), tiny_checkpoint, tmp_path / "run")
    from minipeft.inference.glue_test import predict_glue_test

    bias = dict(run.model.head.named_parameters())["out_proj.bias"]
    for value, expected in ((50.0, 5.0), (-50.0, 0.0)):
        bias.data.fill_(value)
        (path,) = predict_glue_test(run, tmp_path / str(value))
        assert {float(prediction) for _, prediction in lines_of(path)} == {expected}


def test_real_test_splits_are_predicted_whole(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Their labels are hidden; wnli has the fewest rows."""
    run_of("wnli", shared("glue"), tiny_checkpoint, tmp_path / "run")
    arguments = ["predict", str(tmp_path / "run"), "--glue-test", str(tmp_path / "out")]
    assert main([*arguments, "--data", str(shared("glue"))]) == 0
    assert len(lines_of(tmp_path / "out" / "WNLI.tsv")) == 146


def test_mnli_is_evaluated_on_both_splits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    data = generated(tmp_path / "data", "mnli")
    path = data / "mnli" / "validation_mismatched.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"label": (row["label"] + 1) % 3}) + "\n" for row in rows))
    run = run_of("mnli", data, tiny_checkpoint, tmp_path / "run")
    values, matched = run.evaluate(), run.evaluate("validation_matched", limit=8)
    mismatched = run.evaluate("validation_mismatched", limit=8)
    assert values == {**matched, **{f"mismatched_{name}": value for name, value in mismatched.items()}}
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert {name: row[name] for name in values} == values
    content = json.loads((tmp_path / "run" / "result.json").read_text())
    assert content["mismatched"] == {"best": row["mismatched_accuracy"], "last": row["mismatched_accuracy"]}
    assert content["best"]["value"] == row["accuracy"]
    path.unlink()
    assert main(["evaluate", str(tmp_path / "run")]) == 2


def test_flags_beside_glue_test_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of("cola", generated(tmp_path / "data", "cola"), tiny_checkpoint, tmp_path / "run")
    (tmp_path / "data" / "cola" / "test.jsonl").unlink()
    for flags, message in (
        (["--glue-test", str(tmp_path / "out"), "--text", "a"], "--text has no meaning with --glue-test"),
        (["--text", "a", "--data", "b"], "--data has no meaning with --text"),
        (["--glue-test", str(tmp_path / "out")], "no test.parquet"),
    ):
        assert main(["predict", str(tmp_path / "run"), *flags]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
