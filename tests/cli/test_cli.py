"""The command line: the front doors, as real processes too, the flags and what each command prints."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, contents, run_command

from minipeft.cli.cli import main

SMALL = ["--epochs", 1, "--train-limit", 32, "--eval-limit", 16, "--batch-size", 8]
COMMANDS = ("train", "evaluate", "predict", "pretrain", "export", "merge", "fetch")


def test_train_py_says_what_it_trains_and_leaves_a_result(
    small_data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    common = ["--model", tiny_checkpoint, "--data", small_data, *SMALL, "--device", "cpu"]
    done = run_command("train.py", "--task", "rte", *common, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and str(tmp_path / "run") in done.stdout
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "run" / "result.json").read_text())
    assert content["model"].endswith(str(tiny_checkpoint)) and content["data"].startswith(str(small_data))


def test_without_data_or_a_network_the_stand_in_is_used_and_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    flags = ["--task", "sst2", "--method", "head", "--model", tiny_checkpoint, *SMALL, "--device", "cpu"]
    flags += ["--output", tmp_path / "run"]
    done = run_command("-m", "minipeft", "train", *flags, HF_DATASETS_CACHE=str(tmp_path / "empty"))
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "stand-in" in content["data"] and f"data    {content['data']}" in done.stderr
    assert f"model   {content['model']}" in done.stderr and str(tiny_checkpoint) in content["model"]


def test_bad_input_ends_a_real_process_with_status_2_and_one_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = run_command("train.py", "--task", "rtf", "--model", tiny_checkpoint, "--output", tmp_path / "run")
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("minipeft: unknown task 'rtf'; one of rte, sst2") and not contents(tmp_path)


def test_help_and_every_import_need_neither_torch_nor_transformers() -> None:
    modules = sorted(
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        for path in (REPOSITORY / "minipeft").rglob("*.py")
        if path.stem not in ("__main__", "__init__", "curves")
    )
    assert "minipeft.training.pretrain" in modules
    script = f"""
import importlib, sys
from minipeft.cli.cli import main
try:
    main(["train", "--help"])
except SystemExit as stop:
    assert stop.code == 0
assert not {{"torch", "tokenizers", "datasets", "numpy"}} & set(sys.modules), "--help imports them"
for module in {modules}:
    importlib.import_module(module)
assert not {{"transformers", "peft", "accelerate"}} & set(sys.modules)
"""
    done = run_command("-c", script)
    assert done.returncode == 0, done.stderr
    assert "--max-tokens" in done.stdout


def test_the_flags_are_the_settings_with_the_same_defaults() -> None:
    from minipeft.cli.flags import command_line
    from minipeft.training.settings import TrainSettings

    flags = vars(command_line().parse_args(["train"]))
    assert flags.pop("command") == "train"
    assert flags == {f.name: f.default for f in fields(TrainSettings)}


def test_the_pretraining_flags_are_its_settings_with_the_same_defaults() -> None:
    from minipeft.cli.flags import command_line
    from minipeft.training.pretrain_settings import PretrainSettings

    flags = vars(command_line().parse_args(["pretrain", "--text", "a", "--output", "b"]))
    automatic = {"command", "text", "output", "device", "precision"}
    assert set(flags) - {"command"} == {f.name for f in fields(PretrainSettings)}
    assert {name: value for name, value in flags.items() if name not in automatic} == {
        f.name: f.default for f in fields(PretrainSettings) if f.name not in automatic
    }
    assert flags["device"] == flags["precision"] == "auto"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and "usage: minipeft" in capsys.readouterr().out


def test_predict_prints_a_line_of_json_a_text(small_runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(small_runs["sst2"]), "--text", "a café of a film", "--text", ""]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert set(line["probabilities"]) == {"negative", "positive"}
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-6)


def test_evaluate_takes_another_split_and_other_data(
    small_runs: dict[str, Path], small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(small_runs["rte"])]) == 0
    assert main(["evaluate", str(small_runs["rte"]), "--split", "train"]) == 0
    (tmp_path / "rte").mkdir()
    shutil.copyfile(small_data / "rte" / "train.jsonl", tmp_path / "rte" / "train.jsonl")
    assert main(["evaluate", str(small_runs["rte"]), "--split", "train", "--data", str(tmp_path)]) == 0
    own, train, elsewhere = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert own != train == elsewhere


@pytest.mark.parametrize("command", ["export", "merge"])
def test_export_writes_a_checkpoint_that_transformers_loads(
    command: str, small_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from minipeft import load_run

    assert main([command, str(small_runs["sst2"]), str(tmp_path / "whole")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["folder"] == str(tmp_path / "whole") and said["examples"] == 256
    assert 0 < said["largest_logit_difference"] < 1e-5
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
    text = "A quiet film, not a bad one."
    inputs = AutoTokenizer.from_pretrained(tmp_path / "whole")([text], return_tensors="pt")
    expected = load_run(small_runs["sst2"]).predict([text])[0]
    with torch.no_grad():
        probabilities = model(**inputs).logits.softmax(1)[0]
    by_name = {model.config.id2label[number]: value for number, value in enumerate(probabilities.tolist())}
    assert by_name == pytest.approx(expected["probabilities"], abs=1e-5)
