"""What the next start finds, and says: every state that a kill or a user can leave a run's folder in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import contents, details_of
from runs import assert_same, history, state
from safetensors.torch import load_file, save_file

from minipeft import MinipeftError, load_run, train

SETTINGS: dict[str, Any] = {
    "task": "rte",
    "epochs": 4,
    "batch_size": 8,
    "grad_accum": 1,
    "train_limit": 48,
    "warmup_steps": 2,
    "lr": 1e-2,
    "dropout": 0.2,
    "device": "cpu",
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def settings(tiny_checkpoint: Path, small_data: Path) -> dict[str, Any]:
    return {**SETTINGS, "model": str(tiny_checkpoint), "data": str(small_data)}


@pytest.fixture(scope="module")
def finished(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(**settings, output=str(tmp_path_factory.mktemp("finished") / "run")).output


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def resume(folder: Path, settings: dict[str, Any], **changes: Any) -> None:
    train(**{**settings, "output": str(folder), "resume": True, **changes})


def best_epoch(folder: Path) -> int:
    return int(json.loads((folder / "result.json").read_text())["best"]["epoch"])


def test_a_finished_run_stays_as_it_is_and_says_so(
    copy: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(copy)
    resume(copy, settings)
    after = contents(copy)
    assert {name for name in before if before[name] != after.get(name)} == {"config.json"}  # output and resume
    written = capsys.readouterr().err
    assert f"resuming {copy} from step 24 (epoch 4); the adapter is epoch {best_epoch(copy)}'s" in written
    assert f"{copy}: the run is already finished" in written


def test_killed_after_the_last_epoch_and_before_the_result(
    copy: Path, finished: Path, settings: dict[str, Any]
) -> None:
    (copy / "result.json").unlink()
    resume(copy, settings)
    assert_same(copy, finished)
    one, other = (json.loads((folder / "result.json").read_text()) for folder in (copy, finished))
    assert {n for n in one if one[n] != other[n]} <= {"peak_memory_bytes"}
    assert load_run(copy).evaluate()["eval_loss"] == history(copy)[best_epoch(copy) - 1]["eval_loss"]


@pytest.mark.parametrize("lost", [["metrics.jsonl"], ["adapter", "metrics.jsonl"]])
def test_killed_between_the_checkpoint_and_what_is_made_from_it(
    lost: list[str], settings: dict[str, Any], tmp_path: Path
) -> None:
    """The checkpoint of an epoch is written first; the rest follows from it, here or in the next start."""
    settings = {**settings, "epochs": 1}
    whole = train(**settings, output=str(tmp_path / "whole")).output
    folder = shutil.copytree(whole, tmp_path / "run")
    for name in [*lost, "result.json"]:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    resume(folder, settings)
    assert_same(folder, whole)


@pytest.mark.parametrize("damage", ["missing", "no weights", "truncated", "of another epoch"])
def test_an_adapter_that_is_not_the_checkpoint_s_best_is_written_again(
    damage: str, copy: Path, finished: Path, settings: dict[str, Any]
) -> None:
    """The best epoch is not the last: its weights are in the checkpoint next to those of the last step."""
    weights, best = copy / "adapter" / "adapter_model.safetensors", best_epoch(copy)
    assert best < 4, "the best epoch is the last, whose weights are in the checkpoint anyway"
    content = weights.read_bytes()
    if damage == "missing":
        shutil.rmtree(copy / "adapter")
    elif damage == "no weights":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(content[: len(content) // 2])
    else:
        details = details_of(copy / "adapter") | {"epoch": best + 1}
        save_file(load_file(weights), weights, metadata={"minipeft": json.dumps(details)})
    resume(copy, settings)
    assert weights.read_bytes() == content
    assert_same(copy, finished)


def test_parts_of_files_that_a_kill_left_are_cleared_away(copy: Path, finished: Path, settings: dict[str, Any]) -> None:
    for name in (
        ".config.json.partial",
        "checkpoint/.step-00000004.json.partial",
        "adapter/.adapter_config.json.partial",
    ):
        (copy / name).write_bytes(b"half of")
    resume(copy, settings)
    assert_same(copy, finished)


def test_a_folder_with_nothing_but_such_a_part_starts_a_run(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.partial").write_bytes(b"{")
    train(**{**settings, "epochs": 1}, output=str(tmp_path / "run"))
    assert (tmp_path / "run" / "result.json").is_file() and not list((tmp_path / "run").rglob(".*"))


def test_a_run_without_a_checkpoint_starts_anew_and_says_so(
    copy: Path, finished: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "checkpoint")
    resume(copy, settings)
    assert f"{copy} has no checkpoint yet: the run starts from scratch" in capsys.readouterr().err
    assert_same(copy, finished)


def test_other_training_examples_are_refused(copy: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    """The file is the same by name, and has the same number of rows."""
    data = shutil.copytree(settings["data"], tmp_path / "data")
    folder = tmp_path / "own"
    train(**{**settings, "epochs": 1, "data": str(data)}, output=str(folder))
    path = data / "rte" / "train.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*rows[1:], rows[0]]))
    before = contents(folder)
    with pytest.raises(MinipeftError, match="the run has other training examples"):
        resume(folder, settings, epochs=1, data=str(data))
    after = contents(folder)
    assert {name for name in before if before[name] != after[name]} <= {"config.json"}


def test_how_often_a_checkpoint_is_written_may_change_and_changes_nothing(
    finished: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(**{**settings, "checkpoint_minutes": 0}, output=str(folder))
    assert_same(folder, finished)
    resume(folder, settings, checkpoint_minutes=7.5)
    assert json.loads((folder / "config.json").read_text())["checkpoint_minutes"] == 7.5
    for value in (-1, float("nan"), "often"):
        with pytest.raises(MinipeftError, match="--checkpoint-minutes"):
            resume(folder, settings, checkpoint_minutes=value)
    assert state(folder)["progress"]["step"] == 24
