"""Evaluating a model on a split: its logits, and the loss and metrics that they give."""

from typing import Any

import torch
from torch import Tensor

from minipeft.data.batches.buckets import pad_to_bucket
from minipeft.data.batches.sampling import pack_sequences, split_by_tokens
from minipeft.data.tokens.examples import Encoded, Examples
from minipeft.model.classifier import SequenceClassifier
from minipeft.progress_bar import show_progress
from minipeft.training.distributed import SINGLE_PROCESS, Processes
from minipeft.training.progress import CONSTANT, HOLDOUT


class HostCopy:
    """A copy of a tensor on the host that does not stop the device: `read` waits for it, and for nothing after it."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.to("cpu", non_blocking=x.is_cuda)
        self.copied = torch.cuda.Event() if x.is_cuda else None
        if self.copied is not None:
            self.copied.record(torch.cuda.current_stream(x.device))  # of x's GPU, which may not be the current one

    def read(self) -> Tensor:
        """Return the copy as soon as it is complete."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.x


@torch.inference_mode()
def predict_logits(
    model: SequenceClassifier,
    examples: Encoded,
    max_tokens: int,
    processes: Processes = SINGLE_PROCESS,
    title: str = "",
) -> Tensor:
    """Return the logits on every process, float32 on the host: (num_examples or num_words, num_labels).

    The progress is shown under a `title`.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    count = len(examples.sequences)
    # Zeros, so that the sum over the processes is the whole.
    logits = torch.zeros(examples.num_outputs, model.config.num_labels)
    prev: tuple[Any, HostCopy] | None = None  # the batch before, whose logits are read while this one is computed
    own = processes.share(range(count), examples.lengths)
    batches = split_by_tokens(own, examples.lengths, max_tokens)
    for indices in show_progress(batches, title, quiet=not title, total=len(own)):
        batch = pad_to_bucket(pack_sequences(examples, indices, model.config), model.config)
        chosen, rows = examples.outputs(indices)
        computed = HostCopy(model(batch.to(device))[chosen])
        if prev is not None:
            logits[prev[0]] = prev[1].read()
        prev = rows, computed
    if prev is not None:
        logits[prev[0]] = prev[1].read()
    model.train(was_training)
    logits = processes.all_reduce_sum(logits)
    return logits if examples.windows is None else examples.windows.pool(logits)


def evaluate_all(
    model: SequenceClassifier, examples: Examples, max_tokens: int, processes: Processes, select_by: str, quiet: bool
) -> tuple[Tensor, dict[str, float]]:
    """Return the validation logits, and eval_loss and the metrics of the validation and the other splits.

    With --threshold auto, thresholds with the highest `select_by` are chosen on the held-out examples, or, without
    them, on the validation examples.
    """
    splits = {"": examples.validation, **{f"{name}_": other for name, other in examples.others.items()}}
    title = "" if quiet else "evaluating"
    logits = {name: predict_logits(model, split, max_tokens, processes, title) for name, split in splits.items()}
    task, chooser = examples.validation.split.task, f"{HOLDOUT}_" if HOLDOUT in examples.others else ""
    problem = task.problem
    if problem.auto_thresholds:
        metrics = select_by.removeprefix(chooser), *task.metrics
        problem, _ = problem.choose_thresholds(logits[chooser], splits[chooser].split.labels, metrics)
    figures = problem.figures()
    labels = splits[""].split.labels
    if len(problem.count(labels)) > 1 and problem.describe_constant(logits[""]):
        figures[CONSTANT] = 1.0
    for prefix, split in splits.items():
        values = problem.score(logits[prefix], split.split.labels, task.metrics)
        figures |= {f"{prefix}{name}": value for name, value in values.items()}
    return logits[""], figures
