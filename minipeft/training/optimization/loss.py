"""The training loss: what a step minimizes, with class weights and label smoothing.

    loss of a step = Σ over its examples of losses[i] · weights[i]  /  total weight of its examples

`losses` is the cross-entropy for classes, the squared error for numbers, and the binary cross-entropy for sets of
labels; each is in the file of its kind (problems/). This file has what they share: the division, which makes the loss
of a step the same however its examples are divided into batches and processes, and the settings --class-weights and
--label-smoothing.

What is left out: other losses (focal, contrastive, a ranking loss). They need no new setting: a subclass of a problem
overrides `losses`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minipeft.data.batches.packing import PackedBatch
from minipeft.data.tasks.task import Task
from minipeft.errors import MinipeftError, format_names, short_repr
from minipeft.problems.problem import Problem

BALANCED = "balanced"


@dataclass(frozen=True)
class Loss:
    """The loss of a run; without weights and smoothing it is the plain loss, which evaluation always uses.

    Attributes:
        problem: What a label is.
        class_weights: The weight of each class, or of the positive term of each label; empty if all are 1.
        label_smoothing: This fraction of the target is distributed evenly over the classes.
        on_device: `class_weights` as a tensor on the model's device, so that no step copies them there.
    """

    problem: Problem
    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    on_device: Tensor | None = None

    def __call__(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """Return the sum of the losses of a batch, a scalar.

        Args:
            logits: (num_sequences, num_labels), float32.
            batch: With labels. Dummy sequences (data/batches/buckets.py) have a loss of 0.
        """
        assert batch.labels is not None
        # A sum and not a mean: the batches of a step have different sizes, and the caller divides by the whole step's.
        losses = self.problem.losses(logits, batch.labels, self.on_device, self.label_smoothing)  # (num_sequences,)
        # A long text is several sequences (--long-text window), whose weights sum to its row's: 1, or --weight-column.
        return losses.sum() if batch.weights is None else (losses * batch.weights).sum()

    def total_weight(self, targets: Sequence[Any], weights: Sequence[float] | None = None) -> float:
        """Return what the sum of the losses of a step's examples is divided by.

        It is what torch's reduction "mean" divides by: the sum of their weights, of class times row, or their number.
        """
        if weights is None:
            return self.problem.total_weight(targets, self.class_weights)
        # Above 0: all rows of a step may have weight 0. Its loss is then 0.
        return max(1e-30, sum(weight * self.total_weight([of]) for of, weight in zip(targets, weights, strict=True)))


@dataclass(frozen=True)
class LossSettings:
    """--class-weights, "balanced" or weights by class name (others have 1), and --label-smoothing."""

    class_weights: Any = ""  # a string, or a mapping
    label_smoothing: float = 0.0

    def check(self, task: Task) -> None:
        """Raise MinipeftError where the task's labels do not allow the settings."""
        problem = task.problem
        # A setting that a kind of label ignores is an error, not a no-op: the run would not be the one asked for.
        if self.class_weights and "class_weights" not in problem.loss_settings:
            raise MinipeftError(
                f"--class-weights: the labels of {task.name} are {problem.plural}, not classes. Leave it out."
            )
        if self.label_smoothing and "label_smoothing" not in problem.loss_settings:
            raise MinipeftError(
                f"--label-smoothing {self.label_smoothing:g} is for single classes, and the labels of {task.name} are "
                f"{problem.plural}. Leave it out."
            )
        # "balanced" names no class; its weights come from the counts of the training examples.
        for name in () if self.class_weights in ("", BALANCED) else self.class_weights:
            if name not in problem.numbers:
                from minipeft.problems.labels import nearest_label

                raise MinipeftError(
                    f"--class-weights: {short_repr(name)} is not a class of {task.name} ({format_names(task.labels)})"
                    f"{nearest_label(name, task.labels)}. Name one of them."
                )

    def weights(self, targets: Sequence[Any], problem: Problem) -> tuple[float, ...]:
        """Return the weight of each class for these training examples; empty without --class-weights.

        Raises:
            MinipeftError: where "balanced" is not defined, because a class has no training example.
        """
        if not self.class_weights:
            return ()
        if self.class_weights == BALANCED:
            return problem.balanced_weights(targets)
        # In the order of the logits; a class that is not named counts once.
        return tuple(float(self.class_weights.get(name, 1.0)) for name in problem.labels)

    def make_loss(self, targets: Sequence[Any], problem: Problem, device: str) -> Loss:
        """Return the loss of a run with these training examples."""
        weights = self.weights(targets, problem)
        # On the device once, here: a tensor made in every step would be a copy in every step.
        return Loss(problem, weights, self.label_smoothing, torch.tensor(weights, device=device) if weights else None)
