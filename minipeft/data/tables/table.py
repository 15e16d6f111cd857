"""A table: the rows of a file or data set as a stream."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, islice
from typing import Any

from minipeft.errors import MinipeftError, format_names, is_rank_zero, logger, nearest, printable, short_repr

SAMPLE_ROWS, SAMPLE_CHARACTERS = 100, 1 << 20  # limits of the rows that are looked at before all are read
HEADER_WORDS = 4  # a column name of so many words is rather a text


@dataclass(frozen=True)
class Table:
    """The rows of a file, read as a stream.

    Attributes:
        place: The file in messages.
        columns: Names of the columns.
        read: Names of columns → (the row's place, its values) of each row. The place is the line of a text file, or the
            row of a parquet file, counted from 1. A missing value is None. The lines of a file can be read once.
        classes: The class names of a column in their order, where the data set declares them.
        has_header: Whether the columns are the first line of a csv or tsv file.
        first_rows: The first rows, by column, of a table that can be read once; `read` yields them too.
    """

    place: str
    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[tuple[str, Sequence[Any]]]]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    has_header: bool = False
    first_rows: Sequence[Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        for name, count in Counter(self.columns).most_common(1):
            if count > 1:
                raise MinipeftError(f"{self.place}: two columns are called {name!r}; rename one")

    def head(self, names: Sequence[str]) -> list[list[Any]]:
        """Return the values of the first rows, up to SAMPLE_ROWS."""
        if self.first_rows is not None:
            return [[row.get(name) for name in names] for row in self.first_rows]
        return [list(values) for _, values in islice(self.read(names), SAMPLE_ROWS)]

    def read_labelled(self, names: Sequence[str]) -> Iterator[tuple[str, Sequence[Any]]]:
        """Read columns, of which the last one has the labels; where classes are declared, rows may have none."""
        left_out = 0
        for place, values in self.read(names):
            if values[-1] is None and names[-1] in self.classes:
                left_out += 1
            else:
                yield place, values
        if left_out:
            _warn_once(f"{self.place}: {left_out:,} rows without a {names[-1]} are left out")

    def require(self, columns: Sequence[str], remedy: str) -> None:
        """Raise the error of `missing` for the first of these columns that is not there."""
        for column in columns:
            if column not in self.columns:
                raise self.missing(column, remedy)

    def missing(self, column: str, remedy: str) -> MinipeftError:
        """Return the error for a column that is not there; it says so if the file seems to have no header line."""
        meant = nearest(column, self.columns)
        if self.has_header and not meant and self._header_is_a_row():
            add = "add a first line with the columns' names, such as text and label"
            remedy = f"the file seems to have no header: {add}; otherwise {remedy}"
        elif self.has_header and len(self.columns) == 1 and "|" in self.columns[0]:
            remedy = "the separator is '|': save the file with commas"
        sampled = not self.has_header and len(self.first_rows or ()) == SAMPLE_ROWS
        where = f" in the first {SAMPLE_ROWS} rows" if sampled else ""
        return MinipeftError(
            f"{self.place}: no column {column!r}{where} (there are {format_names(self.columns)}){meant}; {remedy}"
        )

    def _header_is_a_row(self) -> bool:
        """Whether the header looks like a row: a number, a sentence, or a value that its column has in other rows."""
        if any(re.fullmatch(r"[+-]?[\d.]+", name) or len(name.split()) >= HEADER_WORDS for name in self.columns):
            return True
        rows = self.head(self.columns)
        return any(value == name for row in rows for value, name in zip(row, self.columns, strict=True))


@lru_cache
def _warn_once(message: str) -> None:
    """Log a warning of a file that is read several times."""
    if is_rank_zero():
        logger.warning("%s", printable(message))


def stream(
    place: str, columns: tuple[str, ...] | None, rows: Iterator[tuple[str, Mapping[str, Any]]], has_header: bool = False
) -> Table:
    """Return the table of (place, values by column) of each row, once; without `columns`, those of the first rows."""
    first: list[tuple[str, Mapping[str, Any]]] = []
    characters = 0
    while len(first) < SAMPLE_ROWS and characters < SAMPLE_CHARACTERS and (row := next(rows, None)) is not None:
        first.append(row)
        characters += len(str(row[1]))

    def read(names: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
        return ((row_place, [row.get(name) for name in names]) for row_place, row in chain(first, rows))

    if columns is None:
        columns = tuple(dict.fromkeys(name for _, row in first for name in row))
    return Table(place, columns, read, has_header=has_header, first_rows=[row for _, row in first])


def name_class(value: Any, names: Sequence[str], place: str) -> Any:
    """Return the class name of an index, or of a list of them; None for the -1 of a row without a label."""
    if isinstance(value, list):
        return [name_class(index, names, place) for index in value]
    if value in range(len(names)):
        return names[int(value)]
    if value is None or (isinstance(value, int) and value < 0):
        return None
    raise MinipeftError(
        f"{place}: label {short_repr(value)} is not the number of one of the {len(names)} declared classes. Correct it."
    )


def concatenate(place: str, tables: Sequence[Table]) -> Table:
    """Return the shards of a split as one table."""
    for table in tables[1:]:
        if table.columns != tables[0].columns:
            raise MinipeftError(
                f"{table.place}: the columns are {format_names(table.columns)}, but {tables[0].place} has "
                f"{format_names(tables[0].columns)}; keep only the files of one data set"
            )
    return replace(tables[0], place=place, read=lambda names: (row for table in tables for row in table.read(names)))
