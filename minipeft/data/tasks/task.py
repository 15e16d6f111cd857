"""Tasks: the table of GLUE (Wang et al. 2019), one row per task, with the columns of nyu-mll/glue.

A custom dataset is a Task as well, built by custom.py with the columns and labels of its files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from minipeft.errors import MinipeftError, nearest


@dataclass(frozen=True)
class Task:
    """A task: its columns, classes, metrics and splits.

    Attributes:
        name: GLUE's name, or the name of a custom dataset.
        columns: The text column, or the two columns of a pair.
        labels: Class names in the order of their indices; empty for regression.
        metrics: Names in training/evaluate.py; the first one selects the best epoch.
        validation: Name of the validation split.
        also: Further validation splits to evaluate: (prefix of their metrics, split).
        label_column: Column of the labels.
        files: Custom data only: (split, file or MemorySplit). Without a validation file, the split is drawn from the
            training file.
        multilabel: Whether an example has a set of labels, of any number, in place of one.
        label_separator: The character between the labels of a multi-label text; None where they are lists.
        threshold: Probability from which on a label of a multi-label task is predicted; None: to be chosen.
        stratified: Whether examples are drawn from the training split class by class; False for a run of an earlier
            version, which did not.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    validation: str = "validation"
    also: tuple[tuple[str, str], ...] = ()
    label_column: str = "label"
    files: tuple[tuple[str, Any], ...] = ()
    stratified: bool = True
    multilabel: bool = False
    label_separator: str | None = None
    threshold: float | None = 0.5

    @property
    def is_custom(self) -> bool:
        """Whether this is a custom dataset, not a task of GLUE."""
        return bool(self.files)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The index of each class by its name."""
        return {name: number for number, name in enumerate(self.labels)}

    @property
    def num_labels(self) -> int:
        """The output size of the classification head; 1 for regression."""
        return len(self.labels) or 1

    @property
    def is_regression(self) -> bool:
        return not self.labels

    @property
    def has_classes(self) -> bool:
        """Whether an example has one class: neither numbers nor sets of labels."""
        return bool(self.labels) and not self.multilabel

    @property
    def problem_type(self) -> str:
        """The kind of labels, as transformers names it."""
        if self.is_regression:
            return "regression"
        return "multi_label_classification" if self.multilabel else "single_label_classification"


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
    """Examples of one split: texts, pairs (or None) and labels.

    The labels are class indices, floats for regression, or tuples of indices for multi-label; empty if not read.
    """

    task: Task
    texts: list[str]
    pairs: list[str] | None
    labels: Sequence[Any]

    def __len__(self) -> int:
        return len(self.texts)


def get_task(name: str) -> Task:
    """Return a task of GLUE by name. Raises MinipeftError that lists the names."""
    if name not in TASKS:
        known = f"one of {', '.join(TASKS)}, or name a custom dataset by --data"
        raise MinipeftError(f"unknown task {name!r}; {known}{nearest(name, TASKS)}")
    return TASKS[name]
