"""Runs a comparison's runs on this machine, each in a child process that ends when the comparison ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from minipeft.compare.plan import Run

WAIT_FOR_RUN = 60.0  # seconds in which the same run of a killed comparison must save and end
PROGRAM = (
    "import sys; from minipeft.compare.local_runner import run_child; from minipeft.cli.cli import main; "
    "sys.exit(run_child(main, sys.argv[1], sys.argv[2:]))"
)


class LocalRunner:
    """Starts runs as child processes `minipeft train … --resume`.

    Args:
        folder: the comparison's folder. Runs are written to runs/<name>, their output to logs/<name>.txt.
        jobs: how many runs to execute at once; they share the CPU cores.
    """

    def __init__(self, folder: Path, jobs: int) -> None:
        self.folder, self.jobs = folder, jobs
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, run: Run) -> None:
        """Start a run. The user's own OMP_NUM_THREADS takes precedence over the equal share of the cores."""
        threads = str(max(1, count_cores() // self.jobs))
        environment = {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads, **os.environ}
        train = ["train", *run.arguments, f"--output={self.folder / 'runs' / run.name}", "--resume", "--quiet"]
        with open(self._log(run.name), "wb") as log:
            self.processes[run.name] = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(self._log(run.name).with_suffix(".lock")), *train],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                **_own_process_group(),
            )

    def poll(self) -> dict[str, str | None]:
        """Return the runs that have ended since the last call: name → error message, None for success."""
        ended = [name for name, process in self.processes.items() if process.poll() is not None]
        statuses = {name: self.processes.pop(name).returncode for name in ended}
        return {name: _error(status, self._log(name)) if status else None for name, status in statuses.items()}

    def stop(self) -> None:
        """Let the active runs save and end, and wait for them."""
        for process in self.processes.values():
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes.values():
            process.wait()

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.txt"


def run_child(main: Callable[[Sequence[str]], int], lock: str, arguments: Sequence[str]) -> int:
    """Call `main`, that of the command line, with the arguments while this child process holds a lock file.

    The child of a killed comparison may still be saving; the child of the next comparison waits for its lock.
    """
    threading.Thread(target=_terminate_with_parent, daemon=True).start()
    try:
        with FileLock(lock, timeout=WAIT_FOR_RUN):
            return main(arguments)
    except Timeout:
        print(f"minipeft: {lock}: the run is in use by another process. Wait for it to end.", file=sys.stderr)
        return 2


def _terminate_with_parent() -> None:
    """Raise SIGTERM in this process when the parent closes standard input, which its end does as well."""
    while os.read(0, 1024):
        pass
    signal.raise_signal(signal.SIGTERM)  # os.kill would end the process without saving on Windows


def _own_process_group() -> dict[str, Any]:
    """Options of Popen with which Ctrl-C in the terminal reaches the parent alone."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _error(status: int, log: Path) -> str:
    """The error message of a failed child process: its last `minipeft:` line, its last line, or the signal."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    lines = [line.rsplit("\r", 1)[-1].strip() for line in log.read_text("utf-8", "replace").splitlines()]
    printed = [line for line in lines if line]
    errors = [line.removeprefix("minipeft: ") for line in printed if line.startswith("minipeft: ")]
    return (errors or printed or [f"ended with status {status}"])[-1]


def count_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_size() -> int | None:
    """Return the machine's memory in bytes, or None where the system does not tell."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
