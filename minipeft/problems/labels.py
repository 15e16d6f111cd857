"""Labels: the class or number that a row's label stands for, and the classes of a custom dataset."""

from __future__ import annotations

import math
import re
from collections import Counter
from contextlib import suppress
from typing import Any

from minipeft.data.tables.table import Table
from minipeft.data.tasks.task import Task
from minipeft.errors import MinipeftError, format_names, is_unicode, nearest, short_repr

LABEL_TYPES = ("auto", "classes", "numbers", "multilabel")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
MOST_CLASSES, LONGEST_NAME = 100_000, 1000
FEWEST_ROWS_PER_CLASS = 2  # on average; with fewer the column is hardly one of classes


def class_name(value: Any, place: str) -> str:
    """Return the class name of a label: text is unchanged, 3 and 3.0 are "3", true and false as in JSON."""
    if isinstance(value, str) and is_unicode(value) and len(value) <= LONGEST_NAME:
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, (list, tuple)):
        raise MinipeftError(f"{place}: label {short_repr(value)} is a list. Pass --label-type multilabel.")
    raise MinipeftError(
        f"{place}: label {short_repr(value)} is neither a name of up to {LONGEST_NAME:,} characters nor a number; "
        "fix or remove the row"
    )


def read_label(task: Task, label: Any, place: str) -> Any:
    """Return the class index of a row's label, or its float for regression; `place` is for the error message."""
    if task.is_custom and label is None:
        raise MinipeftError(f"{place}: no {task.label_column}; add it or remove the row")
    if task.is_custom and not task.is_regression:
        if (found := task.numbers.get(class_name(label, place))) is None:
            raise MinipeftError(
                f"{place}: label {short_repr(label)} is not one of the training file's ({format_names(task.labels)})"
                f"{nearest_label(label, task)}; fix or remove the row"
            )
        return found
    if isinstance(label, str) and label not in task.labels:
        for number in (int, float):  # a number as text, as in every tsv file
            with suppress(ValueError):
                label = number(label)
                break
    if task.is_regression:
        with suppress(OverflowError):  # an integer too large for a float
            if isinstance(label, (int, float)) and not isinstance(label, bool) and math.isfinite(label):
                return float(label)
        raise MinipeftError(f"{place}: label {short_repr(label)} is not a finite number, which {task.name} needs")
    if isinstance(label, str) and label in task.numbers:
        return task.numbers[label]
    if isinstance(label, (int, float)) and label in range(len(task.labels)):
        return int(label)
    hidden = " (GLUE hides the labels of its test split)" if label == -1 else ""
    classes = ", ".join(f"{number} {name}" for number, name in enumerate(task.labels))
    meant = nearest_label(label, task)
    raise MinipeftError(f"{place}: label {short_repr(label)} is not one of {task.name}'s: {classes}{hidden}{meant}")


def nearest_label(label: Any, task: Task) -> str:
    """Return a question that names the class most similar to an unknown name, or ""; a number is similar to none."""
    return "" if NUMBER.fullmatch(str(label)) else nearest(label, task.labels)


def find_labels(table: Table, column: str, label_type: str) -> tuple[dict[str, int], int]:
    """Find the classes of a label column.

    With "auto" the labels are numbers (regression) if all are numbers and at least one has a fraction. Classes that
    are whole numbers are sorted as numbers, others as text. A data set that declares its classes keeps their order.

    Args:
        table: The training file.
        column: The label column.
        label_type: One of LABEL_TYPES.

    Returns:
        The number of rows of each class, in the order of the class indices (empty for regression), and of all rows.

    Raises:
        MinipeftError: for a label that is missing or invalid, with its place; for a single class; for more than
            MOST_CLASSES, and with "auto" for nearly one class per row.
    """
    counts: Counter[str] = Counter()
    fraction, text = "", ""  # the places of the first number with a fraction, and of the first label that is text
    rows = 0
    for place, (value,) in table.read([column]):
        rows += 1
        if value is None:
            raise MinipeftError(f"{place}: no {column}; add it or remove the row")
        name = class_name(value, place)
        if len(counts) <= MOST_CLASSES or name in counts:
            counts[name] += 1
        if NUMBER.fullmatch(name) is None or isinstance(value, bool):
            text = text or f"{short_repr(value)} ({place})"
        elif not float(name).is_integer():
            fraction = fraction or f"{short_repr(value)} ({place})"
    if rows == 0:
        raise MinipeftError(f"{table.place}: the file is empty; it needs at least one row")
    if len(counts) == 1:
        raise MinipeftError(
            f"{table.place}: every {column} is {short_repr(value)}; at least two different ones are needed"
        )
    if text and label_type == "numbers":
        raise MinipeftError(f"{table.place}: label {text} is not a number; fix the row, or pass --label-type classes")
    if text and fraction and label_type == "auto":
        raise MinipeftError(
            f"{table.place}: the labels are neither classes nor numbers, such as {fraction} and {text}; "
            "fix the rows, or pass --label-type classes"
        )
    if label_type == "numbers" or (label_type == "auto" and fraction):
        return {}, rows
    if len(counts) > MOST_CLASSES:
        raise MinipeftError(
            f"{table.place}: {column} has more than {MOST_CLASSES:,} classes; "
            "name another --label-column, or pass --label-type numbers"
        )
    if label_type == "auto" and rows >= 10 and len(counts) * FEWEST_ROWS_PER_CLASS > rows:
        remedy = "name another --label-column" + ("" if text else ", or pass --label-type numbers")
        raise MinipeftError(
            f"{table.place}: {column} has {len(counts):,} classes in {rows:,} rows; {remedy} "
            "(--label-type classes trains on it as it is)"
        )
    if declared := table.classes.get(column):
        return {name: counts[name] for name in declared}, rows
    names = sorted(counts) if text else sorted(counts, key=lambda name: (float(name), name))
    return {name: counts[name] for name in names}, rows
