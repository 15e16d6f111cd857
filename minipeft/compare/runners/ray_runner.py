"""Runs `minipeft` commands as tasks of a Ray cluster, each in a child process as on one machine.

A task is executed again when its node is lost, and its command continues from its last checkpoint. A command that
fails is not repeated. Two attempts at one command may be alive at once, if a node that counted as lost comes back: the
lease of the run's folder lets one of them write.
"""

import math
import os
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from minipeft.compare.runners.local_runner import Command, error_of, start_child
from minipeft.errors import MinipeftError, first_line
from minipeft.files import write_text

TOKEN = ".ray-token"  # in the shared folder: a node that reads another one, or none, does not share it
WAIT_FOR_CANCELLED = 120.0  # seconds in which the commands must save and end
POLL_INTERVAL = 0.1  # seconds


class RayRunner:
    """Starts `minipeft` commands on the nodes of a Ray cluster that share a folder; `cpus` and `gpus` of each."""

    def __init__(self, folder: Path, address: str | None, cpus: float, gpus: float | None, jobs: int) -> None:
        try:
            import ray
        except ImportError:
            raise MinipeftError("--runner ray: Ray is not installed. Run pip install 'minipeft[ray]'.") from None
        self.ray, self.folder, self.jobs = ray, folder.absolute(), jobs
        self.cpus, self.names = cpus, dict[Any, str]()
        address = address or os.environ.get("RAY_ADDRESS", "local")
        try:
            ray.init(address, include_dashboard=False if address == "local" else None, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise MinipeftError(f"--ray-address {address}: no Ray cluster answers ({first_line(error)}).") from None
        cluster = ray.cluster_resources()  # type: ignore[no-untyped-call]
        if gpus is None:
            gpus = 1.0 if cluster.get("GPU") else 0.0
        self.token = uuid.uuid4().hex
        write_text(self.folder / TOKEN, self.token)
        # A task is repeated when its node is lost, as often as needed, and has a worker process of its own.
        self.task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=-1, max_calls=1)(run_on_node)

    def start(self, command: Command) -> None:
        """Give a command to Ray, which starts it when a node is free."""
        threads = max(1, math.floor(self.cpus))
        absolute = Command(command.name, command.arguments, command.output.absolute())
        self.names[self.task.remote(self.folder, absolute, threads, os.getcwd(), self.token)] = command.name

    def poll(self) -> dict[str, str | None]:
        """Return the commands that have ended since the last call: name → error message, None for success."""
        ended, _ = self.ray.wait(list(self.names), num_returns=len(self.names), timeout=0) if self.names else ([], [])
        return {self.names.pop(task): self._error(task) for task in ended}

    def stop(self) -> None:
        """Let the active commands save and end, wait for them, and leave the cluster."""
        for task in self.names:
            self.ray.cancel(task)
        if self.names:
            self.ray.wait(list(self.names), num_returns=len(self.names), timeout=WAIT_FOR_CANCELLED)
        with suppress(OSError):
            (self.folder / TOKEN).unlink()
        self.ray.shutdown()

    def _error(self, task: Any) -> str | None:
        try:
            error: str | None = self.ray.get(task)
        except self.ray.exceptions.RayError as failure:
            return f"Ray: {first_line(failure)}"
        return error


def run_on_node(folder: Path, command: Command, threads: int, cwd: str, token: str) -> str | None:
    """Execute a command in a child process on a node of the cluster, and return its error message.

    The child saves and ends when this process ends or is cancelled, which Ray does with a KeyboardInterrupt.
    """
    try:
        shared = (folder / TOKEN).read_text(encoding="utf-8")
    except OSError:
        shared = ""
    if shared != token:
        return (
            f"{folder}: node {socket.gethostname()} does not share this folder. Put --output on a shared file system."
        )
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    child = start_child(folder, command, threads, environment, cwd if Path(cwd).is_dir() else None)
    assert child.stdin is not None
    try:
        while child.poll() is None:
            time.sleep(POLL_INTERVAL)
    finally:
        child.stdin.close()
        while child.poll() is None:
            with suppress(KeyboardInterrupt):  # a terminal's Ctrl-C comes in addition to the cancellation
                child.wait()
    return error_of(folder, command.name, child.returncode)
