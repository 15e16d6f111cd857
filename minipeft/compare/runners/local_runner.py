"""Runs `minipeft` commands on this machine, each in a child process that ends when its parent ends."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipeft.errors import flag_of
from minipeft.files import SHARED_CACHE
from minipeft.progress_bar import READ_BARS
from minipeft.staging import wait_for_release
from minipeft.training.threads import count_cores

BAR = re.compile(r"(\d+)/(\d+) \[[^\]]*step")  # of tqdm: 12/40 [00:03<00:07, 4.0step/s]
LOG_TAIL = 2048  # bytes
WAIT_FOR_RUN = 60.0  # seconds in which the same command of a killed parent must save and end
PROGRAM = (
    "import sys; from minipeft.compare.runners.local_runner import run_child; from minipeft.cli.cli import main; "
    "sys.exit(run_child(main, sys.argv[1], sys.argv[2:]))"
)


@dataclass(frozen=True)
class Command:
    """A `minipeft` command: its name in messages and logs, its words, and the file or folder that it writes."""

    name: str
    arguments: list[str]
    output: Path


def format_flags(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as flags of a command: True is a switch, a list has several values, and None is left out."""
    words: list[str] = []
    for name, value in settings.items():
        flag = flag_of(name)
        if isinstance(value, list):
            words += [flag, *map(str, value)]
        elif value is not None:
            words.append(flag if value is True else f"{flag}={value}")
    return words


class LocalRunner:
    """Starts `minipeft` commands as child processes that share the CPU cores and `gpus`, if there are any."""

    def __init__(self, folder: Path, jobs: int, gpus: Sequence[str] = ()) -> None:
        self.folder, self.jobs, self.gpus = folder, jobs, gpus
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.gpu_of: dict[str, str] = {}

    def start(self, command: Command) -> None:
        """Start a command. An OMP_NUM_THREADS that is set takes precedence over the equal share of the cores."""
        environment = dict(os.environ)
        if self.gpus:
            running = [self.gpu_of[other] for other in self.processes]
            gpu = min(self.gpus, key=running.count)  # the first of those with the fewest running jobs
            environment["CUDA_VISIBLE_DEVICES"] = self.gpu_of[command.name] = gpu
        threads = max(1, count_cores() // self.jobs)
        self.processes[command.name] = start_child(self.folder, command, threads, environment)

    def poll(self) -> dict[str, str | None]:
        """Return the commands that have ended since the last call: name → error message, None for success."""
        ended = [name for name, process in self.processes.items() if process.poll() is not None]
        statuses = {name: self.processes.pop(name).returncode for name in ended}
        return {name: error_of(self.folder, name, status) for name, status in statuses.items()}

    def stop(self) -> None:
        """Let the active commands save and end, and wait for them."""
        for process in self.processes.values():
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes.values():
            process.wait()


def visible_gpus(environment: Mapping[str, str], count: int) -> list[str]:
    """Return what names each of `count` GPUs in CUDA_VISIBLE_DEVICES: a number or an identifier."""
    names = environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if count else []
    return [name.strip() for name in names[:count]] if len(names) >= count else [str(gpu) for gpu in range(count)]


def start_child(
    folder: Path, command: Command, threads: int, environment: Mapping[str, str], cwd: str | None = None
) -> subprocess.Popen[bytes]:
    """Start a command as a child process; what it says is written to logs/<name>.txt in `folder`."""
    shares = {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads), "TQDM_MININTERVAL": "1"}
    shares[SHARED_CACHE] = str(folder.absolute() / "cache")  # compare removes it at the end
    log = log_file(folder, command.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(command.output), *command.arguments],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env={**shares, **environment, READ_BARS: "1"},
            cwd=cwd,
            start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone; Windows has another option
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )


def log_file(folder: Path, name: str) -> Path:
    return folder / "logs" / f"{name}.txt"


def read_progress(folder: Path, name: str) -> float:
    """Return the part of a command that is done, as the last bar of its steps in its log tells."""
    try:
        with open(log_file(folder, name), "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL))
            bars = BAR.findall(file.read().decode("utf-8", "replace"))
    except OSError:  # it has not started yet
        return 0.0
    return int(bars[-1][0]) / max(1, int(bars[-1][1])) if bars else 0.0


def run_child(main: Callable[[Sequence[str]], int], output: str, arguments: Sequence[str]) -> int:
    """Call `main`, that of the command line, when no other process writes to the folder `output`.

    The child of a killed parent may still be saving; the child of the next one waits for it.
    """
    threading.Thread(target=_terminate_with_parent, daemon=True).start()
    wait_for_release(Path(output), WAIT_FOR_RUN)
    return main(arguments)


def _terminate_with_parent() -> None:
    """Raise SIGTERM in this process when the parent closes standard input, which its end does as well."""
    while os.read(0, 1024):
        pass
    signal.raise_signal(signal.SIGTERM)  # os.kill would end the process without saving on Windows


def error_of(folder: Path, name: str, status: int) -> str | None:
    """The error message of a child process that has ended: its last `minipeft:` line, its last line, or the signal."""
    if status == 0:
        return None
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    log = log_file(folder, name)
    lines = [line.rsplit("\r", 1)[-1].strip() for line in log.read_text("utf-8", "replace").splitlines()]
    printed = [line for line in lines if line]
    errors = [line.removeprefix("minipeft: ") for line in printed if line.startswith("minipeft: ")]
    return (errors or printed or [f"ended with status {status}"])[-1]


def memory_size() -> int | None:
    """Return the machine's memory in bytes, or None where the system does not tell."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
