"""The CPU threads of a run, where other processes use the cores too."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from minipeft.training import threads
from minipeft.training.threads import CpuMonitor, choose_threads, count_cores

BURN = "import time\nwhile time.process_time() < 0.5: pass"


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine of four cores, of which this process may use two."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads, "count_cores", lambda: 2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("others", "expected"), [(0.0, 2), (1.9, 2), (2.4, 2), (2.7, 1), (4.0, 1), (9.0, 1)])
def test_a_run_takes_the_cores_that_are_free(others: float, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_cores_of_others", lambda seconds: others)
    choose_threads(None)
    assert torch.get_num_threads() == expected


def test_the_flag_and_the_variable_take_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_cores_of_others", lambda seconds: 4.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    choose_threads(None)
    assert torch.get_num_threads() == 2
    choose_threads(3)
    assert torch.get_num_threads() == 3


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="reads Linux's counters")
def test_the_cpu_time_of_other_processes_is_counted() -> None:
    before = threads._busy_seconds()
    subprocess.run([sys.executable, "-c", BURN], check=True)
    after = threads._busy_seconds()
    assert before is not None and after is not None and after - before >= 0.4
    assert threads._cores_of_others(0.05) >= 0


def test_the_cores_are_at_least_one_and_no_more_than_the_affinity() -> None:
    assert 1 <= count_cores() <= len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(1024))


@pytest.mark.parametrize(
    ("own", "busy", "warns"),
    [
        (20.0, 20.0, False),  # alone
        (8.0, 8.0, False),  # alone, and not busy: a small model
        (8.0, 38.0, True),  # 3 cores of others: two threads share one core
        (19.0, 40.0, False),  # the machine is full, but the run has its cores
    ],
)
def test_a_run_on_a_busy_machine_is_told_so_once(
    own: float, busy: float, warns: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = {"perf_counter": 0.0, "process_time": 0.0, "busy": 0.0}
    monkeypatch.setattr(threads.time, "perf_counter", lambda: clock["perf_counter"])
    monkeypatch.setattr(threads.time, "process_time", lambda: clock["process_time"])
    monkeypatch.setattr(threads, "_busy_seconds", lambda: clock["busy"])
    monitor = CpuMonitor()
    with caplog.at_level(logging.WARNING, "minipeft"):
        for epoch in (1, 2):  # of 10 seconds
            clock |= {"perf_counter": 10.0 * epoch, "process_time": own * epoch, "busy": busy * epoch}
            monitor.check()
    line = "the CPU is busy with other processes: 2 threads had 40 percent of their cores. Pass --threads 1."
    assert [record.getMessage() for record in caplog.records] == ([line] if warns else [])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's malloc is left as it is")
def test_memory_that_is_freed_is_used_again_without_page_faults() -> None:
    """32 blocks of 4 MiB, as the activations of a step, four times."""
    script = """
import resource, sys, torch
from minipeft.training.threads import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
def faults():
    blocks = [torch.empty(1 << 20).fill_(1) for _ in range(32)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
first, *_, last = [faults() for _ in range(4)]
print(last - first)
"""

    def count(word: str, **settings: str) -> int:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        environment |= {"OMP_NUM_THREADS": "1"} | settings
        done = subprocess.run([sys.executable, "-c", script, word], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert count("keep") < count("leave") / 3
    assert count("keep", MALLOC_TRIM_THRESHOLD_="65536") > count("keep")  # a user's setting stays
