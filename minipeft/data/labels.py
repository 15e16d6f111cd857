"""Labels: what a row's stands for, and which classes there are in a file of one's own."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from typing import Any

from minipeft.data.rows import Table
from minipeft.data.tasks import Task
from minipeft.errors import MinipeftError, is_unicode, shown, some

LABEL_TYPES = ("auto", "classes", "numbers")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
MOST_CLASSES, LONGEST_NAME = 100_000, 1000


def class_name(value: Any, place: str) -> str:
    """The class that a label stands for: text as it is; 3 and 3.0 are "3"; true and false as JSON writes them."""
    if isinstance(value, str) and is_unicode(value) and len(value) <= LONGEST_NAME:
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    raise MinipeftError(
        f"{place}: label {shown(value)} is no name of up to {LONGEST_NAME:,} characters and no number; "
        "mend or remove the row"
    )


def read_label(task: Task, label: Any, place: str) -> Any:
    """The number of a row's class, by its number or name, or the float of regression; `place` begins the refusal."""
    if task.is_custom and label is None:
        raise MinipeftError(f"{place}: no {task.label_column}; fill it in or remove the row")
    if task.is_custom and not task.is_regression:
        if (found := task.numbers.get(class_name(label, place))) is None:
            raise MinipeftError(
                f"{place}: label {shown(label)} is none of the training file's ({some(task.labels)}); "
                "mend or remove the row"
            )
        return found
    if isinstance(label, str) and label not in task.labels:
        for number in (int, float):  # a number as text, as in every tsv
            with suppress(ValueError):
                label = number(label)
                break
    if task.is_regression:
        with suppress(OverflowError):  # of a whole number beyond every float
            if isinstance(label, (int, float)) and not isinstance(label, bool) and math.isfinite(label):
                return float(label)
        raise MinipeftError(f"{place}: label {shown(label)} is no finite number, which {task.name} needs")
    if isinstance(label, str) and label in task.numbers:
        return task.numbers[label]
    if isinstance(label, (int, float)) and label in range(len(task.labels)):
        return int(label)
    hidden = " (GLUE hides the labels of its test split)" if label == -1 else ""
    classes = ", ".join(f"{number} {name}" for number, name in enumerate(task.labels))
    raise MinipeftError(f"{place}: label {shown(label)} is none of {task.name}'s: {classes}{hidden}")


def find_labels(table: Table, column: str, label_type: str) -> tuple[tuple[str, ...], int]:
    """The names of the classes in a column, in the order of their numbers, and how many rows there are.

    No names: the labels are numbers, for regression. "auto" takes them for numbers where all are and one has a
    fraction. Classes that are whole numbers come in the order of the numbers, others in that of their characters.
    Raises MinipeftError, with the row, for a label that is missing or of no use; for one class alone; for too many.
    """
    names: set[str] = set()
    fraction, other = "", ""  # the places of the first label with a fraction, and of the first that is no number
    rows = 0
    for rows, (value,) in enumerate(table.read([column]), 1):
        place = f"{table.place}, row {rows - 1}"
        if value is None:
            raise MinipeftError(f"{place}: no {column}; fill it in or remove the row")
        name = class_name(value, place)
        if len(names) <= MOST_CLASSES:
            names.add(name)
        if NUMBER.fullmatch(name) is None or isinstance(value, bool):
            other = other or f"row {rows - 1}'s {shown(value)}"
        elif not float(name).is_integer():
            fraction = fraction or f"row {rows - 1}'s {shown(value)}"
    if rows == 0:
        raise MinipeftError(f"{table.place}: the file is empty; it needs at least one row")
    if len(names) == 1:
        raise MinipeftError(f"{table.place}: every {column} is {shown(value)}; at least two that differ are needed")
    if other and (fraction or label_type == "numbers"):
        if label_type == "numbers":
            raise MinipeftError(f"{table.place}: {other} is no number; mend the row, or pass --label-type classes")
        if label_type == "auto":
            raise MinipeftError(
                f"{table.place}: the labels are neither classes nor numbers, such as {fraction} and {other}; "
                "mend the rows, or pass --label-type classes"
            )
    if label_type == "numbers" or (label_type == "auto" and fraction):
        return (), rows
    if len(names) > MOST_CLASSES:
        raise MinipeftError(
            f"{table.place}: {column} has more than {MOST_CLASSES:,} classes; "
            "name another --label-column, or pass --label-type numbers"
        )
    if not other:
        return tuple(sorted(names, key=lambda name: (float(name), name))), rows
    return tuple(sorted(names)), rows
