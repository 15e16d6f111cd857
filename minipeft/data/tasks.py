"""Tasks: the GLUE table (Wang et al. 2019), one row per task, with the columns of nyu-mll/glue.

A custom dataset is a task as well, which custom.py makes: its columns and labels are those of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from minipeft.errors import MinipeftError


@dataclass(frozen=True)
class Task:
    """A row of the table.

    columns    the text column, or the two of a pair
    labels     class names in the order of their numbers; empty for regression
    metrics    names in training/metrics.py; the first one chooses the best epoch
    also       other validation splits that are evaluated beside: (what their figures' names begin with, split)

    Of one's own data alone:

    files      (split, its file); the validation split may have none, and is then drawn from the training file
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    validation: str = "validation"
    also: tuple[tuple[str, str], ...] = ()
    label_column: str = "label"
    files: tuple[tuple[str, str], ...] = ()

    @property
    def is_own(self) -> bool:
        """Whether this is a user's own data, no row of the table."""
        return bool(self.files)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each class by its name."""
        return {name: number for number, name in enumerate(self.labels)}

    @property
    def num_labels(self) -> int:
        """The size of the classification head: 1 for regression."""
        return len(self.labels) or 1

    @property
    def is_regression(self) -> bool:
        return not self.labels


NLI = ("entailment", "not_entailment")
TASKS = {
    task.name: task
    for task in (
        Task("rte", ("sentence1", "sentence2"), NLI),
        Task("sst2", ("sentence",), ("negative", "positive")),
        Task("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation", "accuracy")),
        Task("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")),
        Task("stsb", ("sentence1", "sentence2"), (), ("pearson", "spearman")),
        Task("qnli", ("question", "sentence"), NLI),
        Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
        Task(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            validation="validation_matched",
            also=(("mismatched", "validation_mismatched"),),
        ),
        Task("wnli", ("sentence1", "sentence2"), ("not_entailment", "entailment")),
    )
}


@dataclass(frozen=True)
class Split:
    """Examples of one split: texts, pairs (or None) and labels, row by row; floats for regression, [] for no labels."""

    task: Task
    texts: list[str]
    pairs: list[str] | None
    labels: Sequence[int] | Sequence[float]

    def __len__(self) -> int:
        return len(self.texts)


def get_task(name: str) -> Task:
    """The row of a task; an unknown name raises with the valid ones."""
    if name not in TASKS:
        raise MinipeftError(f"unknown task {name!r}; one of {', '.join(TASKS)}, or a file of your own as --data")
    return TASKS[name]
