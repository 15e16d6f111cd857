"""One process writes to a run's folder: real processes that start together, die, or stand still."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY, environment

from minipeft import MinipeftError
from minipeft.files import LEASE
from minipeft.training.lease import Lease

TRAIN = """
import sys
from minipeft.training import lease
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


def wait_until(done: Callable[[], object], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not done():
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.01)


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
            # in use while the winner trains, and of other settings when it has finished
            assert f"is in use by process {trainings[winner].pid} on " in message or f"has seed {winner}" in message
    assert json.loads((output / "config.json").read_text())["seed"] == winner
    assert json.loads((output / "result.json").read_text())["seed"] == winner
    assert not (output / LEASE).exists() and not list(output.rglob("*.partial"))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="who is alive is known at once only where there is /proc")
def test_a_killed_training_is_resumed_at_once(tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = start(tiny_checkpoint, small_data, output, *LONG)
    wait_until((output / "checkpoint" / "state.pt").exists, process)
    second = start(tiny_checkpoint, small_data, output, *LONG, "--resume")
    assert re.search(rf"is in use by process {process.pid} on .*choose another --output", second.communicate()[1])
    assert second.returncode == 2
    process.kill()
    process.communicate()
    assert (output / LEASE).exists()
    began = time.monotonic()
    with Lease(output) as lease:
        assert time.monotonic() - began < 10  # not the 30 s of an owner that may be alive
        lease.check()
    assert not (output / LEASE).exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGSTOP")
def test_a_training_that_stood_still_writes_nothing_when_it_wakes_up(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    first = start(tiny_checkpoint, small_data, output, *LONG)
    wait_until((output / "checkpoint" / "state.pt").exists, first)
    first.send_signal(signal.SIGSTOP)
    second = start(tiny_checkpoint, small_data, output, *LONG, "--resume", stale=0.5)

    def taken_over() -> bool:
        lease = output / LEASE
        return lease.exists() and f'"pid": {second.pid}' in lease.read_text()

    wait_until(taken_over, second)
    first.send_signal(signal.SIGCONT)
    error = first.communicate(timeout=60)[1]
    assert first.returncode == 2 and f"process {second.pid} on " in error and "stood still" in error, error
    assert taken_over()
    second.terminate()
    assert "minipeft: interrupted " in second.communicate(timeout=60)[1] and second.returncode == 143
    with Lease(output):
        pass


def test_a_heartbeat_of_another_machine_is_judged_by_the_own_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A holder that nobody here can look up, whose clock is a year ahead."""
    monkeypatch.setattr("minipeft.training.lease.BEAT_SECONDS", 0.05)
    monkeypatch.setattr("minipeft.training.lease.STALE_SECONDS", 0.5)
    lease = tmp_path / LEASE
    lease.write_text(json.dumps({"token": "x", "host": "node7", "machine": "other", "pid": 1, "started": "1"}))
    ahead = time.time() + 365 * 86400
    os.utime(lease, (ahead, ahead))
    beating = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import os, time\nfor n in range(200):\n    time.sleep(0.05); os.utime({str(lease)!r}, (n, n))",
        ]
    )
    try:
        with pytest.raises(MinipeftError, match="is in use by process 1 on node7"):
            time.sleep(0.5)
            Lease(tmp_path).__enter__()
    finally:
        beating.kill()
        beating.wait()
    with Lease(tmp_path) as mine:  # the heartbeat has ended
        mine.check()
        lease.write_text(json.dumps({"token": "y", "host": "node8", "pid": 2}))
        with pytest.raises(MinipeftError, match="process 2 on node8 has taken the run over"):
            mine.check()
    assert lease.exists(), "the lease of another process was removed"
