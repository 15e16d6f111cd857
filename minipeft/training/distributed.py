"""The processes that train one model, as torchrun starts them, and the messages that they exchange.

    torchrun --nproc-per-node N train.py …
    torchrun --nnodes M --nproc-per-node N --rdzv-backend c10d --rdzv-endpoint HOST:PORT train.py …

Gradients are summed over NCCL between CUDA devices; everything else is sent over gloo. Without torchrun there is one
process, which sends nothing, and torch.distributed is not imported.

Only rank 0 reads and writes the run's folder; it sends the others what they need. process_group.py starts the group.
"""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from minipeft.errors import ErrorOnRankZero, MinipeftError, WorkerError, first_line

NOTHING, CONFIG_ONLY = 0, 1  # what a node holds of a run; with a checkpoint it is the checkpoint's step + 2
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Processes:
    """The processes of one training.

    Attributes:
        rank: this process's number, from 0. Rank 0 is the main process: it writes files and prints.
        size: how many there are.
        node_rank_zero: the rank of the first process on this process's node.
        timeout: how long a process waits for the others.
    """

    rank: int = 0
    size: int = 1
    node_rank_zero: int = 0
    timeout: timedelta = timedelta(minutes=10)

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    def share(self, indices: Sequence[int], lengths: Sequence[int] | np.ndarray[Any, Any]) -> Sequence[int]:
        """Return this process's part of a step's examples, so that all processes have about as many tokens.

        The examples are assigned by decreasing length, each to the process with the fewest tokens so far.

        Args:
            indices: the examples of the step, the same on all ranks.
            lengths: tokens of every example.
        """
        if self.size == 1:
            return indices
        tokens, own_indices = [0] * self.size, []
        for index in sorted(indices, key=lambda index: (-lengths[index], index)):
            least = tokens.index(min(tokens))
            tokens[least] += lengths[index]
            if least == self.rank:
                own_indices.append(index)
        return own_indices

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
        value, failed = _attempt(act) if self.is_main_process else (None, None)
        answer: list[Any] = [value, failed and first_line(failed)]
        self._communicate(lambda dist: dist.broadcast_object_list(answer, src=0, device=torch.device("cpu")))
        if answer[1] is not None:
            raise failed or ErrorOnRankZero(answer[1])
        return cast("Answer", answer[0])

    def once_per_node(self, act: Callable[[], Answer]) -> Answer:
        """Call `act` on the first process of each node; return its value on the node, and raise its error on all."""
        if self.size == 1:
            return act()
        value, failed = _attempt(act) if self.rank == self.node_rank_zero else (None, None)
        message = failed and first_line(failed)
        answers = self.all_gather((socket.gethostname(), self.node_rank_zero, value, message))
        nodes = len({node for _, node, _, _ in answers})
        for rank, (host, _, _, message) in enumerate(answers):
            if message is not None:
                if failed is not None and not isinstance(failed, MinipeftError):
                    raise failed
                raise self.error(message if nodes == 1 else f"rank {rank} on {host}: {message}")
        return cast("Answer", answers[self.node_rank_zero][2])

    @contextmanager
    def errors_printed_once(self) -> Iterator[None]:
        """Mark an error that all ranks raise, such as a loss that is not finite, so that only rank 0 prints it."""
        try:
            yield
        except WorkerError:
            raise
        except MinipeftError as error:
            raise error if self.is_main_process else ErrorOnRankZero(str(error)) from None

    def error(self, message: str) -> MinipeftError:
        """Return the exception with which every rank raises an error that only rank 0 prints."""
        return MinipeftError(message) if self.is_main_process else ErrorOnRankZero(message)

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in the order of their ranks."""
        gathered: list[Any] = [None] * self.size
        self._communicate(lambda dist: dist.all_gather_object(gathered, value))
        return gathered

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


SINGLE_PROCESS = Processes()


class GradientSum:
    """Sums the gradients of a training over its processes, in one message per step.

    A rank without a batch adds 0. Parameters without a gradient on every rank, such as a table that the encoder does
    not read, keep none. They are determined in the first step and are the same in all: gradients depend on the
    operations, not on the examples. A step itself sends no flags and never waits for the device.

    Args:
        processes: The processes of the training.
        parameters: The trainable parameters, in the same order on all ranks.
    """

    def __init__(self, processes: Processes, parameters: Sequence[nn.Parameter]) -> None:
        self.processes, self.parameters = processes, parameters
        self.with_gradient: list[nn.Parameter] | None = None

    def all_reduce(self, loss: Tensor) -> None:
        """Sum the gradients and the loss () over the processes, in place."""
        if self.processes.size == 1:
            return
        if self.with_gradient is None:
            has_gradient = torch.tensor(
                [parameter.grad is not None for parameter in self.parameters], dtype=torch.int32
            )
            self.processes.all_reduce_sum(has_gradient)  # on the CPU, over gloo
            self.with_gradient = [p for p, count in zip(self.parameters, has_gradient.tolist(), strict=True) if count]
        for parameter in self.with_gradient:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.with_gradient if parameter.grad is not None]
        message = torch.cat([loss.view(1), *(gradient.flatten() for gradient in gradients)])
        self.processes.all_reduce_sum(message)
        total, *pieces = message.split([1, *(gradient.numel() for gradient in gradients)])
        loss.copy_(total[0])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))  # in place: a CUDA graph adds to these tensors
