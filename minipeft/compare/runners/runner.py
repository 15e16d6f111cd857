"""Many `minipeft` commands: what a runner is, which one is used, and the loop that executes them."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from tqdm.auto import tqdm

from minipeft.compare.runners.local_runner import Command, LocalRunner, memory_size, read_progress, visible_gpus
from minipeft.compare.runners.runner_options import RunnerOptions
from minipeft.errors import Interrupted, format_names
from minipeft.progress_bar import disable_bar
from minipeft.training.run_folder.signals import collect_signals
from minipeft.training.threads import count_cores

MEMORY_PER_RUN = 4 << 30  # bytes: full fine-tuning of roberta-base in fp32, with AdamW's state
POLL_INTERVAL = 0.1  # seconds
ALL_AT_ONCE = 1_000_000  # jobs: Ray decides how many it can execute


class Runner(Protocol):
    """Where commands are executed: LocalRunner or RayRunner."""

    jobs: int  # how many commands to execute at once
    folder: Path  # where their logs/ are

    def start(self, command: Command) -> None: ...
    def poll(self) -> dict[str, str | None]: ...
    def stop(self) -> None: ...


def make_runner(folder: Path, options: RunnerOptions, device: str, commands: int) -> Runner:
    """Return the runner of so many commands, which write to logs/ in a folder; "cuda" is all GPUs of this machine."""
    if options.runner == "ray":
        from minipeft.compare.runners.ray_runner import RayRunner

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
    commands: Sequence[Command],
    total: int,
    unit: str,
    make: Callable[[], Runner],
    quiet: bool,
    describe: Callable[[Command], str] = lambda command: "finished",
) -> dict[str, str]:
    """Execute commands, `runner.jobs` at once, and return the errors of those that failed, by name.

    After SIGINT or SIGTERM the active commands save and end, and Interrupted is raised. `total` counts the commands
    that were finished before, too. `make` is called here, because a runner may change how signals are handled.
    `describe` says of a command that has ended without an error what it did.
    """
    queue, running, failed = list(commands), set[str](), dict[str, str]()
    if not queue:
        return {}
    runner, start_time, by_name = make(), time.monotonic(), {command.name: command for command in commands}
    done, no_bar = total - len(queue), disable_bar(quiet)
    bar_settings = {"total": total, "initial": done, "unit": unit, "miniters": 0, "smoothing": 0, "disable": no_bar}
    with collect_signals() as received, tqdm(**bar_settings) as bar:
        try:
            while queue or running:
                while queue and len(running) < runner.jobs:
                    runner.start(queue[0])
                    running.add(queue.pop(0).name)
                    bar.set_postfix_str(format_names(sorted(running), 4))
                time.sleep(POLL_INTERVAL)
                if received:
                    raise Interrupted(received[0], f"interrupted after {done} of {total} {unit}s; resume with --resume")
                for name, error in runner.poll().items():
                    running.remove(name)
                    done += 1
                    if error is not None:
                        failed[name] = error
                    if not quiet:
                        outcome = describe(by_name[name]) if error is None else f"failed: {error}"
                        left = (time.monotonic() - start_time) / (done - total + len(commands)) * (total - done)
                        minutes = f"; about {left / 60:.0f} minutes left" if left >= 90 else ""
                        tqdm.write(f"{done} of {total}: {name} {outcome}{minutes}", file=sys.stderr)
                if not bar.disable:
                    bar.n = round(done + sum(read_progress(runner.folder, name) for name in running), 1)
                    bar.update(0)
        finally:
            runner.stop()
    return {command.name: failed[command.name] for command in commands if command.name in failed}
