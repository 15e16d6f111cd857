"""The command line: the front doors, as real processes too, the flags and what each command prints."""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, contents, run_command

import minipeft
from minipeft.cli.cli import main
from minipeft.cli.command_line import command_line
from minipeft.data.tasks.task import TASKS
from minipeft.device import choose_max_tokens
from minipeft.files import write_json
from minipeft.methods import METHODS
from minipeft.training.settings.choices import choose_method
from minipeft.training.settings.recipes import recipe
from minipeft.training.settings.setting import rows
from minipeft.training.settings.train_settings import TrainSettings, read_settings

SMALL = ["--epochs", 1, "--train-limit", 32, "--eval-limit", 16, "--batch-size", 8]
COMMANDS = ("train", "compare", "methods", "evaluate", "predict", "pretrain", "export", "merge", "push", "fetch")


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="on CUDA torch imports torch._dynamo itself")
def test_a_training_imports_nothing_that_it_does_not_need(
    small_data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """One process, a jsonl file, no torch.compile: each of these modules takes a second or more to import."""
    flags = ["--task", "rte", "--model", tiny_checkpoint, "--data", small_data, *SMALL, "--output", tmp_path / "run"]
    script = f"""
import sys
from minipeft.cli.cli import main_train
assert main_train({list(map(str, flags))}) == 0
assert main_train({[*map(str, flags), "--resume"]}) == 0  # which reads the adapter back
print(*{{"torch._dynamo", "sympy", "pandas", "datasets"}} & set(sys.modules), "imported")
"""
    done = run_command("-c", script)
    assert done.stdout.splitlines()[-1] == "imported", done.stdout + done.stderr


def test_the_way_to_the_first_step_is_short(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """`train.py --task rte --method lora` imports few files, and no other encoder or method.

    The two limits may fall, not rise.
    """
    flags = ["--task", "rte", "--method", "lora", "--model", tiny_checkpoint, *SMALL, "--output", tmp_path / "run"]
    script = f"""
import sys
from minipeft.cli import main_train
assert main_train({list(map(str, flags))}) == 0
print(*(module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "minipeft"), sep="\\n")
"""
    done = run_command("-c", script, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    files = [Path(line) for line in done.stdout.splitlines() if line.endswith(".py")]
    names = {str(file.relative_to(REPOSITORY / "minipeft").with_suffix("")) for file in files}
    assert not {name for name in names if name.startswith("methods/")} - LORA_FILES
    assert "model/roberta" in names
    assert {name for name in names if name.startswith("model/families/")} == {"model/families/__init__"}
    assert not names & {"model/attention/varlen", "model/attention/window", "model/token_classifier"}
    assert len(files) <= 70
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files) <= 9_500


LORA_FILES = {f"methods/{name}" for name in ("__init__", "adapted", "lora", "peft_format/__init__")}


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
    assert "minipeft.pretraining.pretrain" in modules
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


# A new flag is a decision: it is written here too.
TRAIN_FLAGS = """task data format long-text stride window-pooling text-column pair-column label-column label-type
    drop-duplicates label-separator threshold validation holdout fold group-column weight-column
    max-length train-limit eval-limit model init-adapter method rank alpha dropout targets train-layers method-options
    epochs lr steps lr-schedule batch-size grad-accum warmup-steps warmup-ratio weight-decay beta1 beta2 epsilon
    max-grad-norm class-weights label-smoothing select-by patience eval-every seed device precision max-tokens
    threads compile activation-checkpointing cuda-graphs group-timeout output checkpoint-minutes checkpoint-copy resume
    report-to quiet"""
RUNNER_FLAGS = "runner jobs jobs-per-gpu ray-address cpus-per-run gpus-per-run"
FLAGS = {
    "train": TRAIN_FLAGS,
    "compare": f"{TRAIN_FLAGS} {RUNNER_FLAGS}".replace(" fold ", " folds "),
    "pretrain": """text block-length long-block-length model start vocab-size hidden-size num-hidden-layers
        num-attention-heads dropout steps batch-tokens lr warmup-steps weight-decay seed device precision output
        evaluate-every checkpoint-minutes resume quiet""",
    "evaluate": "split data input format text-column pair-column label-column report calibrate threshold json device",
    "predict": f"""text pair output threshold echo glue-test data resume input format text-column pair-column device
        {RUNNER_FLAGS}""",
    "methods": "",
    "export": "format int8",
    "merge": "format int8",
    "push": "private dry-run",
    "fetch": "",
}


def actions_of(command: str) -> list[argparse.Action]:
    commands = next(action for action in command_line()._actions if action.dest == "command")
    return [action for action in commands.choices[command]._actions if action.dest != "help"]  # type: ignore


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_these_flags(command: str) -> None:
    flags = [flag for action in actions_of(command) for flag in action.option_strings]
    assert sorted(flags) == sorted(f"--{name}" for name in FLAGS[command].split())


def test_a_flag_that_is_not_given_is_absent_and_each_setting_has_a_flag() -> None:
    """So that --resume can tell a default that is given from one that is not."""
    from minipeft.pretraining.pretrain_settings import PretrainSettings

    assert vars(command_line().parse_args(["train"])) == {"command": "train"}
    assert [action.dest for action in actions_of("train")] == [f.name for f in fields(TrainSettings)]
    assert [action.dest for action in actions_of("pretrain")] == [f.name for f in fields(PretrainSettings)]


def test_each_value_of_a_flag_comes_in_the_type_of_its_setting() -> None:
    given = command_line().parse_args(
        ["train", "--rank=4", "--lr=1", "--quiet", "--targets", "key", "value", "--task=x"]
    )
    assert vars(given) == {
        "command": "train",
        "rank": 4,
        "lr": 1.0,
        "quiet": True,
        "targets": ["key", "value"],
        "task": "x",
    }
    assert [type(value) for value in vars(given).values()][1:3] == [int, float]


def test_a_flag_that_was_a_switch_takes_a_value_too() -> None:
    for command, values in (("train", ("on", "auto")), ("compare", (["on"], ["auto"]))):
        own = ["--task", "rte", "--method", "lora", "--output", "x"]
        for words, value in zip((["--cuda-graphs"], ["--cuda-graphs", "auto"]), values, strict=True):
            assert command_line().parse_args([command, *words, *own]).cuda_graphs == value
    assert read_settings({"cuda_graphs": True})["cuda_graphs"] == "on"
    assert read_settings({"cuda_graphs": False})["cuda_graphs"] == "off"


def test_the_page_of_options_states_the_defaults_of_the_table() -> None:
    """For plain values; the page describes the others in words."""
    page = (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8")
    cells = {}
    for line in page.splitlines():
        if line.startswith("| `--"):
            names, default = line.split("|")[1:3]
            flags, values = re.findall(r"--([a-z0-9-]+)", names), default.strip().strip("`").split(", ")
            cells |= {flag: values[place % len(values)] for place, flag in enumerate(flags)}
    for row in rows(TrainSettings).values():
        stated = cells.get(row.flag[2:])
        if stated is not None and isinstance(row.default, (str, bool)):
            assert stated == {False: "off"}.get(row.default, row.default), row.flag
        elif stated is not None and row.default is not None:
            assert float(stated) == row.default, row.flag
    assert len(cells) > 30


def test_the_rule_of_resuming_is_known_for_each_setting() -> None:
    assert {row.on_resume for row in rows(TrainSettings).values()} == {
        *("equal", "may grow", "may change", "of the call")
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and "usage: minipeft" in capsys.readouterr().out


def help_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--help"])
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_minipeft_alone_prints_its_help_and_version_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage: minipeft" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"minipeft {minipeft.__version__}\n"


@pytest.mark.parametrize("command", ["train", "compare", "pretrain"])
def test_every_flag_is_in_a_group_with_its_default(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of([command], capsys)
    for group in ("task and data:", "model:", "method:", "optimization:", "hardware:", "output:"):
        assert group in text or (command, group) == ("pretrain", "method:")
    for action in actions_of(command):
        if not action.required:
            assert re.search(r"\[.+\]$", action.help or ""), f"{action.option_strings} without a default"


def test_the_help_of_train_names_every_method_and_task(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(["train"], capsys)
    for name in (*METHODS, *TASKS):
        assert re.search(rf"\b{name}\b", text), name
    assert text.count("minipeft train --") >= 3  # examples


@pytest.mark.parametrize("task", ["rte", "sst2"])
@pytest.mark.parametrize("method", ["lora", "bitfit", "full"])
def test_the_help_states_the_defaults_of_the_chosen_model(
    task: str, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for hidden_size in (256, 1024):
        write_json(tmp_path / "config.json", {"hidden_size": hidden_size})
        text = help_of(["train", "--task", task, "--model", str(tmp_path), "--method", method], capsys)
        chosen = recipe(task, method, hidden_size)
        assert f"[{chosen.epochs} for {task}, {method}, " in text and f"[{chosen.lr:g} for {task}, " in text
        assert f"CPU {choose_max_tokens('cpu', 'fp32', hidden_size)}," in text


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["train", "--learning-rate", "1e-3"], "did you mean --lr?"),
        (["train", "--ouput", "x"], "did you mean --output?"),
        (["trian"], "did you mean train?"),
        (["compare", "--task", "rte", "--method", "lora", "--output", "x", "--eopchs", "3"], "--epochs?"),
    ],
)
def test_an_unknown_flag_or_command_names_the_nearest(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    written = capsys.readouterr().err
    assert meant in written and len(written.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "meant"),
    [
        (["--task", "rtee"], "rte"),
        (["--task", "RTE"], "rte"),
        (["--method", "lorra"], "lora"),
        (["--method-options", "rslra=true"], "rslora"),
        (["--data", "reviews.csv", "--text-column", "revew"], "review"),
        (["--data", "reviews.csv", "--text-column", "review", "--label-column", "star"], "stars"),
        (["--data", "good.csv", "--select-by", "macrof1"], "macro_f1"),
        (["--data", "good.csv", "--class-weights", "godo=2"], "good"),
        (["--data", "good.csv", "--validation", "other.csv", "--output", "run"], "good"),
    ],
    ids=" ".join,
)
def test_an_unknown_name_is_answered_with_the_nearest(
    flags: list[str], meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of tasks, methods and their options, columns, metrics and labels."""
    rows = "".join(f"film {number},{('good', 'bad')[number % 2]}\n" for number in range(20))
    (tmp_path / "reviews.csv").write_text(f"review,stars\n{rows}")
    (tmp_path / "good.csv").write_text(f"text,label\n{rows}")
    (tmp_path / "other.csv").write_text(f"text,label\n{rows}film 20,godo\n")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--device", "cpu", "--model", str(REPOSITORY / "weights/roberta-mini"), *flags]) == 2
    error = capsys.readouterr().err
    assert f"(did you mean {meant}?)" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists() and not (tmp_path / "runs").exists()


def test_an_unknown_setting_in_python_names_the_nearest() -> None:
    for name, meant in (("learning_rate", "lr"), ("epoch", "epochs"), ("target_modules", "targets")):
        with pytest.raises(minipeft.MinipeftError, match=rf"unknown setting '{name}' \(did you mean {meant}\?\)"):
            minipeft.train(**{name: 1})


def test_methods_lists_each_with_what_its_config_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    listed = capsys.readouterr().out
    for name, row in METHODS.items():
        assert main(["methods", name]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"{name}: ")
        assert all(f"\n    {fact}" in shown for fact in ("formula", "options", "parameters", "paper", "peft"))
        assert shown.splitlines()[0] in listed
        method = choose_method(TrainSettings(method=name))
        for field in fields(row.config):
            assert re.search(rf"\b{field.name.replace('_', '[_-]')}[ =]", " ".join(shown.split())), field.name
            value = getattr(method, field.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                assert re.search(rf"\b{field.name}[ =]{value:g}\b", " ".join(shown.split())), field.name
        assert (row.peft is not None) == ("reads and writes its adapters" in shown)
        assert "paper       none" not in shown or name == "head"


def test_predict_repeats_columns_of_the_input(
    small_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.csv").write_text("id,text,label\n7,a film,x\n8,a café,y\n")
    call = ["predict", str(small_runs["sst2"]), "--input", str(tmp_path / "in.csv"), "--echo", "id", "text"]
    assert main(call) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["id"], row["text"]) for row in rows] == [("7", "a film"), ("8", "a café")]
    assert all(value == round(value, 6) for row in rows for value in row["probabilities"].values())
    assert main([*call, "--output", str(tmp_path / "out.csv")]) == 0
    assert f"{tmp_path / 'out.csv'}: 2 predictions" in capsys.readouterr().err
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == ["id", "text", "label", "probability_negative", "probability_positive"]
    assert [row["id"] for row in written] == ["7", "8"]
    assert [row["label"] for row in written] == [row["label"] for row in rows]
    for columns, message in ((["ID"], "no column 'ID'"), (["label"], "has a field label already")):
        assert main([*call[:-2], *columns]) == 2
        assert message in capsys.readouterr().err


def test_an_unknown_split_lists_the_splits(small_runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(small_runs["rte"]), "--split", "dev"]) == 2
    written = capsys.readouterr().err
    assert "train" in written and "validation" in written


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
