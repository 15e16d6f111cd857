"""Columns of labels: the names in them, and whether they are classes or numbers."""

import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from minipeft.data.tables.table import Table
from minipeft.errors import MinipeftError, is_unicode, nearest, short_repr

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
NUMBER_WITH_COMMA = re.compile(r"[+-]?\d[\d.'\s]*,[\d.,'\s]*\d")  # 3,5 or 1.234,5 or 1,234.5
SEPARATORS = (";", "|")  # that a warning looks for
MOST_CLASSES, LONGEST_NAME = 100_000, 1000
FEWEST_ROWS_PER_CLASS = 2  # on average; with fewer the column is hardly one of classes


def class_name(value: Any, place: str) -> str:
    """Return the class name of a label: text is unchanged, 3 and 3.0 are "3", true and false as in JSON."""
    if isinstance(value, str) and is_unicode(value) and len(value) <= LONGEST_NAME:
        return value
    if value is None:
        raise MinipeftError(f"{place}: the label is missing. Add it or remove the row.")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, (list, tuple)):
        raise MinipeftError(
            f"{place}: label {short_repr(value)} is a list. Pass --label-type multilabel, or tokens for a tag per word."
        )
    raise MinipeftError(
        f"{place}: label {short_repr(value)} is neither a name of up to {LONGEST_NAME:,} characters nor a number; "
        "fix or remove the row"
    )


def number_of(name: str) -> Decimal | None:
    """Return the number that a name stands for, if any: the same one for "1", "1.0" and "+1"."""
    try:
        return Decimal(name) if NUMBER.fullmatch(name) else None
    except InvalidOperation:  # an exponent of twenty digits
        return None


def merge_numbers(names: Iterable[str]) -> dict[str, str]:
    """Return the name of each label; of names that are the same number the shortest one is that of all."""
    merged = {}
    by_number: dict[Decimal, str] = {}
    for name in sorted(names, key=lambda name: (len(name), name)):
        number = number_of(name)
        merged[name] = name if number is None else by_number.setdefault(number, name)
    return merged


def warn_of_similar(place: str, column: str, counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return a warning where names differ in white space or case only."""
    groups: dict[str, list[str]] = {}
    for name in counts:
        groups.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    similar = [names for names in groups.values() if len(names) > 1]
    return tuple(
        f"{place}: the {column} {' and '.join(f'{short_repr(name)} ({counts[name]:,} rows)' for name in names)} differ "
        "in white space or case only and are read as different; write them alike if they are one"
        for names in similar[:3]
    )


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


def nearest_label(label: Any, labels: Iterable[str]) -> str:
    """Return a question that names the label most similar to an unknown name, or ""; a number is similar to none."""
    return "" if NUMBER.fullmatch(str(label)) else nearest(label, labels)


def sorted_names(names: Iterable[str]) -> list[str]:
    """Return names in the order of their indices: whole numbers are sorted as numbers, others as text."""
    names = list(names)
    numbers = all(NUMBER.fullmatch(name) for name in names)
    return sorted(names, key=lambda name: (float(name), name)) if numbers else sorted(names)


def find_labels(
    table: Table, column: str, label_type: str
) -> tuple[dict[str, int], int, np.ndarray[Any, Any] | None, tuple[str, ...]]:
    """Find the classes of a label column.

    With "auto" the labels are numbers (regression) if all are numbers and at least one has a fraction. Classes that
    are whole numbers are sorted as numbers, others as text. A data set that declares its classes keeps their order,
    and its rows without a label are left out.

    Args:
        table: The training file.
        column: The label column.
        label_type: "auto", "classes" or "numbers".

    Returns:
        The number of rows of each class, in the order of the class indices (empty for regression), the number of all
        rows, the class index of each (None for regression), and warnings.

    Raises:
        MinipeftError: for a label that is missing or invalid, with its place; for a single class; for more than
            MOST_CLASSES, and with "auto" for nearly one class per row.
    """
    numbers: dict[str, int] = {}  # of the names, in the order of their first rows
    row_numbers = array("i")
    fraction, text = "", ""  # the places of the first number with a fraction, and of the first label that is text
    comma, other_text = "", False  # the place of the first number with a comma, and whether a label is other text
    rows = 0
    for place, (value,) in table.read_labelled([column]):
        rows += 1
        name = class_name(value, place)
        if len(numbers) <= MOST_CLASSES or name in numbers:
            row_numbers.append(numbers.setdefault(name, len(numbers)))
        if NUMBER.fullmatch(name) is None or isinstance(value, bool):
            text = text or f"{short_repr(value)} ({place})"
            if NUMBER_WITH_COMMA.fullmatch(name):
                comma = comma or f"{place}: label {short_repr(value)}"
            else:
                other_text = True
        elif not float(name).is_integer():
            fraction = fraction or f"{short_repr(value)} ({place})"
    if rows == 0:
        raise MinipeftError(f"{table.place}: the file is empty; it needs at least one row")
    if comma and not other_text and label_type != "classes":
        raise MinipeftError(
            f"{comma} is a number with a comma, or a list. Write a decimal point, such as 3.5, or pass --label-type "
            "classes, or --label-type multilabel --label-separator ','."
        )
    merged = {name: name for name in numbers} if column in table.classes else merge_numbers(numbers)
    count = len(set(merged.values()))
    if count == 1:
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
        return {}, rows, None, ()
    if count > MOST_CLASSES:
        raise MinipeftError(
            f"{table.place}: {column} has more than {MOST_CLASSES:,} classes; "
            "name another --label-column, or pass --label-type numbers"
        )
    if label_type == "auto" and rows >= 10 and count * FEWEST_ROWS_PER_CLASS > rows:
        remedy = "name another --label-column" + ("" if text else ", or pass --label-type numbers")
        raise MinipeftError(
            f"{table.place}: {column} has {count:,} classes in {rows:,} rows; {remedy} "
            "(--label-type classes trains on it as it is)"
        )
    names = list(table.classes.get(column) or sorted_names(set(merged.values())))
    places = {name: place for place, name in enumerate(names)}
    classes = np.array([places[merged[name]] for name in numbers])[np.asarray(row_numbers)]
    counts = dict(zip(names, np.bincount(classes, minlength=len(names)).tolist(), strict=True))
    return counts, rows, classes, warn_of_similar(table.place, column, counts)


def check_classes(counts: Mapping[int, int], labels: Sequence[str], most: int | None = None) -> None:
    """Raise where no training example has a label, or where all `most` of them have it."""
    for number, name in enumerate(labels):
        if counts.get(number, 0) in (0, most):
            have = "no training example has" if counts.get(number, 0) == 0 else "all training examples have"
            raise MinipeftError(f"--class-weights balanced: {have} the label {short_repr(name)}. Give weights by name.")
