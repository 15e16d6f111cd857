"""A table: the rows of a file or data set as a stream."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minipeft.errors import MinipeftError, format_names


@dataclass(frozen=True)
class Table:
    """The rows of a file, read as a stream.

    Attributes:
        place: The file in messages.
        columns: Names of the columns.
        read: Names of columns → (the row's place, its values), once. The place is the line of a text file, or the row
            of a parquet file, counted from 0. A missing value is None.
        classes: The class names of a column in their order, where the data set declares them.
    """

    place: str
    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[tuple[str, Sequence[Any]]]]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.columns:
            if self.columns.count(name) > 1:
                raise MinipeftError(f"{self.place}: two columns are called {name!r}; rename one")

    def missing(self, column: str, remedy: str) -> MinipeftError:
        """Return the error for a column that is not there; it says so if the file seems to have no header."""
        no_header = any(len(name) > 60 or re.fullmatch(r"[\d.]*", name) for name in self.columns)
        hint = "; is the header line missing?" if no_header else ""
        return MinipeftError(
            f"{self.place}: no column {column!r} (there are {format_names(self.columns)}){hint}; {remedy}"
        )


def numbered(
    place: str,
    columns: tuple[str, ...],
    values: Callable[[Sequence[str]], Iterator[Sequence[Any]]],
    classes: Mapping[str, tuple[str, ...]] | None = None,
) -> Table:
    """Return a table whose rows are counted from 0; `values` yields those of the named columns, row by row."""

    def read(names: Sequence[str]) -> Iterator[tuple[str, Sequence[Any]]]:
        return ((f"{place}, row {row}", row_values) for row, row_values in enumerate(values(names)))

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
