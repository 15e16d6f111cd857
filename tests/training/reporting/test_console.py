"""The warnings after an epoch."""

from typing import Any

import pytest
import torch

from minipeft.data.tasks.task import Task
from minipeft.problems import problem_of
from minipeft.training.reporting.console import warn_about_predictions

TAGS = ["O", *(f"{prefix}-{kind}" for kind in "abcdef" for prefix in "BI")]


@pytest.mark.parametrize(
    ("problem_type", "labels", "targets", "early", "diverged"),
    [
        # Nearly every word is O: the best constant prediction is far better than a new head, which has log(13).
        ("token_classification", TAGS, [(0,) * 300, (0,) * 200 + (1,)], 2.5, 30),
        ("single_label_classification", ["no", "yes"], [0] * 400 + [1], 0.69, 8),
        ("regression", [], [999.0, 1000.0, 1001.0, 1000.0], 4, 100_000),
    ],
)
def test_a_loss_like_that_of_a_new_head_does_not_diverge(
    problem_type: str,
    labels: list[str],
    targets: list[Any],
    early: float,
    diverged: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = Task("own", ("text",), problem_of(problem_type, labels, {}))
    words = sum(len(target) for target in targets) if isinstance(targets[0], tuple) else len(targets)
    logits = torch.randn(words, max(1, len(labels)), generator=torch.Generator().manual_seed(0))
    if isinstance(targets[0], tuple):
        logits[-2] = -torch.inf  # a word that was cut off
    for loss, expected in ((early, False), (diverged, True)):
        caplog.clear()
        warn_about_predictions(logits, {"epoch": 1, "train_loss": loss, "eval_loss": loss}, targets, task)
        assert ("the training diverges. Lower --lr" in caplog.text) == expected
