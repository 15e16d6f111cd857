"""The process group of a training: torchrun's processes, with rank 0 on the node that holds the newest checkpoint.

torchrun assigns new ranks after every restart, possibly rank 0 to a node without the checkpoint. The ranks of a
training are therefore rotated, and nodes need not share a file system.
"""

import atexit
import itertools
import json
import os
import signal
import threading
import time
from datetime import timedelta
from functools import cache
from importlib import import_module
from typing import Any

import torch

from minipeft.errors import MinipeftError, WorkerError, first_line
from minipeft.training.distributed import NOTHING, SINGLE_PROCESS, Processes

_group_numbers = itertools.count()  # one group a training of this process


def join_processes(device: str, resume: bool, held: int | None = None, timeout_minutes: float = 10) -> Processes:
    """Join the processes that torchrun started.

    On CUDA the process's local rank becomes the current device. `held` is what this machine holds of the run (see
    `held_of`), None where no folder was given; rank 0 is on the node with the largest value.
    """
    several_nodes = os.environ["GROUP_WORLD_SIZE"] != "1"
    if int(os.environ["TORCHELASTIC_MAX_RESTARTS"]):
        if not resume:
            raise MinipeftError("torchrun --max-restarts needs --resume. Pass it, so that a restart continues the run.")
        if several_nodes and os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True":
            raise MinipeftError(
                "torchrun --nnodes with --max-restarts keeps the address of a lost node. "
                "Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on every node."
            )
    if several_nodes and resume and held is None:
        raise MinipeftError("torchrun --nnodes with --resume needs --output. Name the run's folder.")
    _terminate_with_torchrun()
    rank, local_rank, size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    if size == 1:
        return SINGLE_PROCESS
    if device not in ("cpu", "cuda"):
        raise MinipeftError(f"device {device} takes one process. Start without torchrun, or pass --device cpu.")
    if device == "cuda":
        on_this_node = int(os.environ["LOCAL_WORLD_SIZE"])
        if on_this_node > (count := torch.cuda.device_count()):
            raise MinipeftError(
                f"torchrun started {on_this_node} processes for {count} CUDA devices. Start one for each."
            )
        torch.cuda.set_device(local_rank)
    timeout = timedelta(minutes=timeout_minutes)
    try:
        rank = _make_group(device, rank, size, timeout, held or NOTHING if local_rank == 0 else -1)
    except RuntimeError as error:
        raise WorkerError(f"process {rank} of {size}: cannot reach the others ({first_line(error)}).") from None
    return Processes(rank, size, rank - local_rank, timeout)


def _make_group(device: str, rank: int, size: int, timeout: timedelta, held: int) -> int:
    """Make the process group of a training, and return this process's rank in it.

    The ranks are torchrun's, rotated so that rank 0 is the process with the largest `held`.
    """
    dist = import_module("torch.distributed")
    # torch._dynamo keeps a reference to a group that exists when it is imported. The group's threads would then run
    # after the group is destroyed, and could abort the process at its exit.
    import_module("torch._dynamo")
    shared = _rendezvous_store(timeout)
    _leave_group()
    # torchrun's store survives a restart, so each restart has its own keys: it would find addresses of lost processes.
    restart = os.environ["TORCHELASTIC_RESTART_COUNT"] if os.environ["GROUP_WORLD_SIZE"] == "1" else 0
    store = dist.PrefixStore(f"start {restart} group {next(_group_numbers)}", shared)
    store.set(f"held {rank}", json.dumps(held))
    most = [json.loads(store.get(f"held {other}")) for other in range(size)]
    rank = (rank - most.index(max(most))) % size
    os.environ["RANK"] = str(rank)  # rank 0 prints the errors that all processes raise
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    return rank


@cache
def _rendezvous_store(timeout: timedelta) -> Any:
    """Return the key-value store that torchrun's processes share."""
    atexit.register(_leave_group)
    store, *_ = next(import_module("torch.distributed.rendezvous").rendezvous("env://", timeout=timeout))
    return store


def _leave_group() -> None:
    dist = import_module("torch.distributed")
    if dist.is_initialized():
        dist.destroy_process_group()


@cache
def _terminate_with_torchrun() -> None:
    """Raise SIGTERM in this process when torchrun is killed, so that it does not continue without the others."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
