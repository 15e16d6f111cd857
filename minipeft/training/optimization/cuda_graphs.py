"""A batch's forward and backward pass as a CUDA graph: recorded once for batches of one size, then replayed.

A short batch is computed faster than Python can ask for its thousand small operations. A graph asks for all at once.
It repeats them on the same tensors in the same places, so that a batch is copied into the one that was recorded, and
gradients are added to tensors that stay. Dropout differs in every replay, which takes its random numbers from torch's
generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minipeft.data.batches.buckets import COARSE, pad_to_bucket
from minipeft.data.batches.packing import PackedBatch
from minipeft.errors import MinipeftError, first_line
from minipeft.model.classifier import SequenceClassifier
from minipeft.problems import problem_of
from minipeft.training.optimization.loss import Loss

MOST_GRAPHS = 64  # sizes beyond them are computed as ever; each graph costs a second, and memory for its list of work
WARM_UPS = 2  # runs before one is recorded, in which libraries allocate and choose what they keep

Compute = Callable[[], None]
# What computes, and the parameters it adds gradients to → what computes it again.
Record = Callable[[Compute, Sequence[nn.Parameter]], Compute]


@dataclass(frozen=True)
class CapturedStep:
    """batch, count and loss stay where they are; `replay` computes the loss of what has been copied into the others."""

    batch: PackedBatch
    count: Tensor
    loss: Tensor
    replay: Compute


class StepGraphs:
    """What a model's batches are computed with while it trains, a graph a size.

    record   how; on the CPU, whose work needs no recording, a test passes one that computes again

    The parameters' .grad are made here and must stay: zero_grad(set_to_none=False).
    """

    def __init__(self, model: SequenceClassifier, record: Record | None = None, loss: Loss | None = None) -> None:
        config = model.config
        self.model = model
        self.loss = loss or Loss(problem_of(config.problem_type, config.id2label.values(), {}))
        self.record = partial(record_graph, torch.cuda.graph_pool_handle()) if record is None else record
        self.longest = model.config.max_length - getattr(model.method, "num_virtual_tokens", 0)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.device = self.trained[0].device
        for parameter in self.trained:
            parameter.grad = torch.zeros_like(parameter)
        self.recorded: dict[tuple[int, int, int], CapturedStep] = {}

    def add_gradients(self, batch: PackedBatch, count: float) -> Tensor:
        """Add the gradients of a batch's loss / count → that loss (), which the next call overwrites."""
        filled = pad_to_bucket(batch, self.model.config, self.longest, COARSE)
        size = filled.total_tokens, len(filled), filled.max_seqlen
        if size not in self.recorded:
            if len(self.recorded) == MOST_GRAPHS:
                loss = torch.zeros((), device=self.device)
                self._compute(batch.to(self.device), torch.tensor(float(count), device=self.device), loss)
                return loss
            self.recorded[size] = self._record(filled)
        graph = self.recorded[size]
        for field in fields(filled):
            if isinstance(there := getattr(graph.batch, field.name), Tensor):
                there.copy_(getattr(filled, field.name), non_blocking=True)
        graph.count.fill_(count)
        graph.replay()
        return graph.loss

    def _record(self, filled: PackedBatch) -> CapturedStep:
        moved = filled.to(self.device)
        count, loss = torch.ones((), device=self.device), torch.zeros((), device=self.device)
        return CapturedStep(moved, count, loss, self.record(partial(self._compute, moved, count, loss), self.trained))

    def _compute(self, batch: PackedBatch, count: Tensor, loss: Tensor) -> None:
        computed = self.loss(self.model(batch), batch) / count
        computed.backward()
        loss.copy_(computed.detach())


def record_graph(pool: Any, compute: Compute, trained: Sequence[nn.Parameter]) -> Compute:
    """Record `compute` on the current CUDA device; gradients and random numbers are afterwards as they were before.

    The graphs share the memory of `pool`: none of them leaves anything there that is read once another has run.
    """
    gradients, random = [parameter.grad for parameter in trained], torch.cuda.get_rng_state()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        for _ in range(WARM_UPS):
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.grad = gradient
    torch.cuda.set_rng_state(random)
    graph = torch.cuda.CUDAGraph()
    try:
        # "thread_local", for nccl's own thread looks after its work meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            compute()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise MinipeftError(
            f"a step of this run cannot be recorded as a CUDA graph ({first_line(error)}); leave out --cuda-graphs"
        ) from error
    return graph.replay
