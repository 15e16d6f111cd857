"""--report-to: MLflow in a SQLite file and wandb offline get the lines of metrics.jsonl; resume and failures."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import run_command

from minipeft import MinipeftError, train
from minipeft.cli.cli import main
from minipeft.lease import Lease
from minipeft.training.reporting.tracker_services import BUFFERED_SECONDS
from minipeft.training.reporting.trackers import Events
from minipeft.training.settings import checks

SETTINGS: dict[str, Any] = {
    **{"task": "sst2", "method": "head", "epochs": 2, "batch_size": 8, "grad_accum": 1},
    **{"precision": "fp32", "device": "cpu", "quiet": True},
}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An MLflow store in a file, and its client."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    return mlflow.MlflowClient(uri)


def interrupt_second_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    from minipeft.training import loop

    evaluate, calls = loop.evaluate_all, []

    def stop(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*given)

    monkeypatch.setattr(loop, "evaluate_all", stop)


@pytest.mark.full
def test_mlflow_gets_every_metric_and_a_resumed_run_is_the_same_run(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path, sqlite: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = SETTINGS | {"model": str(tiny_checkpoint), "data": str(small_data), "output": str(tmp_path / "run")}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_second_evaluation(patch)
        train(report_to="mlflow", **given)
    experiment = sqlite.get_experiment_by_name("minipeft")
    (run,) = sqlite.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED" and run.info.run_name == "run"
    assert run.data.params["method"] == "head" and run.data.params["seed"] == "42"
    train(report_to=["mlflow"], resume=True, **given)
    (run,) = sqlite.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    rows = lines(tmp_path / "run")
    for name in ("train_loss", "eval_loss", "accuracy"):
        history = {metric.step: metric.value for metric in sqlite.get_metric_history(run.info.run_id, name)}
        assert history == {row["step"]: row[name] for row in rows}
    steps = {metric.step for metric in sqlite.get_metric_history(run.info.run_id, "step_loss")}
    assert steps == set(range(1, rows[-1]["step"] + 1))
    assert not (tmp_path / "run" / "tensorboard").exists()


def records_of(file: Path) -> Iterator[bytes]:
    """The records of wandb's log file, in LevelDB's format: blocks of 32 KiB, a record in one or more parts."""
    content, place, parts = file.read_bytes(), 7, b""  # after wandb's own header
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole record, or its last part
            yield parts
            parts = b""


@pytest.mark.full
def test_wandb_offline_gets_every_metric_and_resumes_under_the_same_id(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    given = SETTINGS | {"model": str(tiny_checkpoint), "data": str(small_data), "output": str(tmp_path / "run")}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_second_evaluation(patch)
        train(report_to=["wandb"], **given)
    train(report_to=["wandb"], resume=True, **given)
    rows = lines(tmp_path / "run")
    found: dict[int, dict[str, float]] = {}
    files = sorted((tmp_path / "run").glob("wandb/offline-run-*/*.wandb"))
    run_id = json.loads((tmp_path / "run" / "trackers.json").read_text())["wandb"]
    assert len(files) == 2 and all(file.name == f"run-{run_id}.wandb" for file in files)
    for file in files:
        for data in records_of(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                found.setdefault(int(items["_step"]), {}).update(items)
    assert set(found) >= set(range(1, rows[-1]["step"] + 1))
    for row in rows:
        for name in ("train_loss", "eval_loss", "accuracy", "samples_per_second"):
            assert found[row["step"]][name] == row[name]


class Failing:
    """A tracker that fails in its third call."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self.calls = 0

    def add(self, step: int, metrics: Any) -> None:
        self.calls += 1
        if self.calls == 3:
            raise ConnectionError("the server is gone\nand more")

    def close(self, finished: bool) -> None:
        raise AssertionError("it had been given up")


def test_a_tracker_that_fails_in_the_middle_is_reported_once_and_ends_no_run(
    tiny_checkpoint: Path,
    small_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("minipeft.training.reporting.tracker_services.WandB", Failing)
    monkeypatch.setattr("minipeft.training.settings.checks.is_installed", lambda name: True)
    given = {"model": str(tiny_checkpoint), "data": str(small_data), "output": str(tmp_path / "run")}
    assert train(report_to=["wandb", "tensorboard"], **SETTINGS, **given).content["best"]
    warnings = [record.message for record in caplog.records if "cannot report" in record.message]
    assert warnings == [f"{tmp_path / 'run'}: cannot report to wandb (the server is gone); it gets no more of this run"]
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def test_a_step_opens_no_file(tmp_path: Path) -> None:
    """TensorBoard's file stays open, and the lease is read once a second."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    opened: list[str] = []
    listening = [True]

    def listen(event: str, arguments: Any) -> None:
        if event == "open" and listening and str(arguments[0]).startswith(str(tmp_path)):
            opened.append(str(arguments[0]))

    run = tmp_path / "run"
    sys.addaudithook(listen)  # there is no way to remove it
    with Lease(run), Events(run, ["tensorboard"], 1) as events:
        events.add(1, {"loss": 1.0})
        assert opened
        opened.clear()
        for step in range(2, 50):
            events.add(step, {"loss": 1.0})
        events_of_steps = [path for path in opened if "partial" not in path]
    listening.clear()
    assert len(events_of_steps) <= 2, events_of_steps  # the lease, where a second has passed
    (file,) = (run / "tensorboard").iterdir()
    assert file.stat().st_size > 49 * 30


def test_none_turns_tensorboard_off_and_other_ranks_report_nothing(tmp_path: Path) -> None:
    for names, wanted in (((), True), (None, False), (("tensorboard",), False)):
        with Events(tmp_path / "run", names, 1, wanted) as events:
            events.add(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()
    assert checks.trackers("--report-to", "none") == ()


def test_a_tracker_that_is_not_installed_or_not_known_is_one_line_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    for words, message in (
        (["wandb"], "--report-to wandb: it is not installed. Run pip install wandb, or leave it out."),
        (["tensorbord"], "'tensorbord'"),
        (["none", "tensorboard"], "--report-to none has no meaning together with tensorboard"),
    ):
        assert main(["train", "--output", str(tmp_path / "run"), "--report-to", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "run").exists()
    with pytest.raises(MinipeftError, match="wandb"):
        train(report_to="wandb")


def test_no_tracker_is_imported_unless_it_is_named() -> None:
    done = run_command(
        "-c",
        "import sys, minipeft.training.run; from minipeft.training.reporting.trackers import Events\n"
        "from minipeft.training.settings import checks\n"
        "from pathlib import Path\n"
        "assert checks.trackers('--report-to', ['tensorboard']) == ('tensorboard',)\n"
        "with Events(Path('.'), ('tensorboard',), 1): pass\n"
        "assert not {'wandb', 'mlflow', 'tensorboard'} & set(sys.modules)",
    )
    assert done.returncode == 0, done.stderr
    assert BUFFERED_SECONDS > 0
