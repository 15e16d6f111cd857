"""--resume: what it refuses, and a run that signals stopped goes on to the same bits."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, contents, environment
from small_runs import adapter, last_step, rows, same_tensors, small_run, state, without_times

from minipeft import (
    MinipeftError,
)
from minipeft.cli.cli import main_train


def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    small_run(tiny_checkpoint, small_data, tmp_path / "run", epochs=1)
    before = contents(tmp_path)
    with pytest.raises(MinipeftError, match=r"already holds a run. Pass --resume"):
        small_run(tiny_checkpoint, small_data, tmp_path / "run", epochs=1)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 1e-4),
        ("rank", 4),
        ("seed", 1),
        ("epochs", 1),
        ("lr_schedule", "cosine"),
        ("beta2", 0.99),
        ("max_grad_norm", 0.5),
        ("patience", 1),
        ("eval_every", 2),
        ("batch_size", 4),
        ("train_limit", 40),
        ("task", "sst2"),
        ("method", "bitfit"),
        ("targets", ("key",)),
        ("precision", "bf16"),
        ("max_tokens", 64),
    ],
)
def test_resume_with_another_setting_is_refused_by_its_name(
    name: str, value: Any, finished: Path, small_data: Path, tiny_checkpoint: Path
) -> None:
    before = contents(finished)
    with pytest.raises(MinipeftError, match=rf"the run has {name} "):
        small_run(tiny_checkpoint, small_data, finished, resume=True, **{name: value})
    assert contents(finished) == before


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    return small_run(tiny_checkpoint, small_data, tmp_path_factory.mktemp("finished") / "run").output


def test_resuming_a_finished_run_changes_nothing(finished: Path, tiny_checkpoint: Path, small_data: Path) -> None:
    before = contents(finished)
    small_run(tiny_checkpoint, small_data, finished, resume=True)
    after = contents(finished)
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors", "checkpoint/step-00000006.json"):
        assert after[name] == before[name]


@pytest.mark.parametrize("there", [False, True])
def test_resume_on_an_absent_or_empty_folder_starts_the_run(
    there: bool, tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    if there:
        (tmp_path / "run").mkdir()
    result = small_run(tiny_checkpoint, small_data, tmp_path / "run", resume=True, epochs=1)
    assert result.content["last"]["epoch"] == 1 and (tmp_path / "run" / "result.json").is_file()


def test_resume_refuses_a_folder_that_holds_something_else(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(MinipeftError, match="is not empty and holds no run"):
        small_run(tiny_checkpoint, small_data, tmp_path / "run", resume=True)
    assert contents(tmp_path) == {"run/thesis.txt": b"mine"}


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "one bit", "missing"])
@pytest.mark.parametrize("kind", ["json", "weights.safetensors", "optimizer.safetensors"])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    kind: str,
    damage: str,
    finished: Path,
    tiny_checkpoint: Path,
    small_data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The run continues to the same bits; where both are damaged, it ends with one line and changes nothing."""
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "result.json").unlink()
    newest, previous = (folder / "checkpoint" / f"step-{step:08d}.{kind}" for step in (6, 3))
    for path in (newest, previous):
        content = bytearray(path.read_bytes())
        if damage == "one bit":  # in the last number of a tensor, or in a digit of the loss
            place = bytes(content).find(b'"loss_sum"') + 12 if kind == "json" else len(content) - 3
            content[place] ^= 1
        path.write_bytes(
            {"truncated": content[: len(content) // 2], "empty": b"", "garbage": b"no" * 50}.get(damage, content)
        )
        if damage == "missing":
            path.unlink()
        if path == newest:
            small_run(tiny_checkpoint, small_data, shutil.copytree(folder, tmp_path / "copy"), resume=True)
    lines = [record.message for record in caplog.records if "is damaged" in record.message]
    assert len(lines) == (0 if (kind, damage) == ("json", "missing") else 1), lines  # that checkpoint is not known of
    assert all("continues from the checkpoint of step 3" in line and "\n" not in line for line in lines)
    assert without_times(rows(tmp_path / "copy")) == without_times(rows(finished))
    assert same_tensors(adapter(tmp_path / "copy"), adapter(finished))
    for part in ("weights", "optimizer"):
        assert same_tensors(state(tmp_path / "copy")[part], state(finished)[part])
    if (kind, damage) == ("json", "missing"):
        return
    before = contents(folder)
    with pytest.raises(
        MinipeftError, match=r"step-00000006\.json: .* Remove .*checkpoint to start the run from scratch"
    ):
        small_run(tiny_checkpoint, small_data, folder, resume=True)
    after = contents(folder)
    assert {name for name in after if after[name] != before.get(name)} <= {"config.json"}


def test_a_checkpoint_of_another_run_and_of_a_newer_format_are_refused(
    finished: Path, tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    small_run(tiny_checkpoint, small_data, tmp_path / "other", method="head")
    shutil.copytree(tmp_path / "other" / "checkpoint", folder / "checkpoint", dirs_exist_ok=True)
    with pytest.raises(MinipeftError, match=r"the checkpoint does not fit the model .*Resume with the same model"):
        small_run(tiny_checkpoint, small_data, folder, resume=True)
    newest = finished / "checkpoint" / "step-00000006.json"
    content = json.loads(newest.read_text()) | {"format": 2}
    del content["sha256"]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / "checkpoint" / newest.name).write_text(json.dumps(content | {"sha256": digest}))
    with pytest.raises(MinipeftError, match=r"step-00000006\.json: the file has format 2, .*Install a newer minipeft"):
        small_run(tiny_checkpoint, small_data, folder, resume=True)


@pytest.mark.parametrize("begun", ["fp32", "bf16"])
def test_a_resumed_run_keeps_the_precision_that_it_was_begun_in(
    begun: str, tiny_checkpoint: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the device multiplies."""
    output = small_run(tiny_checkpoint, small_data, tmp_path / "run", precision=begun, epochs=1).output
    for native in (True, False):
        monkeypatch.setattr("minipeft.device.multiplies_bf16", lambda device, native=native: native)
        result = small_run(tiny_checkpoint, small_data, output, precision="auto", epochs=1, resume=True)
        assert result.content["precision"] == json.loads((output / "config.json").read_text())["precision"] == begun
        assert (result.model.encoder.dtype == torch.bfloat16) == (begun == "bf16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta2": None}, "beta2 is missing"),
        ({"rank": "two"}, "config.json: rank 'two' is not a whole number"),
        ({"compile": None}, "compile is missing"),
    ],
    ids=str,
)
def test_a_config_json_of_another_version_is_one_line(
    change: dict[str, Any], message: str, finished: Path, tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    content = json.loads((folder / "config.json").read_text())
    changed = {name: change.get(name, value) for name, value in content.items()}
    written = {name: value for name, value in changed.items() if name not in change or value is not None}
    (folder / "config.json").write_text(json.dumps(written))
    with pytest.raises(MinipeftError, match=message) as caught:
        small_run(tiny_checkpoint, small_data, folder, resume=True)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.full)])
def test_a_run_stopped_by_both_signals_goes_on_to_the_same_bits(
    precision: str, tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    """SIGINT in the middle, --resume, SIGTERM in the middle, --resume: the adapter of an unbroken run, with dropout."""

    def arguments(output: str) -> list[str]:
        where = {"--model": tiny_checkpoint, "--data": small_data, "--output": tmp_path / output}
        settings = {
            "--epochs": 2,
            "--batch-size": 1,
            "--grad-accum": 1,
            "--dropout": 0.2,
            "--device": "cpu",
            "--precision": precision,
            "--checkpoint-minutes": 0,
        }
        flags = {"--task": "rte", **where, **settings}
        return [str(word) for flag in flags.items() for word in flag]

    steps = 2 * 96
    assert main_train([*arguments("unbroken"), "--quiet"]) == 0
    places = []
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        more = ["--resume"] if number == signal.SIGTERM else []
        process = subprocess.Popen(
            [sys.executable, "train.py", *arguments("broken"), *more],
            cwd=REPOSITORY,
            env=environment(),
            text=True,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        before = places[-1] if places else 0
        while last_step(tmp_path / "broken") <= before:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        error = process.communicate(timeout=120)[1]
        assert process.returncode == status, error
        last_line = error.strip().splitlines()[-1]
        assert re.search(r"minipeft: interrupted in step \d+; continue with --resume", last_line), error
        assert "Traceback" not in error
        places.append(state(tmp_path / "broken")["progress"]["step"])
        assert not (tmp_path / "broken" / "result.json").exists()
    assert 0 < places[0] < places[1] < steps
    assert main_train([*arguments("broken"), "--resume", "--quiet"]) == 0
    assert without_times(rows(tmp_path / "broken")) == without_times(rows(tmp_path / "unbroken"))
    assert same_tensors(adapter(tmp_path / "broken"), adapter(tmp_path / "unbroken"))
    assert same_tensors(*(state(tmp_path / name)["weights"] for name in ("broken", "unbroken")))
