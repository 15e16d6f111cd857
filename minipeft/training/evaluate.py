"""GLUE's metrics, and evaluating a model on a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minipeft.data.batches.buckets import pad_to_bucket
from minipeft.data.batches.packing import pack
from minipeft.data.batches.sampling import split_by_tokens
from minipeft.data.tasks.task import Task
from minipeft.data.tokens.examples import Encoded, Examples
from minipeft.model.classifier import SequenceClassifier
from minipeft.problems import multi_label_metrics as multilabel_metrics
from minipeft.problems.metrics import METRICS
from minipeft.problems.multi_label import multi_hot
from minipeft.problems.multi_label_metrics import best_threshold
from minipeft.training.distributed import SINGLE_PROCESS, Processes
from minipeft.training.optimization.loss import sequence_loss as sequence_loss
from minipeft.training.progress import HOLDOUT


@torch.inference_mode()
def predict_logits(
    model: SequenceClassifier, examples: Encoded, max_tokens: int, device: str, processes: Processes = SINGLE_PROCESS
) -> Tensor:
    """Return logits (examples, num_labels), float32 on the host, in the order of the examples, on every process."""
    was_training = model.training
    model.eval()
    count = len(examples.sequences)
    logits = torch.zeros(count, model.config.num_labels)  # so that the sum over the processes is the whole
    for indices in split_by_tokens(processes.share(range(count), examples.lengths), examples.lengths, max_tokens):
        batch = pad_to_bucket(pack(examples.sequences.take(indices), config=model.config), model.config)
        logits[indices] = model(batch.to(device))[: len(indices)].cpu()
    model.train(was_training)
    logits = processes.all_reduce_sum(logits)
    return logits if examples.windows is None else examples.windows.pool(logits)


def evaluate(
    model: SequenceClassifier, examples: Encoded, max_tokens: int, device: str, processes: Processes = SINGLE_PROCESS
) -> dict[str, float]:
    """Return eval_loss, the mean over the split's sequences, and the task's metrics by name."""
    return score(
        predict_logits(model, examples, max_tokens, device, processes), examples.split.labels, examples.split.task
    )


def evaluate_all(
    model: SequenceClassifier, examples: Examples, max_tokens: int, device: str, processes: Processes
) -> tuple[Tensor, dict[str, float]]:
    """Return the validation logits, and eval_loss and the metrics of the validation and the other splits.

    A threshold that is to be chosen has the highest micro F1 on the held-out examples, or, without them, on the
    validation examples.
    """
    splits = {"": examples.validation, **{f"{name}_": other for name, other in examples.others.items()}}
    logits = {name: predict_logits(model, split, max_tokens, device, processes) for name, split in splits.items()}
    task = examples.validation.split.task
    figures: dict[str, float] = {}
    if task.multilabel:
        chooser = f"{HOLDOUT}_" if HOLDOUT in examples.others else ""
        if task.threshold is None:
            expected = multi_hot(splits[chooser].split.labels, task.num_labels)
            threshold = best_threshold(logits[chooser].double().sigmoid().numpy(), np.asarray(expected, dtype=bool))
            task = replace(task, threshold=threshold)
        figures["threshold"] = float(task.threshold or 0.5)
    for prefix, split in splits.items():
        values = score(logits[prefix], split.split.labels, task)
        figures |= {f"{prefix}{name}": value for name, value in values.items()}
    return logits[""], figures


def score(logits: Tensor, labels: Sequence[Any], task: Task) -> dict[str, float]:
    """Return eval_loss and the task's metrics for logits (examples, num_labels)."""
    if task.multilabel:
        return _score_sets(logits, labels, task)
    expected = torch.tensor(labels, dtype=torch.float32 if task.is_regression else torch.int64)
    loss = sequence_loss(logits, expected).item() / len(logits)
    predictions = logits[:, 0] if task.is_regression else logits.argmax(dim=1)
    values = {name: METRICS[name](predictions.numpy(), expected.numpy()) for name in task.metrics}
    return {"eval_loss": loss, **values}


def _score_sets(logits: Tensor, labels: Sequence[Any], task: Task) -> dict[str, float]:
    """`score` for a multi-label task."""
    expected = torch.tensor(multi_hot(labels, task.num_labels)).view(len(logits), task.num_labels)
    probabilities, actual = logits.double().sigmoid().numpy(), expected.bool().numpy()
    predictions = probabilities >= (task.threshold or 0.5)
    return {
        "eval_loss": sequence_loss(logits, expected).item() / len(logits),
        "micro_f1": multilabel_metrics.micro_f1(predictions, actual),
        "macro_f1": multilabel_metrics.macro_f1(predictions, actual),
        "average_precision": multilabel_metrics.average_precision(probabilities, actual),
    }
