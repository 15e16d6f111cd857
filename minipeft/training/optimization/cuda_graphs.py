"""The forward and backward pass of a batch as a CUDA graph: recorded once for each batch size, then replayed.

A GPU computes a short batch faster than Python starts its several hundred operations. A graph starts all of them at
once. It repeats them on the same memory: each batch is copied into the recorded one, and gradients are added to tensors
that are never replaced. Dropout differs between replays, because each takes new random numbers from torch's generator.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minipeft.data.batches.buckets import COARSE, pad_to_bucket
from minipeft.data.batches.packing import PackedBatch
from minipeft.errors import MinipeftError, first_line
from minipeft.model.attention.varlen import varlen_supports
from minipeft.model.attention.varlen_trial import varlen_agrees
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.config import EncoderConfig
from minipeft.model.families import family_of
from minipeft.problems import problem_of
from minipeft.training.optimization.loss import Loss
from minipeft.training.settings.train_settings import TrainSettings

MOST_GRAPHS = 64  # further sizes run without a graph; each graph takes a second to record, and memory
WARM_UPS = 2  # runs before the recording, in which libraries allocate their buffers and choose their kernels

Compute = Callable[[], None]
# A computation and the parameters to whose gradients it adds → a function that repeats the computation.
Record = Callable[[Compute, Sequence[nn.Parameter]], Compute]


def check_cuda_graphs(device: str, activation_checkpointing: bool) -> None:
    """Raise where --cuda-graphs on is not possible, whatever the model is."""
    if not device.startswith("cuda"):
        raise MinipeftError(f"--cuda-graphs on: the device is {device}, not a CUDA device. Pass --cuda-graphs off.")
    if activation_checkpointing:
        raise MinipeftError(
            "--cuda-graphs on with --activation-checkpointing: a graph cannot draw the same dropout twice. "
            "Pass --cuda-graphs off."
        )


def choose_cuda_graphs(settings: TrainSettings, device: str, precision: str, config: EncoderConfig) -> str:
    """Return "on" or "off" for on and auto: auto is on where graphs are possible, and on raises where they are not."""
    try:
        check_cuda_graphs(device, settings.activation_checkpointing)
        check_recordable(config, precision)
    except MinipeftError:
        if settings.cuda_graphs == "on":
            raise
        return "off"
    return "on"


def check_recordable(config: EncoderConfig, precision: str) -> None:
    """Raise MinipeftError where a graph of one batch would not hold for another, because the host plans the attention.

    The variable-length operators (model/attention/varlen.py) are planned on the device, from the batch copied there.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    head_size, window = config.hidden_size // config.num_attention_heads, getattr(config, "local_attention", None)
    problem = family_of(config).unsupported.get("--cuda-graphs", "")
    if not problem and not varlen_supports(dtype, head_size, window):
        windows = "" if window is None else " in windows"
        problem = f"torch has no variable-length attention{windows} in {precision} for heads of size {head_size}"
    if not problem and not varlen_agrees(torch.device("cuda"), dtype, head_size, window is not None, True):
        problem = "torch's variable-length attention does not work on this GPU"
    if problem:
        raise MinipeftError(f"--cuda-graphs on with a {config.model_type} encoder: {problem}. Pass --cuda-graphs off.")


@dataclass(frozen=True)
class CapturedStep:
    """A recorded step and the tensors that it reads and writes."""

    batch: PackedBatch  # each batch of this size is copied here
    count: Tensor  # (), what the loss is divided by
    loss: Tensor  # (), written by `replay`
    replay: Compute  # computes the loss of `batch`, and adds its gradients


class StepGraphs:
    """CUDA graphs of the training step, one for each batch size.

    The constructor creates the gradients of all parameters. They must not be replaced: zero_grad(set_to_none=False).

    Args:
        model: The model, ready to train.
        record: Records a computation; the default is `record_graph`.
        loss: The loss; the default is the plain one.
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
        """Add the gradients of a batch's loss / count, and return that loss (), which the next call overwrites."""
        filled = pad_to_bucket(batch, self.model.config, self.longest, COARSE)
        size = filled.total_tokens, len(filled), filled.max_seqlen
        if size not in self.recorded:
            if len(self.recorded) == MOST_GRAPHS:
                loss = torch.zeros((), device=self.device)
                self._compute(batch.to(self.device), torch.full((), float(count), device=self.device), loss)
                return loss
            step = filled.to(self.device), torch.ones((), device=self.device), torch.zeros((), device=self.device)
            self.recorded[size] = CapturedStep(*step, self.record(partial(self._compute, *step), self.trained))
        graph, moved = self.recorded[size], filled.to(self.device)
        for field in fields(filled):
            recorded = getattr(graph.batch, field.name)
            if isinstance(recorded, Tensor):
                recorded.copy_(getattr(moved, field.name))
        graph.count.fill_(count)
        graph.replay()
        return graph.loss

    def _compute(self, batch: PackedBatch, count: Tensor, loss: Tensor) -> None:
        computed = self.loss(self.model(batch), batch) / count
        computed.backward()
        loss.copy_(computed.detach())


def record_graph(pool: Any, compute: Compute, trained: Sequence[nn.Parameter]) -> Compute:
    """Record a computation on the current CUDA device, without a change to gradients or to the random numbers.

    All graphs use the memory of `pool`, because no graph reads there what an earlier replay has left.
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
        # "thread_local", because NCCL's watchdog thread queries its events during the capture.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            compute()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise MinipeftError(
            f"a step of this run cannot be recorded as a CUDA graph ({first_line(error)}). Pass --cuda-graphs off."
        ) from error
    return graph.replay
