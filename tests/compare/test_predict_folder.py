"""`minipeft predict` from a folder of files into a folder of predictions, on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import contents, refused

from minipeft.cli.cli import main


@pytest.mark.full
def test_each_file_gets_a_file_of_predictions_and_resume_adds_the_missing_ones(
    small_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad file is reported at the end with its reason, and the others are predicted."""
    files, output = tmp_path / "files", tmp_path / "predictions"
    files.mkdir()
    (files / "good.txt").write_text("a fine film\na dull film\n")
    (files / "bad.jsonl").write_text("not json\n")
    arguments = ["predict", str(small_runs["sst2"]), "--input", str(files), "--output", str(output), "--device", "cpu"]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert "1 of 2 files failed: bad.jsonl (" in said.err and "predictions of 1 of 2 files" in said.out
    assert len((output / "good.txt.jsonl").read_text().splitlines()) == 2
    before = contents(output)

    assert "already holds a folder of predictions" in refused(arguments, tmp_path, capsys)
    assert "other flags" in refused([*arguments, "--resume", "--text-column", "text"], tmp_path, capsys)
    (files / "bad.jsonl").write_text(json.dumps({"sentence": "a fine film"}) + "\n")
    assert main([*arguments, "--resume"]) == 0
    assert json.loads((output / "bad.jsonl.jsonl").read_text())["label"]
    assert contents(output)["good.txt.jsonl"] == before["good.txt.jsonl"]


def test_runner_flags_need_two_folders(
    small_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ["predict", small_runs["sst2"], "--text", "a film"]
    assert "--jobs has no meaning with --text" in refused([*text, "--jobs", "2"], tmp_path, capsys)
