"""A table: the rows of a file or data set as a stream."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from minipeft.errors import MinipeftError, format_names, nearest

SAMPLE_ROWS = 100  # that are compared with the header
WORDS = 4  # of a column name that is rather a text


@dataclass(frozen=True)
class Table:
    """The rows of a file, read as a stream.

    Attributes:
        place: The file in messages.
        columns: Names of the columns.
        read: Names of columns → (the row's place, its values), once. The place is the line of a text file, or the row
            of a parquet file, counted from 1. A missing value is None.
        classes: The class names of a column in their order, where the data set declares them.
        has_header: Whether the columns are the first line of a csv or tsv file.
    """

    place: str
    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[tuple[str, Sequence[Any]]]]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    has_header: bool = False

    def __post_init__(self) -> None:
        for name in self.columns:
            if self.columns.count(name) > 1:
                raise MinipeftError(f"{self.place}: two columns are called {name!r}; rename one")

    def missing(self, column: str, remedy: str) -> MinipeftError:
        """Return the error for a column that is not there; it says so if the file seems to have no header line."""
        meant = nearest(column, self.columns)
        if self.has_header and not meant and self._header_is_a_row():
            add = "add a first line with the columns' names, such as text and label"
            remedy = f"the file seems to have no header: {add}; otherwise {remedy}"
        elif self.has_header and len(self.columns) == 1 and "|" in self.columns[0]:
            remedy = "the separator is '|': save the file with commas"
        return MinipeftError(
            f"{self.place}: no column {column!r} (there are {format_names(self.columns)}){meant}; {remedy}"
        )

    def _header_is_a_row(self) -> bool:
        """Whether the header looks like a row: a number, a sentence, or a value that its column has in other rows."""
        if any(re.fullmatch(r"[+-]?[\d.]+", name) or len(name.split()) >= WORDS for name in self.columns):
            return True
        with suppress(MinipeftError):  # an invalid row
            for _, values in islice(self.read(self.columns), SAMPLE_ROWS):
                if any(value == name for value, name in zip(values, self.columns, strict=True)):
                    return True
        return False


def numbered(
    place: str,
    columns: tuple[str, ...],
    values: Callable[[Sequence[str]], Iterator[Sequence[Any]]],
    classes: Mapping[str, tuple[str, ...]] | None = None,
    in_memory: bool = False,
) -> Table:
    """Return a table whose rows are counted from 1; `values` yields those of the named columns, row by row.

    Rows in memory have an index, from 0, as Python counts.
    """
    unit, first = ("index", 0) if in_memory else ("row", 1)

    def read(names: Sequence[str]) -> Iterator[tuple[str, Sequence[Any]]]:
        return ((f"{place}, {unit} {row}", row_values) for row, row_values in enumerate(values(names), first))

    return Table(place, columns, read, classes or {})


def concatenate(place: str, tables: Sequence[Table]) -> Table:
    """Return the shards of a split as one table."""
    for table in tables[1:]:
        if table.columns != tables[0].columns:
            raise MinipeftError(
                f"{table.place}: the columns are {format_names(table.columns)}, but {tables[0].place} has "
                f"{format_names(tables[0].columns)}; keep only the files of one data set"
            )
    return Table(place, tables[0].columns, lambda names: (row for table in tables for row in table.read(names)))
