"""Predictions over files by several processes, and by some that end early: a closed pipe, a kill, a full disk."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, environment, refused

from minipeft.cli.cli import main
from minipeft.data.tasks.splits import CHUNK_ROWS
from minipeft.inference import predict_file
from minipeft.inference.predict import LoadedRun, load_run


@pytest.fixture(scope="module")
def single(small_runs: dict[str, Path]) -> LoadedRun:
    return load_run(small_runs["sst2"], "cpu")


def test_a_reader_that_has_enough_ends_the_stream_quietly(small_runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a b\n" * 3 * CHUNK_ROWS)
    command = [sys.executable, "-m", "minipeft", "predict", small_runs["sst2"], "--input", tmp_path / "in.txt"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    assert "label" in json.loads(process.stdout.readline())
    process.stdout.close()
    assert (process.stderr.read(), process.wait(300)) == (b"", 141)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six windows and a bit, in two files."""
    folder = tmp_path_factory.mktemp("many")
    for name, start in (("a.txt", 0), ("b.txt", 3 * CHUNK_ROWS + 77)):
        lines = (f"{'word ' * (row % 7)}{row}" for row in range(start, start + 3 * CHUNK_ROWS + 77))
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def whole(many: Path, small_runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one process predicts for it."""
    output = tmp_path_factory.mktemp("whole") / "out.jsonl"
    assert main(["predict", str(small_runs["sst2"]), "--input", str(many), "--output", str(output)]) == 0
    return output.read_bytes()


def torchrun(processes: int, run: Path, many: Path, output: Path) -> subprocess.Popen[str]:
    from importlib.util import find_spec

    assert find_spec("torch.distributed.run") is not None
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)),
            *("-m", "minipeft", "predict", str(run), "--input", str(many), "--output", str(output), "--device", "cpu"),
        ],
        cwd=REPOSITORY,
        env=environment(OMP_NUM_THREADS=str(__import__("torch").get_num_threads())),
        text=True,
        stderr=subprocess.PIPE,
    )


@pytest.mark.full
def test_processes_share_the_windows_out_and_write_the_same_bytes(
    request: pytest.FixtureRequest, many: Path, whole: bytes, small_runs: dict[str, Path], tmp_path: Path
) -> None:
    """Two of them, and with --faults-full three."""
    count = 3 if request.config.getoption("--faults-full") else 2
    process = torchrun(count, small_runs["sst2"], many, tmp_path / "out.jsonl")
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    assert (tmp_path / "out.jsonl").read_bytes() == whole
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.full)], ids=lambda number: number.name
)
def test_a_prediction_that_is_stopped_leaves_no_output_and_goes_on(
    number: signal.Signals,
    many: Path,
    whole: bytes,
    small_runs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, parts = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.parts"
    flags = ["predict", str(small_runs["sst2"]), "--input", str(many), "--output", str(output)]
    process = subprocess.Popen(
        [sys.executable, "-m", "minipeft", *flags], cwd=REPOSITORY, env=environment(), text=True, stderr=subprocess.PIPE
    )
    wait_for(lambda: len(list(parts.glob("*.jsonl"))) >= 1)
    process.send_signal(number)
    _, error = process.communicate(timeout=300)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), error
    if number != signal.SIGKILL:
        assert (
            error
            == f"minipeft: stopped, {output} is not written; the same command continues with the chunks that are done\n"
        )
    assert not output.exists()
    first = sorted(parts.glob("*.jsonl"))[0]
    first.write_bytes(b'{"kept": 1}\n')  # to see that it is not computed again
    kept = len(list(parts.glob("*.jsonl")))
    assert main(flags) == 0
    assert output.read_bytes() == first_replaced(whole) and kept < 7 and not parts.exists()


def first_replaced(whole: bytes) -> bytes:
    return b'{"kept": 1}\n' + b"".join(whole.splitlines(keepends=True)[CHUNK_ROWS:])


def test_a_full_disk_leaves_no_output_and_parts_of_other_rows_are_not_used(
    small_runs: dict[str, Path], single: LoadedRun, many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of a file stands for the full disk: there is room for the parts, not for the whole."""
    source, output, parts = tmp_path / "in", tmp_path / "out.jsonl", tmp_path / ".out.jsonl.parts"
    source.symlink_to(many)
    flags = ["predict", str(small_runs["sst2"]), "--input", str(source), "--output", str(output)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        status = main(flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    assert status == 2 and len(error.splitlines()) == 1, error
    assert f"{output}: cannot be written" in error and "free space" in error
    assert not output.exists() and len(list(parts.glob("*.jsonl"))) == 7
    source.unlink()
    source.mkdir()
    (source / "a.txt").write_text("two\n")
    assert main(flags) == 0
    assert [json.loads(line) for line in output.read_text().splitlines()] == single.predict(["two"])


@pytest.mark.full
def test_a_killed_worker_ends_the_job_without_a_result_and_a_second_one_works(
    request: pytest.FixtureRequest, many: Path, whole: bytes, small_runs: dict[str, Path], tmp_path: Path
) -> None:
    """The second one is a process alone, and with --faults-full again two."""
    output, parts = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.parts"
    process = torchrun(2, small_runs["sst2"], many, output)
    wait_for(lambda: (parts / "plan.json").exists())
    children = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True)
    workers = [int(line.split()[0]) for line in children.stdout.splitlines() if "minipeft predict" in line]
    assert len(workers) == 2, children.stdout
    os.kill(workers[-1], signal.SIGKILL)
    _, error = process.communicate(timeout=300)
    assert process.returncode != 0 and not output.exists()
    assert f"minipeft: stopped, {output} is not written; the same command continues" in error
    if request.config.getoption("--faults-full"):
        again = torchrun(2, small_runs["sst2"], many, output)
        _, error = again.communicate(timeout=600)
        assert again.returncode == 0, error
    else:
        assert main(["predict", str(small_runs["sst2"]), "--input", str(many), "--output", str(output)]) == 0
    assert output.read_bytes() == whole


def test_a_rank_without_a_heartbeat_is_waited_for_no_longer_than_the_limit(
    small_runs: dict[str, Path],
    single: LoadedRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rank 1 of 2 is on a machine that was lost; the limit is 60 s, here 1 s."""
    monkeypatch.setattr(predict_file, "LONGEST_SILENCE", 1.0)
    texts = [f"word {row}" for row in range(CHUNK_ROWS + 3)]
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    flags = ["predict", str(small_runs["sst2"]), "--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out")]
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert main(flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.endswith(
        "000000001.jsonl: rank 1 has ended without these predictions. Run the same command again: it continues."
    )
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(flags) == 0
    assert [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()] == single.predict(texts)


def test_a_rank_that_starts_when_rank_zero_has_finished_ends_as_well(
    small_runs: dict[str, Path], single: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An input of one chunk has nothing for rank 1, which may be late: at its start, or while it waits for rank 0."""
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    output = tmp_path / "out.jsonl"
    flags = ["predict", str(small_runs["sst2"]), "--input", str(tmp_path / "in.txt"), "--output", str(output)]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(flags) == 0
    content = output.read_bytes()
    monkeypatch.setenv("RANK", "1")
    assert main(flags) == 0
    output.unlink()
    late = threading.Timer(1.0, output.write_bytes, [content])
    late.start()
    assert main(flags) == 0
    late.join()
    assert [json.loads(line) for line in output.read_text().splitlines()] == single.predict(["one", "two"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.jsonl"]


def test_several_processes_need_files(
    small_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "give --input and --output" in refused(["predict", small_runs["sst2"], "--input", "-"], tmp_path, capsys)


def wait_for(condition: Any, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing came"
        time.sleep(0.01)
