"""Two torchrun agents on 127.0.0.1 that stand for two nodes: own working directory, HOME and temporary folder."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conftest import REPOSITORY
from runs import Process, processes_of
from torch.distributed import TCPStore

# The test's own process hosts the rendezvous, so that either node can be killed.
CONF = "is_host=0,last_call_timeout=1,keep_alive_interval=1"
RDZV = ["--rdzv-backend", "c10d", "--local-addr", "127.0.0.1", "--rdzv-conf", CONF]


class Node:
    """A node: `place` holds its model, its data, and the folder `run` if no other is given."""

    def __init__(self, place: Path, checkpoint: Path, data: Path) -> None:
        self.place, self.count = place, 0
        for name in ("home", "tmp", "work"):
            (place / name).mkdir(parents=True)
        shutil.copytree(checkpoint, place / "model")
        shutil.copytree(data, place / "data")
        self.run = place / "work" / "run"

    def start(self, port: int, nnodes: str, arguments: Sequence[object], *flags: str, processes: int = 1) -> Process:
        """Start torchrun with train.py and `arguments` in this node's working directory."""
        self.count += 1
        torchrun = ["-m", "torch.distributed.run", "--nnodes", nnodes, "--nproc-per-node", str(processes)]
        torchrun += ["--rdzv-endpoint", f"127.0.0.1:{port}", *RDZV, *flags]
        command = [sys.executable, *torchrun, str(REPOSITORY / "train.py"), *map(str, arguments)]
        variables = {
            "HOME": str(self.place / "home"),
            "TMPDIR": str(self.place / "tmp"),
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        return Process(self.place / f"log-{self.count}", command, cwd=self.place / "work", **variables)

    def writes(self) -> bool:
        """Whether anything was written to the working directory."""
        return any((self.place / "work").iterdir())

    def arguments(self, *more: object, epochs: int = 4) -> list[object]:
        """The flags of a run of `epochs` times 24 steps, with dropout in LoRA alone; all paths are relative."""
        flags = ["--task", "rte", "--model", "../model", "--data", "../data", "--epochs", epochs, "--batch-size", 4]
        flags += ["--grad-accum", 1, "--device", "cpu", "--precision", "fp32", "--output", "run", "--dropout", 0.2]
        return [*flags, *more]


def host_rendezvous() -> Any:
    """Host a rendezvous on a free port, for as long as the returned store lives; its `port` tells which."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def kill_agent_and_workers(job: Process) -> None:
    """What a power cut does to a node."""
    workers = processes_of(job)
    job.kill()
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    job.end()
