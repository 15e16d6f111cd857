"""Many `minipeft` commands: what a runner is, which one is used, and the loop that executes them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from minipeft.compare.local_runner import Command, LocalRunner, count_cores, memory_size, visible_gpus
from minipeft.errors import Interrupted, MinipeftError, check_choice, check_int, format_names
from minipeft.training.reporting.epoch_table import disable_bar
from minipeft.training.run_folder.signals import collect_signals

MEMORY_PER_RUN = 4 << 30  # bytes: full fine-tuning of roberta-base in fp32, with AdamW's state
POLL_INTERVAL = 0.1  # seconds
ALL_AT_ONCE = 1_000_000  # jobs: Ray decides how many it can execute


class Runner(Protocol):
    """Where commands are executed: LocalRunner or RayRunner."""

    jobs: int  # how many commands to execute at once

    def start(self, command: Command) -> None: ...
    def poll(self) -> dict[str, str | None]: ...
    def stop(self) -> None: ...


@dataclass(frozen=True)
class RunnerOptions:
    """The flags --runner, --jobs, …; None: not given."""

    runner: str = "local"
    jobs: int | None = None
    jobs_per_gpu: int = 1
    ray_address: str | None = None
    cpus_per_run: float = 1.0
    gpus_per_run: float | None = None

    @classmethod
    def take_from(cls, flags: dict[str, Any]) -> RunnerOptions:
        """Remove these options from a command's flags, and return them checked; None is the default.

        Raises:
            MinipeftError: for values that do not fit together.
        """
        given = {field.name: flags.pop(field.name, None) for field in fields(cls)}
        options = cls(**{name: value for name, value in given.items() if value is not None})
        options._check()
        return options

    def _check(self) -> None:
        check_choice("--runner", self.runner, ("local", "ray"))
        for name in ("jobs", "jobs_per_gpu"):
            if (value := getattr(self, name)) is not None:
                check_int(f"--{name.replace('_', '-')}", value)
        given = {"--ray-address": self.ray_address, "--gpus-per-run": self.gpus_per_run}
        for name, value in given.items():
            if value is not None and self.runner != "ray":
                raise MinipeftError(f"{name} {value}: the runner is local. Add --runner ray, or leave it out.")
        if self.cpus_per_run <= 0 or (self.gpus_per_run or 0) < 0:
            raise MinipeftError(f"--cpus-per-run {self.cpus_per_run:g}: the number is not positive. Choose 1 or more.")


def make_runner(folder: Path, options: RunnerOptions, device: str, commands: int) -> Runner:
    """Return the runner of some commands.

    Args:
        folder: where logs/ is written.
        options: the flags.
        device: what the commands use: "cpu", "mps", "cuda" for all GPUs of this machine, or one such as "cuda:1".
        commands: how many there are.
    """
    if options.runner == "ray":
        from minipeft.compare.ray_runner import RayRunner

        return RayRunner(
            folder, options.ray_address, options.cpus_per_run, options.gpus_per_run, options.jobs or ALL_AT_ONCE
        )
    gpus: list[str] = []
    if device == "cuda":
        import torch

        gpus = visible_gpus(os.environ, torch.cuda.device_count())
    return LocalRunner(folder, options.jobs or default_jobs(device, len(gpus), options.jobs_per_gpu, commands), gpus)


def default_jobs(device: str, gpus: int, jobs_per_gpu: int, commands: int) -> int:
    """Return how many commands to execute at once on this machine."""
    if device != "cpu":
        most = max(1, gpus) * jobs_per_gpu
    else:
        memory = memory_size()
        most = 1 if memory is None else min(count_cores(), memory // MEMORY_PER_RUN)
    return max(1, min(commands, most))


def execute(
    commands: Sequence[Command], total: int, unit: str, make: Callable[[], Runner], quiet: bool
) -> dict[str, str]:
    """Execute commands, `runner.jobs` at once, and return the errors of those that failed, by name.

    After SIGINT or SIGTERM the active commands save and end, and Interrupted is raised.

    Args:
        commands: those to execute.
        total: how many there are with those that were finished before.
        unit: what one is, for the progress bar.
        make: makes the runner, which takes part in signal handling.
        quiet: print nothing.
    """
    queue, running, failed = list(commands), set[str](), dict[str, str]()
    if not queue:
        return {}
    runner = make()
    done, no_bar = total - len(queue), disable_bar(quiet)
    with collect_signals() as received, tqdm(total=total, initial=done, unit=unit, disable=no_bar) as bar:
        try:
            while queue or running:
                while queue and len(running) < runner.jobs:
                    runner.start(queue[0])
                    running.add(queue.pop(0).name)
                    bar.set_postfix_str(format_names(sorted(running), 4))
                time.sleep(POLL_INTERVAL)
                if received:
                    raise Interrupted(
                        received[0], f"interrupted with {done} of {total} {unit}s done; resume with --resume"
                    )
                for name, error in runner.poll().items():
                    running.remove(name)
                    done += 1
                    bar.update()
                    if error is not None:
                        failed[name] = error
                    if not quiet:
                        outcome = "finished" if error is None else f"failed: {error}"
                        tqdm.write(f"{done} of {total}: {name} {outcome}", file=sys.stderr)
        finally:
            runner.stop()
    return {command.name: failed[command.name] for command in commands if command.name in failed}
