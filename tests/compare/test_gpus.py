"""Which GPU each command of the local runner gets; no GPU is needed."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from minipeft.compare.runners import local_runner
from minipeft.compare.runners.local_runner import Command, LocalRunner, log_file, visible_gpus
from minipeft.compare.runners.runner import default_jobs
from minipeft.compare.runners.runner_options import RunnerOptions
from minipeft.device import choose_device
from minipeft.errors import MinipeftError

PRINT_GPU = """
import os, sys, time
print("GPU", os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("variable", "count", "names"),
    [
        (None, 2, ["0", "1"]),
        (None, 0, []),
        ("3,5", 2, ["3", "5"]),
        ("GPU-aa, GPU-bb", 2, ["GPU-aa", "GPU-bb"]),
        ("3,-1,5", 1, ["3"]),
    ],
)
def test_gpus_are_named_as_this_process_sees_them(variable: str | None, count: int, names: list[str]) -> None:
    assert visible_gpus({} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}, count) == names


@pytest.mark.parametrize(
    ("device", "gpus", "jobs_per_gpu", "commands", "jobs"),
    [("cuda", 8, 1, 20, 8), ("cuda", 8, 2, 20, 16), ("cuda", 8, 1, 3, 3), ("cuda:1", 0, 2, 9, 2), ("mps", 0, 1, 9, 1)],
)
def test_jobs_at_once(device: str, gpus: int, jobs_per_gpu: int, commands: int, jobs: int) -> None:
    assert default_jobs(device, gpus, jobs_per_gpu, commands) == jobs


def test_child_processes_see_their_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four children on two GPUs; one ends, and the next child gets its GPU."""
    monkeypatch.setattr(local_runner, "PROGRAM", PRINT_GPU)
    runner = LocalRunner(tmp_path, 4, ["3", "5"])

    def start(name: str) -> str:
        runner.start(Command(name, [], tmp_path / name))
        until = time.monotonic() + 60
        while len(said := log_file(tmp_path, name).read_text().split()) < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert said[0] == "GPU"
        return said[1]

    got = {name: start(name) for name in "abcd"}
    assert Counter(got.values()) == {"3": 2, "5": 2}
    process = runner.processes["b"]
    assert process.stdin is not None
    process.stdin.close()
    process.wait()
    assert runner.poll() == {"b": None}
    assert start("e") == got["b"]
    runner.stop()


def test_a_gpu_can_be_chosen_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert choose_device("cuda:1") == "cuda:1" and chosen == [1]
    assert choose_device("cuda") == "cuda" and choose_device("auto") == "cuda" and chosen == [1]
    for name in ("cuda:2", "cuda:x", "cuda:", "cpu:0"):
        with pytest.raises(MinipeftError, match="no such GPU"):
            choose_device(name)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(MinipeftError, match="torchrun gives each process a GPU"):
        choose_device("cuda:0")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"runner": "slurm"}, "--runner 'slurm'"),
        ({"ray_address": "auto"}, "--ray-address auto: the runner is local"),
        ({"gpus_per_run": 0.5}, "--gpus-per-run 0.5: the runner is local"),
        ({"jobs": 0}, "--jobs 0"),
        ({"jobs_per_gpu": -1}, "--jobs-per-gpu -1"),
        ({"cpus_per_run": 0.0}, "--cpus-per-run 0"),
    ],
)
def test_runner_flags_that_cannot_be_are_refused(flags: dict[str, object], message: str) -> None:
    with pytest.raises(MinipeftError, match=message):
        RunnerOptions.take_from(dict(flags))
