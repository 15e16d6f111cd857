"""A standard output whose encoding lacks characters: nothing is lost, no command fails."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from conftest import run_command

from minipeft.cli.cli import main

ENCODINGS = ["ascii", "cp1252"]
LONG_NAME = "läufe → 語"  # no encoding of ENCODINGS has all of it
SMALL = ("--epochs", 1, "--train-limit", 16, "--eval-limit", 8, "--batch-size", 8, "--device", "cpu")


def call(encoding: str, *arguments: object) -> tuple[int, bytes, bytes]:
    """The status, standard output and standard error of a command; both strict, as Python's standard output is."""
    out, error = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(error):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:  # of --help
            status = int(end.code or 0)
    return status, *(file.buffer.getvalue() for file in (out, error))  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_train_predict_evaluate_and_merge_print_what_the_encoding_lacks(
    encoding: str, small_data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    run, merged = tmp_path / LONG_NAME, tmp_path / f"{LONG_NAME} merged"
    flags = ["--task", "sst2", "--model", tiny_checkpoint, "--data", small_data, "--output", run, *SMALL]
    commands = [["train", *flags], ["train", *flags, "--resume"], ["predict", run, "--text", LONG_NAME]]
    for command in [*commands, ["evaluate", run], ["merge", run, merged]]:
        status, out, error = call(encoding, *command)
        assert status == 0, error
    assert b"\\u2192" in out
    status, out, error = call(encoding, "train", *flags)
    assert status == 2 and b"\\u2192" in error and not out  # the folder holds a run
    assert (run / "result.json").is_file() and (merged / "model.safetensors").is_file()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", ["", "train", "compare", "methods", "evaluate", "predict", "pretrain", "fetch"])
def test_the_help_is_printed_whole(command: str, encoding: str) -> None:
    status, out, _ = call(encoding, *command.split(), "--help")
    assert status == 0 and out.count(b"\n") > 3


@pytest.mark.full
def test_a_comparison_as_a_process(small_data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    flags = [
        "--task",
        "sst2",
        "--method",
        "head",
        "--model",
        tiny_checkpoint,
        "--data",
        small_data,
        "--lr",
        "1e-3,1e-4",
    ]
    output = tmp_path / LONG_NAME
    done = run_command("-m", "minipeft", "compare", *flags, *SMALL, "--output", output, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert json.loads((output / "table.json").read_text())["tasks"] and "against the learning rate" in done.stdout
