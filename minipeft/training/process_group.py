"""The process group of a training: torchrun's processes, with rank 0 on the node that holds the newest checkpoint.

torchrun assigns new ranks after every restart, possibly rank 0 to a node without the checkpoint. The ranks of a
training are therefore rotated, and nodes need not share a file system.
"""

import atexit
import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from importlib import import_module
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from minipeft.errors import ErrorOnRankZero, MinipeftError, WorkerError, first_line
from minipeft.training.distributed import SINGLE_PROCESS, Answer, Processes

_group_numbers = itertools.count()  # one group a training of this process


@dataclass(frozen=True)
class ProcessGroup(Processes):
    """The processes that torchrun started. CUDA devices sum gradients over NCCL; everything else is sent over gloo.

    Attributes:
        timeout: how long a process waits for the others.
        with_gradient: the parameters that have a gradient on any rank, from the first step on.
    """

    timeout: timedelta = timedelta(minutes=10)
    with_gradient: list[nn.Parameter] = field(default_factory=list)

    def share(self, indices: Sequence[int], lengths: Sequence[int] | np.ndarray[Any, Any]) -> Sequence[int]:
        """Assign the examples by decreasing length, each to the process with the fewest tokens so far."""
        tokens, own_indices = [0] * self.size, []
        for index in sorted(indices, key=lambda index: (-lengths[index], index)):
            least = tokens.index(min(tokens))
            tokens[least] += lengths[index]
            if least == self.rank:
                own_indices.append(index)
        return own_indices

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        return self._all_reduce(tensor, "SUM")

    def all_reduce_max(self, number: int) -> int:
        return int(self._all_reduce(torch.tensor(number), "MAX"))

    def sum_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> None:
        """Sum gradients and loss in one message per step.

        A rank without a batch adds 0. Parameters without a gradient on every rank, such as a table that the encoder
        does not read, keep none. They are determined in the first step and are the same in all: gradients depend on the
        operations, not on the examples. A step itself sends no flags and never waits for the device.
        """
        if not self.with_gradient:
            has_gradient = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
            self.all_reduce_sum(has_gradient)  # on the CPU, over gloo
            self.with_gradient.extend(p for p, count in zip(parameters, has_gradient.tolist(), strict=True) if count)
        for parameter in self.with_gradient:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.with_gradient if parameter.grad is not None]
        message = torch.cat([loss.view(1), *(gradient.flatten() for gradient in gradients)])
        self.all_reduce_sum(message)
        total, *pieces = message.split([1, *(gradient.numel() for gradient in gradients)])
        loss.copy_(total[0])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))  # in place: a CUDA graph adds to these tensors

    def on_rank_zero(self, act: Callable[[], Answer]) -> Answer:
        value, failed = _attempt(act) if self.is_main_process else (None, None)
        answer: list[Any] = [value, failed and first_line(failed)]
        self._communicate(lambda dist: dist.broadcast_object_list(answer, src=0, device=torch.device("cpu")))
        if answer[1] is not None:
            raise failed or ErrorOnRankZero(answer[1])
        return cast("Answer", answer[0])

    def once_per_node(self, act: Callable[[], Answer]) -> Answer:
        value, failed = _attempt(act) if self.rank == self.node_rank_zero else (None, None)
        message = failed and first_line(failed)
        answers = self.all_gather((socket.gethostname(), self.node_rank_zero, value, message))
        nodes = len({node for _, node, _, _ in answers})
        for rank, (host, _, _, message) in enumerate(answers):
            if message is not None:
                if failed is not None and not isinstance(failed, MinipeftError):
                    raise failed
                with self.errors_printed_once():
                    raise MinipeftError(message if nodes == 1 else f"rank {rank} on {host}: {message}")
        return cast("Answer", answers[self.node_rank_zero][2])

    def all_gather(self, value: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.size
        self._communicate(lambda dist: dist.all_gather_object(gathered, value))
        return gathered

    @contextmanager
    def errors_printed_once(self) -> Iterator[None]:
        try:
            yield
        except WorkerError:
            raise
        except MinipeftError as error:
            raise error if self.is_main_process else ErrorOnRankZero(str(error)) from None

    def _all_reduce(self, tensor: Tensor, operation: str) -> Tensor:
        self._communicate(lambda dist: dist.all_reduce(tensor, getattr(dist.ReduceOp, operation)))
        return tensor

    def _communicate(self, call: Callable[[Any], object]) -> None:
        try:
            call(import_module("torch.distributed"))
        except RuntimeError as error:
            raise WorkerError(
                f"process {self.rank} of {self.size}, counted from 0: another process has ended, or was silent for "
                f"{self.timeout}. The last checkpoint is kept: continue with --resume ({first_line(error)})."
            ) from None


def _attempt(act: Callable[[], Answer]) -> tuple[Answer | None, Exception | None]:
    """Return the value of a function, or its error: the other processes wait for an answer, whatever happens."""
    try:
        return act(), None
    except Exception as error:
        return None, error


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
        rank = _make_group(device, rank, size, timeout, held or 0 if local_rank == 0 else -1)
    except RuntimeError as error:
        raise WorkerError(f"process {rank} of {size}: cannot reach the others ({first_line(error)}).") from None
    return ProcessGroup(rank, size, rank - local_rank, timeout)


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
