"""Several processes that train one model, as torchrun starts them, and the messages that they exchange.

    torchrun --nproc-per-node N train.py …

Gradients travel over nccl between CUDA devices, everything else over gloo. Without torchrun there is one process, which
exchanges nothing; torch.distributed is then not imported.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from minipeft.errors import ErrorOnRankZero, MinipeftError, WorkerError, first_line, under_torchrun

TIMEOUT = timedelta(minutes=10)  # a process that has not answered by then is taken for dead
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Processes:
    """The processes of one training.

    Attributes:
        rank: this process's number, from 0. Rank 0 is the main process: it writes files and prints.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    def share(self, indices: Sequence[int], lengths: Sequence[int]) -> Sequence[int]:
        """Return this process's examples: the longest first, each to the process with the fewest tokens so far."""
        if self.size == 1:
            return indices
        tokens, mine = [0] * self.size, []
        for index in sorted(indices, key=lambda index: (-lengths[index], index)):
            least = tokens.index(min(tokens))
            tokens[least] += lengths[index]
            if least == self.rank:
                mine.append(index)
        return mine

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> None:
        """Sum the gradients and the loss () over the processes, in place and in one message.

        A process without a gradient adds 0; a parameter that has a gradient in no process keeps none.
        """
        if self.size == 1:
            return
        present = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=loss.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        message = torch.cat([loss.view(1), present, *(gradient.flatten() for gradient in gradients)])
        self.all_reduce_sum(message)
        total, present, rest = message.split([1, len(parameters), len(message) - 1 - len(parameters)])
        loss.copy_(total[0])
        pieces = rest.split([parameter.numel() for parameter in parameters])
        for parameter, anywhere, piece in zip(parameters, present.tolist(), pieces, strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(piece.view_as(parameter))  # in place, for CUDA graphs
            elif anywhere:
                parameter.grad = piece.view_as(parameter)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place."""
        return self._all_reduce(tensor, "SUM") if self.size > 1 else tensor

    def all_reduce_max(self, number: int) -> int:
        """Return the largest of the processes' numbers."""
        return int(self._all_reduce(torch.tensor(number), "MAX")) if self.size > 1 else number

    def on_rank_zero(self, act: Callable[[], Answer]) -> Answer:
        """Call `act` on rank 0 only; every process returns its value, or raises its error."""
        if self.size == 1:
            return act()
        answer: list[Any] = [None, None]
        failed: Exception | None = None
        if self.is_main_process:
            try:
                answer[0] = act()
            except Exception as error:  # the other processes wait for an answer, whatever happens
                failed, answer[1] = error, first_line(error)
        self._communicate(lambda dist: dist.broadcast_object_list(answer, src=0, device=torch.device("cpu")))
        if answer[1] is not None:
            raise failed or ErrorOnRankZero(answer[1])
        value: Answer = answer[0]
        return value

    def check_same(self, values: dict[str, str]) -> None:
        """Raise MinipeftError, on all ranks, where a named value differs between the processes."""
        if self.size == 1:
            return
        gathered: list[Any] = [None] * self.size
        self._communicate(lambda dist: dist.all_gather_object(gathered, values))
        for rank, theirs in enumerate(gathered):
            for name, value in theirs.items():
                if value != gathered[0][name]:
                    message = f"rank {rank}: {name} differ from those of rank 0. Give all processes the same files."
                    raise MinipeftError(message) if self.is_main_process else ErrorOnRankZero(message)

    def _all_reduce(self, tensor: Tensor, operation: str) -> Tensor:
        self._communicate(lambda dist: dist.all_reduce(tensor, getattr(dist.ReduceOp, operation)))
        return tensor

    def _communicate(self, call: Callable[[Any], object]) -> None:
        try:
            call(import_module("torch.distributed"))
        except RuntimeError as error:
            raise WorkerError(
                f"process {self.rank} of {self.size}, counted from 0: another process has ended, or was silent for "
                f"{TIMEOUT}. The last checkpoint is kept: continue with --resume ({first_line(error)})."
            ) from None


SINGLE_PROCESS = Processes()


def join_processes(device: str, resume: bool) -> Processes:
    """Join the processes that torchrun started; without torchrun there is this process alone.

    On CUDA the process's local rank becomes the current device.

    Raises:
        MinipeftError: for processes that cannot train together.
    """
    if not under_torchrun():
        return SINGLE_PROCESS
    if int(os.environ["TORCHELASTIC_MAX_RESTARTS"]) and not resume:
        raise MinipeftError(
            "torchrun --max-restarts needs --resume. Pass --resume, so that a restart continues the run."
        )
    rank, local_rank, size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    if size == 1:
        return SINGLE_PROCESS
    if size != int(os.environ["LOCAL_WORLD_SIZE"]):
        raise MinipeftError("torchrun --nnodes: training on several machines is not supported. Leave out --nnodes.")
    if device not in ("cpu", "cuda"):
        raise MinipeftError(f"device {device} takes one process. Start without torchrun, or pass --device cpu.")
    if device == "cuda":
        if size > (count := torch.cuda.device_count()):
            raise MinipeftError(
                f"torchrun started {size} processes for {count} CUDA devices. Start one for each device."
            )
        torch.cuda.set_device(local_rank)
    dist = import_module("torch.distributed")
    if not dist.is_initialized():
        # Imported later, as by an optimizer, torch._dynamo would hold a reference to the group: after its destruction
        # the group's threads would continue, and could abort the process at its exit.
        import_module("torch._dynamo")
        rendezvous = import_module("torch.distributed.rendezvous").rendezvous
        try:
            # The prefix, because a restart still finds the addresses of the processes that it replaces.
            store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
            store = dist.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
            backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        except RuntimeError as error:
            raise WorkerError(f"process {rank} of {size}: cannot reach the others ({first_line(error)}).") from None
        atexit.register(dist.destroy_process_group)
    return Processes(rank, size)
