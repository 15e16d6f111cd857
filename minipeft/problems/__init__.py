"""What a label is: a class, a set of classes, a number, or the tags of words. One file and one row for each kind.

A run asks `task.problem`, one object, for everything that depends on the kind of its labels: how to read a column and
a row, the target tensor of a batch, the size of the head, the loss, the metrics, what `predict` returns and what a
report shows. problem.py has the interface and what several kinds share. No other folder asks which kind a problem is.

**To add a kind:** write its file, a subclass of `Problem`, and add its row to `PROBLEMS`. A row is imported when a task
or a model has such labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from minipeft.problems.problem import Problem


class Row(NamedTuple):
    """A kind of label, without importing it.

    Attributes:
        module: Its file, and the name of the class in it.
        label_type: Its value of --label-type.
        settings: Settings of a run that no other kind has.
        fewest: Outputs of a head; at least so many, and at most `most`.
        per_token: Whether every token has a label, not every sequence.
        architecture: End of the name of transformers' class.
        peft_task: peft's task_type.
    """

    module: str
    class_name: str
    label_type: str
    settings: tuple[str, ...] = ()
    fewest: int = 1
    most: int = 1 << 20
    per_token: bool = False
    architecture: str = "ForSequenceClassification"
    peft_task: str = "SEQ_CLS"


# transformers' problem_type → the kind; transformers has no problem_type for tokens, but other classes
PROBLEMS = {
    "single_label_classification": Row("single_label", "SingleLabel", "classes", fewest=2),
    "regression": Row("regression", "Regression", "numbers", most=1),
    "multi_label_classification": Row("multi_label", "MultiLabel", "multilabel", ("label_separator", "threshold")),
    "token_classification": Row(
        *("token_labels", "TokenLabels", "tokens"),
        per_token=True,
        architecture="ForTokenClassification",
        peft_task="TOKEN_CLS",
    ),
}
AUTO = "auto"  # the label type of a column that has classes or numbers
LABEL_SETS = PROBLEMS["multi_label_classification"].label_type  # of a column that has any number of classes
LABEL_TYPES = (AUTO, *(row.label_type for row in PROBLEMS.values()))


def problem_row(problem_type: str | None, num_labels: int = 2) -> Row:
    """Return the row of a model's labels; without a problem_type one label is a number, as in transformers."""
    return PROBLEMS[problem_type or ("regression" if num_labels == 1 else "single_label_classification")]


def problem_class(problem_type: str | None, num_labels: int = 2) -> type[Problem]:
    """Return the class of a model's labels; see `problem_row`."""
    row = problem_row(problem_type, num_labels)
    found: type[Problem] = getattr(import_module(f"minipeft.problems.{row.module}"), row.class_name)
    return found


def token_problem_type(architectures: Iterable[str], peft_task: Any = None) -> str | None:
    """Return the problem_type that transformers' classes or peft's task_type stand for, if they are for tokens."""
    for name, row in PROBLEMS.items():
        named = any(architecture.endswith(row.architecture) for architecture in architectures)
        if row.per_token and (named or peft_task == row.peft_task):
            return name
    return None


def problem_of(problem_type: str | None, names: Iterable[Any], details: Mapping[str, Any]) -> Problem:
    """Return the problem of a model whose outputs have these names; `details` are an adapter's, or a config.json."""
    names = [str(name) for name in names]
    return problem_class(problem_type, len(names)).of_outputs(names).with_details(details)


def problem_type_of(label_type: str) -> str:
    """Return transformers' name for a value of --label-type; "auto" begins with classes."""
    return next((name for name, row in PROBLEMS.items() if row.label_type == label_type), "single_label_classification")
