"""The processes that train one model, and the messages that they exchange.

    torchrun --nproc-per-node N train.py …
    torchrun --nnodes M --nproc-per-node N --rdzv-backend c10d --rdzv-endpoint HOST:PORT train.py …

Here is what a training asks of them, and the answers of a process that trains alone: it sends nothing, and imports
torch.distributed not at all. process_group.py has those of torchrun's processes.

Only rank 0 reads and writes the run's folder; it sends the others what they need.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Processes:
    """The processes of one training: here one process alone.

    Attributes:
        rank: this process's number, from 0. Rank 0 is the main process: it writes files and prints.
        size: how many there are.
        node_rank_zero: the rank of the first process on this process's node.
    """

    rank: int = 0
    size: int = 1
    node_rank_zero: int = 0

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    def share(self, indices: Sequence[int], lengths: Sequence[int] | np.ndarray[Any, Any]) -> Sequence[int]:
        """Return this process's part of a step's examples, so that all processes have about as many tokens.

        Args:
            indices: the examples of the step, the same on all ranks.
            lengths: tokens of every example.
        """
        return indices

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the processes, in place."""
        return tensor

    def all_reduce_max(self, number: int) -> int:
        """Return the largest of the processes' numbers."""
        return number

    def sum_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> None:
        """Sum the gradients of a step and its loss () over the processes, in place."""

    def on_rank_zero(self, act: Callable[[], Answer]) -> Answer:
        """Call `act` on rank 0 only; every process returns its value, or raises its error."""
        return act()

    def once_per_node(self, act: Callable[[], Answer]) -> Answer:
        """Call `act` on the first process of each node; return its value on the node, and raise its error on all."""
        return act()

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in the order of their ranks."""
        return [value]

    def errors_printed_once(self) -> AbstractContextManager[None]:
        """Mark an error that all ranks raise, such as a loss that is not finite, so that only rank 0 prints it."""
        return nullcontext()


SINGLE_PROCESS = Processes()
