"""GLUE's metrics, and evaluating a model on a split."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minipeft.data.batching import pack, split_by_tokens
from minipeft.data.buckets import pad_to_bucket
from minipeft.data.multilabel import multi_hot
from minipeft.data.tasks import Task
from minipeft.model.classifier import SequenceClassifier
from minipeft.training import multilabel_metrics
from minipeft.training.checkpoint import HOLDOUT
from minipeft.training.distributed import SINGLE_PROCESS, Processes
from minipeft.training.examples import Encoded, Examples
from minipeft.training.loss import sequence_loss as sequence_loss
from minipeft.training.multilabel_metrics import best_threshold

Array = np.ndarray[Any, Any]


def accuracy(predictions: Array, labels: Array) -> float:
    """The fraction of correct predictions."""
    return float(np.mean(predictions == labels))


def f1(predictions: Array, labels: Array) -> float:
    """Harmonic mean of precision and recall of class 1; 0 where neither exists."""
    true = int(np.sum((predictions == 1) & (labels == 1)))
    total = int(np.sum(predictions == 1) + np.sum(labels == 1))
    return 2 * true / total if total else 0.0


def macro_f1(predictions: Array, labels: Array) -> float:
    """The mean over the classes that occur, on either side, of the F1 of each."""
    size = int(max(predictions.max(), labels.max())) + 1
    true = np.bincount(predictions[predictions == labels], minlength=size)
    total = np.bincount(predictions, minlength=size) + np.bincount(labels, minlength=size)
    return float(np.mean(2 * true[total > 0] / total[total > 0]))


def matthews_correlation(predictions: Array, labels: Array) -> float:
    """Correlation of two binary variables (Matthews 1975); 0 where one of them is constant."""
    if len(np.unique(predictions)) < 2 or len(np.unique(labels)) < 2:
        return 0.0
    return pearson(predictions, labels)


def pearson(predictions: Array, labels: Array) -> float:
    """Linear correlation; 0 where one side is constant."""
    x, y = (side.astype(np.float64) - side.astype(np.float64).mean() for side in (predictions, labels))
    norm = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
    return float(x @ y) / norm if norm else 0.0


def spearman(predictions: Array, labels: Array) -> float:
    """Correlation of the ranks; ties share their mean rank."""
    return pearson(_ranks(predictions), _ranks(labels))


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse]


METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearman": spearman,
}


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
        batch = pad_to_bucket(pack([examples.sequences[index] for index in indices], config=model.config), model.config)
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
