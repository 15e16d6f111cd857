"""Two processes that write to one output: one of them finishes, the other ends with one line, and nothing is mixed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, environment, shared
from runs import Process
from safetensors.torch import load_file

from minipeft import MinipeftError, export, load_run
from minipeft.cli.cli import main
from minipeft.files import LEASE
from minipeft.inference import evaluation_files
from minipeft.lease import Lease


def start(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "minipeft", *map(str, words)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("".join(f"a text with the number {number}\n" for number in range(9000)))
    return path


def test_two_predictions_into_one_file(small_runs: dict[str, Path], texts: Path, tmp_path: Path) -> None:
    """The second one is another run: it ends at once, and removes nothing of the first."""
    run, other = small_runs["sst2"], shutil.copytree(small_runs["sst2"], tmp_path / "other")
    (other / "config.json").write_text((run / "config.json").read_text() + "\n")  # another hash, so another plan
    output, parts = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.parts"
    flags = ["predict", str(run), "--input", str(texts), "--output", str(output)]
    process = Process(tmp_path / "log", [sys.executable, "-c", PAUSED_PREDICTION, str(tmp_path / "go"), *flags])
    process.wait_until((parts / "plan.json").is_file)
    second = start("predict", other, "--input", texts, "--output", output)
    error = second.communicate(timeout=100)[1].strip().splitlines()[-1]
    assert second.returncode == 2 and re.search(rf"out.jsonl is in use by process {process.process.pid} on ", error)
    (tmp_path / "go").touch()
    assert process.end() == 0, process.said()
    expected = load_run(run).predict(texts.read_text().splitlines()[:50])
    assert [json.loads(line) for line in output.read_text().splitlines()[:50]] == expected
    assert len(output.read_text().splitlines()) == 9000 and not parts.exists()


PAUSED_PREDICTION = """
import sys, time
from pathlib import Path
from minipeft.cli.cli import main
from minipeft.inference import predict_file

write_text = predict_file.write_text

def write_and_wait(*given):
    write_text(*given)
    while not Path(sys.argv[1]).exists():
        time.sleep(0.05)

predict_file.write_text = write_and_wait
sys.exit(main(sys.argv[2:]))
"""


def test_several_merges_into_one_folder(small_runs: dict[str, Path], tmp_path: Path) -> None:
    """Whoever is first, the folder is one whole checkpoint, and nothing is left next to it."""
    output = tmp_path / "merged"
    processes = [start("merge", small_runs["sst2"], output) for _ in range(3)]
    errors = [process.communicate(timeout=100)[1].strip().splitlines()[-1:] for process in processes]
    statuses = [process.returncode for process in processes]
    assert sorted(statuses) == [0, 2, 2], errors
    for status, error in zip(statuses, errors, strict=True):
        assert status == 0 or re.search("is in use by process|is not empty; export to a new folder", error[0]), error
    assert [path.name for path in tmp_path.iterdir()] == ["merged"] and load_file(output / "model.safetensors")
    assert load_run(output).predict(["good"]) == load_run(small_runs["sst2"]).predict(["good"])


def test_a_merge_that_was_killed_is_no_hindrance(small_runs: dict[str, Path], tmp_path: Path) -> None:
    staging, output = tmp_path / ".merged.partial", tmp_path / "merged"
    process = Process(tmp_path / "log", [sys.executable, "-c", SLOW_MERGE, str(small_runs["sst2"]), str(output)])
    process.wait_until((staging / "model" / "model.safetensors").is_file)
    process.kill()
    process.end()
    assert not output.exists() and (staging / LEASE).exists()
    export(load_run(small_runs["sst2"]).model, output)
    assert (output / "model.safetensors").is_file() and not staging.exists()


SLOW_MERGE = """
import sys, time
from minipeft.adapters import merging
merging._copy_tokenizer = lambda *folders: time.sleep(100)
from minipeft import export, load_run
export(load_run(sys.argv[1]).model, sys.argv[2])
"""


@pytest.mark.parametrize("kind", ["merge", "report", "glue_test", "predict", "compare"])
def test_an_output_in_use_is_refused_by_name(
    kind: str, small_runs: dict[str, Path], texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, run = tmp_path / "output", small_runs["sst2"]
    commands: dict[str, tuple[Path, list[object]]] = {
        "merge": (tmp_path / ".output.partial", ["merge", run, output]),
        "report": (tmp_path / ".output.partial", ["evaluate", run, "--report", output]),
        "glue_test": (output, ["predict", run, "--glue-test", output, "--data", shared("glue")]),
        "predict": (tmp_path / ".output.parts", ["predict", run, "--input", texts, "--output", output]),
        "compare": (output, ["compare", "--task", "sst2", "--method", "head", "--train-limit", 8, "--output", output]),
    }
    held, words = commands[kind]
    with Lease(held):
        assert main([*map(str, words)]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert re.search(rf"{output} is in use by process \d+ on .*Wait until it has finished", error), error
    assert not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written_leaves_no_folder(
    small_runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*given: Any) -> None:
        raise MinipeftError("No space left")

    monkeypatch.setattr(evaluation_files, "write_json", no_space)
    assert main(["evaluate", str(small_runs["sst2"]), "--report", str(tmp_path / "report")]) == 2
    assert not list(tmp_path.iterdir())


def test_a_prediction_without_space_for_the_first_chunk_leaves_no_folder(
    small_runs: dict[str, Path], texts: Path, tmp_path: Path
) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        words = ["predict", str(small_runs["sst2"]), "--input", str(texts), "--output", str(tmp_path / "out")]
        assert main(words) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
