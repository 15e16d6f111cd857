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
from small_runs import adapter, interrupted_at, last_step, rows, same_tensors, small_run, state, without_times

from minipeft import MinipeftError, Result, load_run, train
from minipeft.cli.cli import main, main_train
from minipeft.compare.plan import make_plan
from minipeft.errors import Interrupted


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
    assert all(line.endswith(": continuing from step 3") and "\n" not in line for line in lines)
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
    """Whether or not the device is fast in bf16."""
    output = small_run(tiny_checkpoint, small_data, tmp_path / "run", precision=begun, epochs=1).output
    for native in (True, False):
        monkeypatch.setattr("minipeft.device.has_fast_bf16", lambda device, native=native: native)
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
        assert re.search(
            r"minipeft: interrupted (in step|after epoch) \d+; "
            r"continue with minipeft train --resume --output \S+/broken",
            last_line,
        ), error
        assert "Traceback" not in error
        places.append(state(tmp_path / "broken")["progress"]["step"])
        assert not (tmp_path / "broken" / "result.json").exists()
    assert 0 < places[0] < places[1] < steps
    assert main_train([*arguments("broken"), "--resume", "--quiet"]) == 0
    assert without_times(rows(tmp_path / "broken")) == without_times(rows(tmp_path / "unbroken"))
    assert same_tensors(adapter(tmp_path / "broken"), adapter(tmp_path / "unbroken"))
    assert same_tensors(*(state(tmp_path / name)["weights"] for name in ("broken", "unbroken")))


# -- Resuming by the folder alone --


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """A custom dataset with a validation file, in a folder of its own."""
    (tmp_path / "reviews").mkdir()
    for name, count in (("train", 40), ("validation", 20)):
        lines = [f"a {('good', 'poor')[n % 2]} film {n}\t{('yes', 'no')[n % 2]}" for n in range(count)]
        (tmp_path / "reviews" / f"{name}.tsv").write_text("\n".join(["review\tverdict", *lines]))
    return tmp_path / "reviews"


CUSTOM = {
    "text_column": "review",
    "label_column": "verdict",
    "method": "bitfit",
    "holdout": 0.25,
    "lr": 3e-3,
    "seed": 7,
}
CUSTOM |= {"class_weights": {"yes": 2.0}, "lr_schedule": "constant", "long_text": "window", "stride": 3}
CUSTOM |= {
    "beta2": 0.98,
    "max_length": 8,
    "batch_size": 8,
    "grad_accum": 1,
    "patience": 9,
    "epochs": 2,
    "select_by": "macro_f1",
}


def custom_run(checkpoint: Path, data: str, output: Path, **changes: Any) -> Result:
    common = {"model": str(checkpoint), "device": "cpu", "precision": "fp32", "quiet": True}
    return train(data=data, output=str(output), **CUSTOM | common | changes)


def test_a_custom_run_resumes_by_its_folder_from_everywhere(
    tiny_checkpoint: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """All settings are the run's, whatever the current directory; more epochs give what they would have given."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interrupted, match="continue with minipeft train --resume --output"), interrupted_at(6):
        custom_run(tiny_checkpoint, "reviews", tmp_path / "a run")
    monkeypatch.chdir("/")
    config = json.loads((tmp_path / "a run" / "config.json").read_text())
    assert main(["train", "--resume", "--output", str(tmp_path / "a run"), "--device", "cpu"]) == 0
    assert f"resuming {tmp_path / 'a run'} from step 5" in capsys.readouterr().err
    resumed = json.loads((tmp_path / "a run" / "config.json").read_text())
    assert resumed == config | {"resume": True, "quiet": False, "data": str(reviews)}
    unbroken = custom_run(tiny_checkpoint, str(reviews), tmp_path / "unbroken")
    assert without_times(rows(tmp_path / "a run")) == without_times(rows(unbroken.output))
    assert same_tensors(adapter(tmp_path / "a run"), adapter(unbroken.output))
    assert train(resume=True, output=tmp_path / "a run", epochs=3, device="cpu").content["last"]["epoch"] == 3
    longer = custom_run(
        tiny_checkpoint, str(reviews), tmp_path / "longer", epochs=3, warmup_steps=config["warmup_steps"]
    )
    assert without_times(rows(tmp_path / "a run")) == without_times(rows(longer.output))


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "adalora", "steps": 9, "epochs": None},
        {"method": "vera", "method_options": {"seed": 3}, "warmup_ratio": 0.2, "warmup_steps": None},
        {"task": "sst2", "select_by": "eval_loss", "targets": ("key", "value"), "report_to": "none"},
    ],
    ids=str,
)
def test_a_run_on_glue_resumes_by_its_folder(
    settings: dict[str, Any], tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    settings = {"checkpoint_minutes": 0, **settings}
    unbroken = small_run(tiny_checkpoint, small_data, tmp_path / "unbroken", **settings)
    with pytest.raises(Interrupted), interrupted_at(5):
        small_run(tiny_checkpoint, small_data, tmp_path / "run", **settings)
    result = train(resume=True, output=str(tmp_path / "run"), device="cpu", quiet=True)
    assert without_times(rows(result.output)) == without_times(rows(unbroken.output))
    assert same_tensors(adapter(result.output), adapter(unbroken.output))


def test_a_run_resumes_with_data_that_have_moved_and_with_no_others(
    tiny_checkpoint: Path, reviews: Path, tmp_path: Path
) -> None:
    run = custom_run(tiny_checkpoint, str(reviews), tmp_path / "run").output
    moved = reviews.rename(tmp_path / "moved")
    with pytest.raises(MinipeftError, match="reviews is missing"):
        train(resume=True, output=str(run))
    assert train(resume=True, output=str(run), data=str(moved), quiet=True, device="cpu").content["task"] == "reviews"
    before = contents(run)
    for name, row in (("validation", "a film\tno"), ("train", "a new film\tyes")):
        other = shutil.copytree(moved, tmp_path / f"other {name}")
        with open(other / f"{name}.tsv", "a") as file:
            file.write("\n" + row)
        kind = name.replace("train", "training")
        with pytest.raises(MinipeftError, match=f"the run has other {kind} examples"):
            train(resume=True, output=str(run), data=str(other), device="cpu", quiet=True)
    with pytest.raises(MinipeftError, match="the run has method 'bitfit', not 'lora'"):
        train(resume=True, output=str(run), method="lora", device="cpu", quiet=True, data=str(moved))
    with pytest.raises(MinipeftError, match=r"the run has lr 0\.003, not 0\.1"):
        train(resume=True, output=str(run), lr=0.1, device="cpu", quiet=True, data=str(moved))
    assert contents(run) == before


def test_rows_in_memory_have_to_be_passed_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    table = {"text": [f"film {n}" for n in range(20)], "label": ["a", "b"] * 10}
    common = {"output": str(tmp_path / "run"), "device": "cpu", "quiet": True}
    train(data=table, model=str(tiny_checkpoint), method="head", epochs=1, **common)
    with pytest.raises(MinipeftError, match=r"the run was trained on rows in memory\. Pass them as data"):
        train(resume=True, **common)
    assert train(resume=True, data=table, epochs=2, **common).content["last"]["epoch"] == 2


def test_a_file_that_is_called_like_a_task_of_glue_is_resumed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    lines = (f"film {n},{'ab'[n % 2]}" for n in range(24))
    (tmp_path / "rte.csv").write_text("\n".join(["text,label", *lines]))
    given: dict[str, Any] = {"model": str(tiny_checkpoint), "method": "head", "epochs": 1, "device": "cpu"}
    run = train(data=str(tmp_path / "rte.csv"), output=str(tmp_path / "run"), **given).output
    assert json.loads((run / "config.json").read_text())["task"] == "rte-data"
    longer = train(resume=True, output=str(run), epochs=2, device="cpu", quiet=True)
    assert longer.content["last"]["epoch"] == 2 and "accuracy" in load_run(run).evaluate()
    plan = make_plan({"data": [str(tmp_path / "rte.csv")], "method": ["head"]})
    assert {run.settings["task"] for run in plan.runs} == {"rte-data"}
