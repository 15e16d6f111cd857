"""One process writes to a run's folder: real processes that start together, die, or stand still."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY, environment
from filelock import SoftFileLease
from small_runs import last_step

from minipeft import MinipeftError
from minipeft import lease as lease_module
from minipeft.cli.cli import main_train
from minipeft.files import LEASE, write_lines, write_text
from minipeft.lease import Lease
from minipeft.staging import wait_for_release
from minipeft.training.reporting.trackers import Events
from minipeft.training.run_folder.checkpoint_files import has_checkpoint

TRAIN = """
import sys
from minipeft import lease
lease.BEAT_SECONDS, lease.STALE_SECONDS = 0.05, float(sys.argv[1])
from minipeft.cli import main_train
sys.exit(main_train(sys.argv[2:]))
"""
LONG = ("--epochs", "200", "--batch-size", "8", "--grad-accum", "1", "--device", "cpu", "--checkpoint-minutes", "0")


def start(model: Path, data: Path, output: Path, *more: str, stale: float = 30.0) -> subprocess.Popen[str]:
    flags = ["--task", "rte", "--model", str(model), "--data", str(data), "--output", str(output), "--quiet", *more]
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(stale), *flags],
        cwd=REPOSITORY,
        env=environment(OMP_NUM_THREADS="1"),
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )


def owner_of(output: Path) -> int | None:
    """The process that holds the lease of a folder."""
    return SoftFileLease(output / LEASE).pid


def write_owner(output: Path, pid: int, host: str) -> Path:
    """Make another machine's process the owner, as its filelock does."""
    content = f"filelock/2\npid={pid}\nhost={host}\nmode=lease\ntoken={host}\nduration={lease_module.STALE_SECONDS}\n"
    (output / LEASE).write_text(content)
    return output / LEASE


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease_module, "STALE_SECONDS", 1.5)  # a thread of a busy machine may wait for a second


def wait_until(done: Callable[[], object], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not done():
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.01)


@pytest.mark.full
def test_of_trainings_that_start_together_one_trains_and_the_others_name_it(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    trainings = {
        seed: start(tiny_checkpoint, small_data, output, *LONG[2:], "--epochs", "2", "--seed", str(seed), "--resume")
        for seed in (1, 2, 3)
    }
    errors = {seed: process.communicate(timeout=120)[1] for seed, process in trainings.items()}
    (winner,) = [seed for seed, process in trainings.items() if process.returncode == 0]
    for seed, process in trainings.items():
        if seed != winner:
            assert process.returncode == 2, errors[seed]
            message = errors[seed].strip().splitlines()[-1]
            # in use while the winner trains, or another one looks; of other settings when the winner has finished
            (other,) = {1, 2, 3} - {winner, seed}
            holders = f"{trainings[winner].pid}|{trainings[other].pid}"
            assert re.search(rf"is in use by process ({holders}) on |has seed {winner}", message), message
    assert json.loads((output / "config.json").read_text())["seed"] == winner
    assert json.loads((output / "result.json").read_text())["seed"] == winner
    assert not (output / LEASE).exists() and not list(output.rglob("*.partial"))


@pytest.mark.full
def test_a_killed_training_is_resumed_at_once(tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = start(tiny_checkpoint, small_data, output, *LONG)
    wait_until(lambda: has_checkpoint(output), process)
    second = start(tiny_checkpoint, small_data, output, *LONG, "--resume")
    assert re.search(rf"is in use by process {process.pid} on .*choose another --output", second.communicate()[1])
    assert second.returncode == 2
    process.kill()
    process.communicate()
    assert owner_of(output) == process.pid
    began = time.monotonic()
    wait_for_release(output, 60)  # as a comparison's run does
    with Lease(output) as lease:
        assert time.monotonic() - began < 10  # not the 30 s of an owner that may be alive
        lease.check()
    assert not (output / LEASE).exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGSTOP")
def test_a_training_that_stood_still_writes_nothing_when_it_wakes_up(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    first = start(tiny_checkpoint, small_data, output, *LONG, stale=0.5)
    wait_until(lambda: has_checkpoint(output), first)
    first.send_signal(signal.SIGSTOP)
    second = start(tiny_checkpoint, small_data, output, *LONG, "--resume", stale=0.5)

    def taken_over() -> bool:
        return second.pid == owner_of(output)

    wait_until(taken_over, second)
    first.send_signal(signal.SIGCONT)
    error = first.communicate(timeout=60)[1]
    assert first.returncode == 2 and f"process {second.pid} on " in error and "stood still" in error, error
    assert taken_over()
    saved = last_step(output)
    wait_until(lambda: last_step(output) > saved, second)
    second.terminate()
    assert "minipeft: interrupted " in second.communicate(timeout=60)[1] and second.returncode == 143
    with Lease(output):
        pass


@pytest.mark.skipif(sys.version_info < (3, 11), reason="filelock for Python 3.10 compares the clocks of two machines")
@pytest.mark.usefixtures("fast")
def test_a_heartbeat_of_another_machine_is_judged_by_the_own_clock(tmp_path: Path) -> None:
    """An owner that nobody here can look up, whose clock is a year ahead."""
    owner = write_owner(tmp_path, 1, "node7")
    ahead = time.time() + 365 * 86400
    os.utime(owner, (ahead, ahead))
    ended = threading.Event()

    def beat() -> None:
        number = 0
        while not ended.wait(0.05):
            os.utime(owner, (number := number + 1, number))

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(MinipeftError, match="is in use by process 1 on node7"):
            Lease(tmp_path).__enter__()
    finally:
        ended.set()
        beating.join()
    with Lease(tmp_path) as mine:  # the heartbeat has ended
        mine.check()
        (tmp_path / LEASE).unlink()
        write_owner(tmp_path, 2, "node8")
        with pytest.raises(MinipeftError, match="process 2 on node8 has taken the run over"):
            mine.check()
    assert owner_of(tmp_path) == 2, "the lease of another process was removed"


@pytest.mark.usefixtures("fast")
def test_an_owner_that_lives_is_not_disturbed_by_others_that_try(tmp_path: Path) -> None:
    refused: list[str] = []

    def attempt() -> None:
        for _ in range(5):
            with pytest.raises(MinipeftError) as caught:
                Lease(tmp_path).__enter__()
            refused.append(str(caught.value))

    with Lease(tmp_path) as lease:
        threads = [threading.Thread(target=attempt) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            lease.check()
        assert len(refused) == 20 and all(f"in use by process {os.getpid()} on " in message for message in refused)
        assert owner_of(tmp_path) == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("fast")
def test_of_several_that_find_a_lease_stale_one_takes_it_over(tmp_path: Path) -> None:
    write_owner(tmp_path, 1, "node7")
    start, leases, refused = threading.Barrier(4), [Lease(tmp_path) for _ in range(4)], []

    def take(lease: Lease) -> None:
        start.wait()
        try:
            lease.__enter__()
        except MinipeftError as error:
            refused.append((lease, str(error)))

    threads = [threading.Thread(target=take, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = {*leases} - {lease for lease, _ in refused}
    winner.check()
    assert all(f"in use by process {os.getpid()} on " in message for _, message in refused), refused
    winner.__exit__()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("fast")
def test_a_process_that_lost_the_lease_writes_no_file_of_the_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with Lease(run):
        (run / "checkpoint").mkdir()
        files = [run / "metrics.jsonl", run / "result.json", run / "checkpoint" / "step-00000001.json"]
        for path in files:
            write_text(path, "before")
        (run / LEASE).unlink()
        write_owner(run, 2, "node8")
        for path in files:
            with pytest.raises(MinipeftError, match="process 2 on node8 has taken the run over"):
                write_lines(path, [{"epoch": 2}])
        with Events(run, ["tensorboard"], 1) as events, pytest.raises(MinipeftError, match="has taken the run over"):
            events.add(1, {"loss": 1.0})
        write_text(tmp_path / "elsewhere", "written")
    assert not (run / "tensorboard").exists()
    assert all(path.read_text() == "before" for path in files) and not list(run.rglob("*.partial"))
    write_text(files[0], "without a lease, as predict writes its files")


@pytest.mark.usefixtures("fast")
def test_a_kill_while_the_lease_is_created_leaves_a_file_that_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / LEASE).write_text("filelock/2\npid=1")  # cut
    with Lease(tmp_path) as lease:
        lease.check()


def test_a_folder_that_cannot_hold_a_lease_is_an_error(tmp_path: Path) -> None:
    (tmp_path / LEASE).mkdir()
    with pytest.raises(MinipeftError, match=rf"{LEASE}: cannot be written \(Is a directory\)"):
        Lease(tmp_path).__enter__()


def test_a_refused_training_prints_one_line(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    flags = ["--task", "rte", "--model", str(tiny_checkpoint), "--data", str(small_data), "--output", str(output)]
    with Lease(output):
        assert main_train([*flags, "--resume"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"minipeft: {output} is in use by process {os.getpid()} on ")
    assert not output.exists()


STAGE = """
import sys
from pathlib import Path
from minipeft import MinipeftError
from minipeft.staging import staging_folder
for _ in range(500):
    try:
        with staging_folder(Path(sys.argv[1])):
            pass
    except MinipeftError as error:
        if "is in use by" not in str(error):
            sys.exit(str(error))
"""


def test_a_staging_folder_that_another_process_removes_is_made_again(tmp_path: Path) -> None:
    """The last one out removes the empty folder and the one above it, at any moment of another's way in."""
    command = [sys.executable, "-c", STAGE, str(tmp_path / "new" / "output")]
    processes = [subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=100)[1] for process in processes] == [""] * 3
    assert not list(tmp_path.glob("new/*"))
