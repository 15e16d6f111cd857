"""The progress of a run, and which of its epochs is the best."""

from dataclasses import dataclass, field
from typing import Any

HOLDOUT = "holdout"  # the prefix of the figures of held-out examples
CONSTANT = "constant_prediction"  # 1 in the row of an evaluation that predicts one class for every validation example
# What the row of an evaluation has besides losses and metrics.
NOT_METRICS = (CONSTANT, "thresholds", "epoch", "step", "learning_rate", "seconds", "samples_per_second")


@dataclass
class Progress:
    """The progress of a run: with the trained tensors and the optimizer's state, what a checkpoint holds.

    Attributes:
        epoch: the current epoch, from 0.
        examples_done: examples of this epoch that have been trained on.
        step: optimizer steps done.
        samples: examples since the last evaluation.
        loss_sum: the sum of their losses, each with its weight.
        loss_weight: the sum of their weights.
        seconds: training time since the last evaluation.
        history: one row per evaluation: the lines of metrics.jsonl.
    """

    epoch: int = 0
    examples_done: int = 0
    step: int = 0
    samples: int = 0
    loss_sum: float = 0.0
    loss_weight: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def finish_step(self, examples: int, seconds: float) -> None:
        """Count an optimizer step on a number of examples."""
        self.step += 1
        self.examples_done += examples
        self.samples += examples
        self.seconds += seconds

    def add_loss(self, loss: float, weight: float) -> None:
        """Add the mean loss of a step's examples, whose weights sum to `weight`."""
        self.loss_sum += loss * weight
        self.loss_weight += weight

    def finish_evaluation(self, row: dict[str, Any], epoch_ended: bool) -> None:
        """Append an evaluation's row to the history; what is counted since the last evaluation starts from 0."""
        self.history.append(row)
        self.samples, self.loss_sum, self.loss_weight, self.seconds = 0, 0.0, 0.0, 0.0
        if epoch_ended:
            self.epoch, self.examples_done = self.epoch + 1, 0


def selection_metric(select_by: str, holdout: bool) -> str:
    """Return the figure that selects the best epoch: that of the held-out examples, where there are any."""
    return f"{HOLDOUT}_{select_by}" if holdout else select_by


def largest_is_best(figure: str) -> bool:
    """Whether larger values of a figure are better; not so of errors and losses."""
    from minipeft.problems.metrics import find_metric  # it imports NumPy, which --help does without

    metric, _ = find_metric(figure.removeprefix(f"{HOLDOUT}_"))
    return metric.largest_is_best if metric else not figure.endswith("loss")


def best_epoch(history: list[dict[str, Any]], select_by: str) -> dict[str, Any]:
    """Return the row of the first epoch with the best value of a figure: the largest, or for an error the smallest.

    An epoch whose validation predictions are all of one class is the best only where every epoch's are.
    """
    sign = 1 if largest_is_best(select_by) else -1
    return max(history, key=lambda row: (CONSTANT not in row, sign * row[select_by]))
