"""Real processes that train, to be killed; and what of their folders must be the same to the bit."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from conftest import REPOSITORY, details_of, environment
from small_runs import same_tensors
from small_runs import state as state

from minipeft.cli.cli import main_train
from minipeft.training.run_folder.checkpoint_files import has_checkpoint

TIMES = ("seconds", "samples_per_second")
TRAINING = r"epoch +train_loss"  # the header of the table of epochs


def training(
    checkpoint: Path, data: Path, output: Path, *more: object, epochs: int = 8, dropout: float | None = 0.2
) -> list[str]:
    """train.py's arguments for a run of `epochs` times 24 steps, with dropout; it takes a few seconds."""
    more = more if dropout is None else (*more, "--dropout", dropout)
    flags = ["--task", "rte", "--model", checkpoint, "--data", data, "--epochs", epochs, "--batch-size", 4]
    flags += ["--grad-accum", 1, "--device", "cpu", "--output", output]
    flags += [*more, *([] if "--precision" in more else ["--precision", "fp32"])]
    return ["train.py", *map(str, flags)]


class Process:
    """A command that runs, in this checkout and without a network; it writes all that it says to a file."""

    def __init__(self, log: Path, command: Sequence[str], cwd: Path = REPOSITORY, **variables: str) -> None:
        self.log = log
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                command, cwd=cwd, env=environment(OMP_NUM_THREADS="1", **variables), stdout=file, stderr=file
            )

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_until(self, condition: Callable[[], object], seconds: float = 300) -> bool:
        """Whether the condition came true before the command ended."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            if condition():
                return True
            if time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"nothing after {seconds} s: {self.said()}")
            time.sleep(0.0005)
        return False

    def wait_until_training(self) -> bool:
        return self.wait_until(lambda: re.search(TRAINING, self.said()))

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 300) -> int:
        """Its exit status."""
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()

    def lines(self) -> list[str]:
        return lines(self.said())


def lines(said: str) -> list[str]:
    """What was said, without the progress bar and empty lines."""
    ends = (line.rsplit("\r", 1)[-1] for line in re.split(r"\n|\x1b\[A", said))
    return [line for line in ends if line.strip() and not re.match(r" *(epoch|\d+)  ", line)]


def start(log: Path, arguments: Sequence[str], **variables: str) -> Process:
    return Process(log, [sys.executable, *arguments], **variables)


def start_workers(log: Path, count: int, arguments: Sequence[str], *flags: str, **variables: str) -> Process:
    """torchrun with `count` processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *flags]
    return Process(log, [sys.executable, *torchrun, *arguments], **variables)


def run_here(arguments: Sequence[str]) -> tuple[int, list[str]]:
    """A run that nothing disturbs, in this process, on one thread as the others; its exit status and what it said."""
    said, threads = io.StringIO(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with redirect_stdout(said), redirect_stderr(said):
            return main_train(arguments[1:]), lines(said.getvalue())
    finally:
        torch.set_num_threads(threads)


def finish(arguments: Sequence[str]) -> list[str]:
    """Let a run come to its end; what it said."""
    status, said = run_here(arguments)
    assert status == 0, said
    return said


def history(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock measured."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def assert_whole(folder: Path) -> None:
    """Every file that a killed run has left can be read, and the adapter is of an epoch that the checkpoint knows."""
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    epochs = len(state(folder)["progress"]["history"]) if has_checkpoint(folder) else 0
    rows = history(folder) if (folder / "metrics.jsonl").exists() else []
    assert epochs - 1 <= len(rows) <= epochs
    if (folder / "adapter" / "adapter_model.safetensors").exists():
        assert 1 <= details_of(folder / "adapter")["epoch"] <= epochs
    else:
        assert epochs <= 1


def assert_same(one: Path, other: Path) -> None:
    """Two finished runs are the same to the bit: adapter, metrics, result, trained tensors and optimizer."""
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (one / "adapter" / name).read_bytes() == (other / "adapter" / name).read_bytes(), name
    assert history(one) == history(other)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    for name in ("best", "last", "parameters"):
        assert results[0][name] == results[1][name]
    first, second = state(one), state(other)
    for kind in ("weights", "optimizer"):
        assert same_tensors(first[kind], second[kind]), kind
    assert not list(one.rglob(".*")) and not list(other.rglob(".*"))


def processes_of(job: Process) -> list[int]:
    """The process ids of a torchrun job's workers, in the order of their ranks."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"PPid:\t{job.process.pid}\n" in (folder / "status").read_text():
                rank = re.search(rb"(?:^|\0)RANK=(\d+)", (folder / "environ").read_bytes())
                found |= {int(rank[1]): int(folder.name)} if rank else {}
        except OSError:  # it has just ended
            continue
    return [found[rank] for rank in sorted(found)]


def worker(job: Process, rank: int) -> int:
    """The process id of a torchrun job's worker."""
    workers = processes_of(job)
    assert rank < len(workers), f"no worker {rank}\n{job.said()}"
    return workers[rank]


def kill_process(process_id: int, number: int = signal.SIGKILL) -> None:
    os.kill(process_id, number)
