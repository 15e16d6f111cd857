"""How far a run has come, and which of its epochs is the best."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

HOLDOUT = "holdout"  # the prefix of the figures of held-out examples


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: the current epoch, from 0.
        place: examples of this epoch that are done.
        step: optimizer steps done.
        samples: examples since the last evaluation.
        loss_sum: summed over them, with their weights.
        weight: the sum of their weights in the loss.
        seconds: training time since the last evaluation.
        history: one row per evaluation: the lines of metrics.jsonl.
    """

    epoch: int = 0
    place: int = 0
    step: int = 0
    samples: int = 0
    loss_sum: float = 0.0
    weight: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def selection_metric(select_by: str, holdout: bool) -> str:
    """Return the figure that chooses the best epoch: that of the held-out examples, where there are any."""
    return f"{HOLDOUT}_{select_by}" if holdout else select_by


def best_epoch(history: list[dict[str, Any]], select_by: str) -> dict[str, Any]:
    """Return the row of the first epoch with the best value of a figure: the largest, or for a loss the smallest."""
    sign = -1 if select_by.endswith("loss") else 1
    return max(history, key=lambda row: sign * row[select_by])
