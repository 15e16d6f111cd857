"""Multi-label data: the set of labels of a row, and columns that hold sets although they are read as single classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from minipeft.data.tables.table import Table
from minipeft.data.tasks.task import Task
from minipeft.errors import MinipeftError, format_names, short_repr
from minipeft.files import parse_json
from minipeft.problems.labels import NUMBER, class_name, nearest_label

MOST_LABELS = 10_000
SEPARATORS = (";", "|")  # that a warning looks for


def label_names(value: Any, separator: str | None, place: str) -> list[str]:
    """Return the names of a row's labels, each once.

    Args:
        value: A list of names or numbers, its text in JSON, or names between separators; an empty text is no label.
        separator: The character between names; None where there is none.
        place: For the error message.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except ValueError:
            raise MinipeftError(f"{place}: label {short_repr(value)} is not a list in JSON. Fix the row.") from None
    elif isinstance(value, str) and separator is not None:
        value = [name for part in value.split(separator) if (name := part.strip())]
    elif value is None and separator is not None:
        value = []  # an empty field
    if value is None:
        raise MinipeftError(f"{place}: the labels are missing. Write [] where there are none.")
    if not isinstance(value, (list, tuple)):
        raise MinipeftError(
            f"{place}: label {short_repr(value)} is not a list. Pass --label-separator with the character between "
            "labels, or leave --label-type multilabel out."
        )
    return list(dict.fromkeys(class_name(name, place) for name in value))


def read_label_set(task: Task, value: Any, place: str) -> tuple[int, ...]:
    """Return the indices of a row's labels, in ascending order."""
    names = label_names(value, task.label_separator, place)
    for name in names:
        if name not in task.numbers:
            raise MinipeftError(
                f"{place}: label {short_repr(name)} is not one of the training file's ({format_names(task.labels)})"
                f"{nearest_label(name, task)}. Fix or remove the row."
            )
    return tuple(sorted(task.numbers[name] for name in names))


def multi_hot(labels: Sequence[tuple[int, ...]], num_labels: int) -> list[list[float]]:
    """Return a row of num_labels zeros and ones for each set of labels."""
    rows = [[0.0] * num_labels for _ in labels]
    for row, indices in zip(rows, labels, strict=True):
        for index in indices:
            row[index] = 1.0
    return rows


def find_label_sets(table: Table, column: str, separator: str | None) -> tuple[dict[str, int], int]:
    """Find the labels of a multi-label column.

    Returns:
        The number of rows that have each label, in the order of the label indices, and the number of all rows.

    Raises:
        MinipeftError: for a row without a list, fewer than two labels, and more than MOST_LABELS.
    """
    counts: Counter[str] = Counter()
    rows = 0
    for place, (value,) in table.read([column]):
        rows += 1
        counts.update(label_names(value, separator, place))
        if len(counts) > MOST_LABELS:
            raise MinipeftError(f"{place}: {column} has more than {MOST_LABELS:,} labels. Name another --label-column.")
    if rows == 0:
        raise MinipeftError(f"{table.place}: the file is empty. Add rows.")
    if len(counts) < 2:
        raise MinipeftError(
            f"{table.place}: {column} has {len(counts)} different labels. At least two are needed; a label that a text "
            "has or lacks is two classes."
        )
    if declared := table.classes.get(column):
        return {name: counts[name] for name in declared}, rows
    numbers = all(NUMBER.fullmatch(name) for name in counts)
    names = sorted(counts, key=lambda name: (float(name), name)) if numbers else sorted(counts)
    return {name: counts[name] for name in names}, rows


def warn_of_lists(file: Any, column: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return a warning where class names look like lists of labels: "a;b", "a|b" or '["a", "b"]'.

    A name with a separator counts if one of its parts occurs in another name, alone or in a list.
    """
    names = list(names)
    lists = [name for name in names if re.fullmatch(r"\s*\[.*\]\s*", name)]
    flags = "--label-type multilabel"
    for separator in SEPARATORS:
        parts = Counter(part.strip() for name in names for part in set(name.split(separator)))
        found = [
            name
            for name in names
            if separator in name and any(parts[part.strip()] > 1 for part in name.split(separator))
        ]
        if found and not lists:
            lists, flags = found, f"{flags} --label-separator '{separator}'"
    if not lists:
        return ()
    return (
        f"{file}: the {column} {short_repr(lists[0])} looks like several labels and is read as one class; "
        f"if it is a list, pass {flags}",
    )
