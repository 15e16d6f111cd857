"""Tasks: the table of GLUE (Wang et al. 2019), one row per task, with the columns of nyu-mll/glue.

A custom dataset is a Task as well, built by custom.py with the columns and labels of its files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from minipeft.errors import MinipeftError, nearest
from minipeft.problems import problem_class

if TYPE_CHECKING:
    from minipeft.data.tables.table import Table
    from minipeft.problems.metrics import Array
    from minipeft.problems.problem import Problem


@dataclass(frozen=True)
class Task:
    """A task: its columns, kind of labels, metrics and splits.

    Attributes:
        name: GLUE's name, or the name of a custom dataset.
        columns: The text column, or the two columns of a pair.
        problem: What a label is.
        metrics: Names in problems/metrics.py; the first one selects the best epoch. The default is the problem's.
        validation: Name of the validation split.
        also: Further validation splits to evaluate: (prefix of their metrics, split).
        label_column: Column of the labels.
        files: Custom data only: (split, file or MemorySplit).
        file_format: Custom data only: the format of the files; None: each has that of its ending.
        fold: Custom data only: "2/5" to validate on the second of five folds of the training file.
        group_column: Custom data only: column of the groups whose rows stay together.
        train_rows: Custom data only: the number of rows of the training file, the class of each where draws are
            stratified, and what `connected_rows` returns, if they have been read.
    """

    name: str
    columns: tuple[str, ...]
    problem: Problem
    metrics: tuple[str, ...] = ()
    validation: str = "validation"
    also: tuple[tuple[str, str], ...] = ()
    label_column: str = "label"
    files: tuple[tuple[str, Any], ...] = ()
    file_format: str | None = None
    fold: str | None = None
    group_column: str | None = None
    train_rows: tuple[int, Any, Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.metrics:
            object.__setattr__(self, "metrics", self.problem.metrics)

    def with_metric(self, name: str) -> Task:
        """Return the task with one more metric to evaluate, that of --select-by; raise MinipeftError if unknown."""
        if name in ("eval_loss", *self.metrics):
            return self
        self.problem.check_metric(name)
        return replace(self, metrics=(*self.metrics, name))

    @cached_property
    def validation_rows(self) -> Array | None:
        """True for each row of the training file that is drawn for validation; None if nothing is drawn.

        Rows with one text or group are all drawn or none. They are read, unless `train_rows` has what is needed.
        """
        if not self.is_custom or "validation" in dict(self.files):
            return None
        from minipeft.data.tasks.folds import draw_validation

        return draw_validation(self)

    def open_split(self, split: str) -> Table:
        """Open a file of a custom dataset; one without a validation file has its rows in the training file."""
        from minipeft.data.tables.remote_tables.hub_rows import open_split

        files = dict(self.files)
        return open_split(files.get(split, files["train"]), self.file_format)

    @property
    def is_custom(self) -> bool:
        """Whether this is a custom dataset, not a task of GLUE."""
        return bool(self.files)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels in the order of their indices; empty where labels are numbers."""
        return self.problem.labels

    @property
    def num_labels(self) -> int:
        """The output size of the classification head."""
        return len(self.problem.outputs)


class GlueTask(NamedTuple):
    """A row of the table; `get_task` makes the Task of it and imports its kind of labels alone."""

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    problem_type: str = "single_label_classification"
    validation: str = "validation"
    also: tuple[tuple[str, str], ...] = ()


NLI = ("entailment", "not_entailment")
TASKS = {
    "rte": GlueTask(("sentence1", "sentence2"), NLI),
    "sst2": GlueTask(("sentence",), ("negative", "positive")),
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation", "accuracy")),
    "mrpc": GlueTask(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "stsb": GlueTask(("sentence1", "sentence2"), (), ("pearson", "spearman"), "regression"),
    "qnli": GlueTask(("question", "sentence"), NLI),
    "qqp": GlueTask(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "mnli": GlueTask(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        validation="validation_matched",
        also=(("mismatched", "validation_mismatched"),),
    ),
    "wnli": GlueTask(("sentence1", "sentence2"), ("not_entailment", "entailment")),
}


@dataclass(frozen=True)
class Split:
    """Examples of one split: texts, pairs (or None) and labels.

    The labels are what `Problem.read` returns: class indices, floats, or tuples of indices; empty if not read.
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
    row = TASKS[name]
    problem = problem_class(row.problem_type)(row.labels)
    return Task(name, row.columns, problem, row.metrics, row.validation, row.also)
