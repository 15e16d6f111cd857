"""The training loss: cross-entropy with class weights and label smoothing, binary cross-entropy, squared error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minipeft.data.batches.packing import PackedBatch
from minipeft.data.tasks.task import Task
from minipeft.errors import MinipeftError, format_names, short_repr
from minipeft.problems.labels import nearest_label

BALANCED = "balanced"


def sequence_loss(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    sequence_weights: Tensor | None = None,
) -> Tensor:
    """Return the loss summed over sequences.

    The loss of a sequence is the cross-entropy of its class, or the squared error for one label (regression), or the
    mean over the labels of the binary cross-entropy (multi-label). The sums are those of torch's CrossEntropyLoss
    (weight, label_smoothing) and BCEWithLogitsLoss (pos_weight).

    Args:
        logits: (num_sequences, num_labels), float32.
        labels: (num_sequences,), or (num_sequences, num_labels), float32, for multi-label. Dummy sequences
            (data/batches/buckets.py) have -100, or NaN where labels are floats, and are left out.
        class_weights: (num_labels,), float32: of each class, or of the positive term of each label; None for 1.
        label_smoothing: this fraction of the target is distributed evenly over the classes.
        sequence_weights: (num_sequences,), float32: factors on the losses of the sequences; None for 1.

    Returns:
        A scalar tensor.
    """
    if labels.ndim == 2:
        known = ~labels.isnan()
        terms = F.binary_cross_entropy_with_logits(
            logits, labels.nan_to_num(0.0), pos_weight=class_weights, reduction="none"
        )
        losses = torch.where(known, terms, 0.0).mean(1)  # (num_sequences,)
    elif logits.shape[1] == 1:
        losses = torch.where(labels.isnan(), 0.0, logits[:, 0] - labels).square()
    else:
        reduction = "sum" if sequence_weights is None else "none"
        losses = F.cross_entropy(logits, labels, class_weights, reduction=reduction, label_smoothing=label_smoothing)
    return losses.sum() if sequence_weights is None else (losses * sequence_weights).sum()


@dataclass(frozen=True)
class Loss:
    """The loss of a run; the defaults are the plain loss.

    A step's loss is the sum over its examples divided by `total_weight` of their labels, as torch's reduction "mean"
    divides: by the sum of the class weights of the step's labels, and without class weights, and for multi-label, by
    the number of examples. It depends neither on the batches nor on the number of processes.

    Attributes:
        class_weights: of each class, or of the positive term of each label; empty for 1.
        label_smoothing: this fraction of the target is distributed evenly over the classes.
        on_device: `class_weights` as a tensor on the model's device.
    """

    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    on_device: Tensor | None = None

    def __call__(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """Return the loss summed over the batch's sequences."""
        assert batch.labels is not None
        return sequence_loss(logits, batch.labels, self.on_device, self.label_smoothing, batch.weights)

    def total_weight(self, labels: Sequence[Any]) -> float:
        """Return what the sum of the losses of examples with these labels is divided by."""
        if not self.class_weights or not isinstance(labels[0], int):
            return len(labels)
        return sum(self.class_weights[label] for label in labels)


@dataclass(frozen=True)
class LossSettings:
    """--class-weights and --label-smoothing: "balanced" or the weights by name; classes without one have 1."""

    class_weights: Any = ""  # a string, or a mapping
    label_smoothing: float = 0.0

    def check(self, task: Task) -> None:
        """Raise MinipeftError where the task's labels do not allow the settings."""
        if self.class_weights and task.is_regression:
            raise MinipeftError(f"--class-weights: the labels of {task.name} are numbers, not classes. Leave it out.")
        if self.label_smoothing and (task.is_regression or task.multilabel):
            raise MinipeftError(
                f"--label-smoothing {self.label_smoothing:g} is for single classes, and the labels of {task.name} are "
                f"{'numbers' if task.is_regression else 'sets'}. Leave it out."
            )
        for name in () if self.class_weights in ("", BALANCED) else self.class_weights:
            if name not in task.numbers:
                raise MinipeftError(
                    f"--class-weights: {short_repr(name)} is not a class of {task.name} ({format_names(task.labels)})"
                    f"{nearest_label(name, task)}. Name one of them."
                )

    def weights(self, labels: Sequence[Any], task: Task) -> tuple[float, ...]:
        """Return the weight of each class for these training labels; empty without --class-weights.

        "balanced" is n / (K · n_c) for class c of K, as in scikit-learn, and for label c of a multi-label task
        (n - n_c) / n_c, where n_c of the n examples have it.

        Raises:
            MinipeftError: where a class has no training example, or a label has all of them.
        """
        if not self.class_weights:
            return ()
        if self.class_weights != BALANCED:
            return tuple(float(self.class_weights.get(name, 1.0)) for name in task.labels)
        counts = Counter(chain.from_iterable(labels) if task.multilabel else map(int, labels))
        for number, name in enumerate(task.labels):
            if counts[number] == 0 or (task.multilabel and counts[number] == len(labels)):
                have = "no training example has" if counts[number] == 0 else "all training examples have"
                raise MinipeftError(
                    f"--class-weights balanced: {have} the label {short_repr(name)}. Give weights by name."
                )
        if task.multilabel:
            return tuple((len(labels) - counts[number]) / counts[number] for number in range(len(task.labels)))
        return tuple(len(labels) / (len(task.labels) * counts[number]) for number in range(len(task.labels)))

    def make_loss(self, labels: Sequence[Any], task: Task, device: str) -> Loss:
        """Return the loss of a run with these training labels."""
        weights = self.weights(labels, task)
        return Loss(weights, self.label_smoothing, torch.tensor(weights, device=device) if weights else None)
