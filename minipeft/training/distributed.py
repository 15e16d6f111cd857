"""Several processes that train one model, as torchrun starts them, and the few things that they tell each other.

    torchrun --nproc-per-node N train.py …

Gradients travel over nccl between CUDA devices, everything else over gloo. A process without torchrun is alone: it
exchanges nothing.
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
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from minipeft.errors import MinipeftError, WorkerError, first_line, under_torchrun

SILENCE = timedelta(minutes=10)  # a process that has not answered by then hangs
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Workers:
    """The processes of a job. `rank` counts this one from 0; the first writes files and speaks to the user."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, indices: Sequence[int], lengths: Sequence[int]) -> Sequence[int]:
        """This process's part of the examples: the longest first, each to whom has the fewest tokens so far."""
        if self.size == 1:
            return indices
        tokens, mine = [0] * self.size, []
        for index in sorted(indices, key=lambda index: (-lengths[index], index)):
            least = tokens.index(min(tokens))
            tokens[least] += lengths[index]
            if least == self.rank:
                mine.append(index)
        return mine

    def sum_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> None:
        """Sum the gradients and the loss () over the processes, in place and in one message.

        A process without a gradient adds 0; a parameter that has one nowhere keeps none.
        """
        if self.size == 1:
            return
        there = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=loss.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        message = torch.cat([loss.view(1), there, *(gradient.flatten() for gradient in gradients)])
        self._reduce(message, dist.ReduceOp.SUM)
        total, there, rest = message.split([1, len(parameters), len(message) - 1 - len(parameters)])
        loss.copy_(total[0])
        pieces = rest.split([parameter.numel() for parameter in parameters])
        for parameter, anywhere, piece in zip(parameters, there.tolist(), pieces, strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(piece.view_as(parameter))  # in place, for CUDA graphs
            elif anywhere:
                parameter.grad = piece.view_as(parameter)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor on the host over the processes, in place."""
        return self._reduce(tensor, dist.ReduceOp.SUM) if self.size > 1 else tensor

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        return int(self._reduce(torch.tensor(number), dist.ReduceOp.MAX)) if self.size > 1 else number

    def first_does(self, act: Callable[[], Answer]) -> Answer:
        """What `act` returns or raises (a MinipeftError) in the first process, in all of them; the others wait."""
        if self.size == 1:
            return act()
        answer: list[Any] = [None, None]
        if self.first:
            try:
                answer[0] = act()
            except MinipeftError as error:
                answer[1] = error
        try:
            dist.broadcast_object_list(answer, src=0, device=torch.device("cpu"))
        except RuntimeError as error:
            raise self._lost(error) from None
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def _reduce(self, tensor: Tensor, operation: Any) -> Tensor:
        try:
            dist.all_reduce(tensor, operation)
        except RuntimeError as error:
            raise self._lost(error) from None
        return tensor

    def _lost(self, error: RuntimeError) -> WorkerError:
        return WorkerError(
            f"process {self.rank} of {self.size}, counted from 0: another process has ended, or was silent for "
            f"{SILENCE}; the last checkpoint is kept: go on with --resume ({first_line(error)})"
        )


ALONE = Workers()


def join_workers(device: str, resume: bool) -> Workers:
    """Join the job that torchrun started this process for; without torchrun a process is alone.

    On CUDA the process's local rank becomes the current device. Raises MinipeftError for what cannot train together.
    """
    if not under_torchrun():
        return ALONE
    if int(os.environ["TORCHELASTIC_MAX_RESTARTS"]) and not resume:
        raise MinipeftError("torchrun --max-restarts without --resume: pass --resume, so that a restart goes on")
    rank, local_rank, size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    if size == 1:
        return ALONE
    if size != int(os.environ["LOCAL_WORLD_SIZE"]):
        raise MinipeftError("torchrun with several machines; the processes of a job share one: leave out --nnodes")
    if device not in ("cpu", "cuda"):
        raise MinipeftError(f"device {device} takes one process; start without torchrun, or pass --device cpu")
    if device == "cuda":
        if size > (count := torch.cuda.device_count()):
            raise MinipeftError(f"torchrun started {size} processes for {count} CUDA devices; one each is needed")
        torch.cuda.set_device(local_rank)
    if not dist.is_initialized():
        # Imported later, as by an optimizer, it would hold on to the group: destroyed, the group's threads would go on,
        # and could abort the process while it ends.
        import_module("torch._dynamo")

        try:
            # The prefix, for a restart still finds the addresses of the processes that it replaces.
            store, rank, size = next(rendezvous("env://", timeout=SILENCE))
            store = PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
            backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=SILENCE)
        except RuntimeError as error:
            raise WorkerError(f"process {rank} of {size}: cannot reach the others ({first_line(error)})") from None
        atexit.register(dist.destroy_process_group)
    return Workers(rank, size)
