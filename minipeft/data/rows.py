"""The rows of a file as a stream: jsonl, csv, tsv, parquet or plain text, a few rows in memory at once."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from minipeft.errors import MinipeftError, first_line, format_names, short_repr
from minipeft.files import parse_json

STANDARD_INPUT = "-"
FORMATS = ("txt", "csv", "tsv", "jsonl")  # of --format; a parquet file is known by its ending
LONGEST_LINE = 1 << 24  # bytes; a longer line is not text, and is not read into memory
LARGEST_COLUMN = 1 << 30  # bytes of a column in one row group of a parquet file, uncompressed


@dataclass(frozen=True)
class Table:
    """The rows of a file, read as a stream.

    Attributes:
        place: The file in messages.
        columns: Names of the columns.
        read: Names of columns → (the row's place, its values), once. The place is the line of a text file, or the row
            of a parquet file, counted from 0. A missing value is None.
    """

    place: str
    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[tuple[str, Sequence[Any]]]]

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


def open_table(path: str | Path, file_format: str | None = None) -> Table:
    """Open a file, the shards of a split ("train-*-of-00002.parquet"), or standard input ("-").

    The format is that of the file's ending. Standard input is jsonl if its first line begins with {, and else plain
    text, unless the first line may be the header of a csv or tsv file.

    Args:
        path: The file.
        file_format: One of FORMATS, whatever the ending is.

    Raises:
        MinipeftError: here or while the rows are read: for an unknown ending, an empty file, a line that is not
            JSON, not UTF-8 or longer than 16 MiB, and a damaged parquet file. The message names the file and line.
    """
    if file_format is not None and file_format not in FORMATS:
        raise MinipeftError(f"unknown --format {file_format!r}; choose one of {', '.join(FORMATS)}")
    if str(path) == STANDARD_INPUT:
        return _standard_input(file_format)
    path = Path(path)
    if "*" in path.name and not path.exists():
        return _concatenate(str(path), [open_table(shard) for shard in sorted(path.parent.glob(path.name))])
    ending = path.suffix.lower() if file_format is None else f".{file_format}"
    if not path.is_file():
        raise MinipeftError(f"{path} is not a file; check the path")
    if ending not in READERS:
        raise MinipeftError(f"{path}: unknown ending {ending or 'none'!r}; use {', '.join(READERS)}, or pass --format")
    if path.stat().st_size == 0:
        raise MinipeftError(f"{path}: the file is empty; it needs at least one row")
    return READERS[ending](str(path), iterate_lines(str(path)))


def _standard_input(file_format: str | None) -> Table:
    if sys.stdin is None:
        raise MinipeftError("standard input is closed; give a file")
    lines = _lines("standard input", lambda: sys.stdin.buffer)
    if (first := next(lines, None)) is None:
        raise MinipeftError("standard input is empty; it needs at least one row")
    if file_format is None:
        file_format = "jsonl" if first.lstrip().startswith("{") else "txt"
        if file_format == "txt" and _may_be_header(_strip_line_end(first)):
            raise MinipeftError(
                f"standard input: the first line, {_strip_line_end(first)[:80]!r}, may be the header of a csv or tsv "
                "file; pass --format csv or tsv, or --format txt for one text per line"
            )
    return READERS[f".{file_format}"]("standard input", chain([first], lines))


def _may_be_header(line: str) -> bool:
    """Whether a line may name columns: short names between separators, or one usual name."""
    names = [name.strip('"') for name in re.split("[\t,;]", line)]
    if len(names) == 1:
        return names[0].lower() in ("text", "sentence", "sentence1", "premise", "question")
    return "\t" in line or all(re.fullmatch(r"\w+([ .-]\w+){0,2}", name) for name in names)


def _concatenate(place: str, tables: Sequence[Table]) -> Table:
    """The shards of a split as one table."""
    for table in tables[1:]:
        if table.columns != tables[0].columns:
            raise MinipeftError(
                f"{table.place}: the columns are {format_names(table.columns)}, but {tables[0].place} has "
                f"{format_names(tables[0].columns)}; keep only the files of one data set"
            )
    return Table(place, tables[0].columns, lambda names: (row for table in tables for row in table.read(names)))


def _lines(place: str, start: Callable[[], BinaryIO]) -> Iterator[str]:
    """Yield lines with their line ends, decoded one by one."""
    try:
        with start() as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise MinipeftError(
                        f"{place}, line {number}: longer than {LONGEST_LINE >> 20} MiB; is it text? Shorten the line"
                    )
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise MinipeftError(
                        f"{place}, line {number}: not UTF-8 (byte {error.start}); save the file as UTF-8"
                    ) from None
    except OSError as error:
        raise MinipeftError(f"{place}: cannot be read ({error.strerror or error}); check the file") from None


def iterate_lines(path: str) -> Iterator[str]:
    """Yield a file's lines with their line ends, one in memory at once; an error names the line that is not text."""
    return _lines(path, lambda: open(path, "rb"))


def _text_table(place: str, lines: Iterable[str]) -> Table:
    """Every line is a text, including an empty one: line i of the output belongs to line i."""
    rows = ((f"{place}, line {number}", [_strip_line_end(line)]) for number, line in enumerate(lines, 1))
    return Table(place, ("text",), lambda names: rows)


def _json_table(place: str, lines: Iterable[str]) -> Table:
    def objects() -> Iterator[tuple[str, dict[str, Any]]]:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = parse_json(line)
                except ValueError as error:
                    raise MinipeftError(
                        f"{place}: not readable as JSON (line {number}: {first_line(error)}); fix or remove the line"
                    ) from None
                if not isinstance(row, dict):
                    raise MinipeftError(f"{place}, line {number}: not a JSON object; fix or remove the line")
                yield f"{place}, line {number}", row

    rows = objects()
    first = next(rows, None)
    if first is None:
        raise MinipeftError(f"{place}: the file is empty; it needs at least one row")

    def read(names: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
        for row_place, row in chain([first], rows):
            yield row_place, [row.get(name) for name in names]

    return Table(place, tuple(first[1]), read)


def _delimited_table(place: str, lines: Iterable[str], quoted: bool) -> Table:
    """A header line, then fields: comma-separated with quotes (csv), or tab-separated without (tsv)."""
    rows = (
        _csv_rows(place, lines)
        if quoted
        else ((n, _strip_line_end(line).split("\t")) for n, line in enumerate(lines, 1))
    )
    _, header = next(rows, (0, [""]))
    for separator, name in ((";", "semicolons"), ("\t" if quoted else ",", "tabs" if quoted else "commas")):
        if len(header) == 1 and separator in header[0]:
            raise MinipeftError(
                f"{place}: the header {short_repr(header[0])} is separated by {name}; a {'csv' if quoted else 'tsv'} "
                f"file needs {'commas' if quoted else 'tabs'}: save it with them, or pass a file of another format"
            )

    def read(names: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
        places = [header.index(name) for name in names]
        for number, fields in rows:
            if len(fields) > len(header):
                raise MinipeftError(
                    f"{place}, line {number}: {len(fields)} fields, but the header has {len(header)}; fix the line"
                )
            if fields not in ([], [""]):  # an empty line
                yield f"{place}, line {number}", [fields[i] or None if i < len(fields) else None for i in places]

    return Table(place, tuple(header), read)


def _csv_rows(place: str, lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    reader = csv.reader(lines, strict=True)
    try:
        start = 1  # the first line of a row, whose quoted fields may have several
        for fields in reader:
            yield start, fields
            start = reader.line_num + 1
    except csv.Error as error:
        raise MinipeftError(
            f"{place}: not readable as csv (line {reader.line_num}: {error}); fix or remove the line"
        ) from None


def _parquet_table(path: str) -> Table:
    from pyarrow import parquet

    try:
        columns = tuple(parquet.read_schema(path).names)
    except Exception as error:  # the library raises exceptions of many kinds
        raise MinipeftError(f"{path}: not readable as parquet ({first_line(error)}); write the file again") from None

    def read(names: Sequence[str]) -> Iterator[tuple[str, Sequence[Any]]]:
        row = 0
        try:
            # A text that the file stores once may occur in a million rows: a dictionary keeps it once in memory, too.
            file = parquet.ParquetFile(path, buffer_size=1 << 20, read_dictionary=list(names))
            for group in range(file.metadata.num_row_groups):
                for chunk in map(file.metadata.row_group(group).column, range(file.metadata.num_columns)):
                    if chunk.path_in_schema in names and chunk.total_uncompressed_size > LARGEST_COLUMN:
                        raise MinipeftError(
                            f"{path}: column {chunk.path_in_schema!r} has {chunk.total_uncompressed_size:,} bytes in "
                            f"row group {group}; write the file again with smaller row groups"
                        )
            for batch in file.iter_batches(1024, columns=list(names), use_threads=False):
                for values in zip(*(_values(batch[name]) for name in names), strict=True):
                    yield f"{path}, row {row}", values
                    row += 1
        except MinipeftError:
            raise
        except Exception as error:
            raise MinipeftError(
                f"{path}, from row {row} on: not readable as parquet ({first_line(error)}); write the file again"
            ) from None

    return Table(path, columns, read)


def _values(column: Any) -> list[Any]:
    """Convert a pyarrow array to a list, in which equal values of a dictionary are one object."""
    if not hasattr(column, "dictionary"):
        return column.to_pylist()
    import pyarrow

    indices = column.indices.to_pylist()
    used = sorted(set(indices) - {None})
    values = column.dictionary.take(pyarrow.array(used, pyarrow.int64())).to_pylist()
    by_index = dict(zip(used, values, strict=True))
    return [by_index.get(index) for index in indices]


def _strip_line_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


# Ending → (place, lines) → table; parquet is not read by lines.
READERS: dict[str, Callable[[str, Iterable[str]], Table]] = {
    ".jsonl": _json_table,
    ".csv": lambda place, lines: _delimited_table(place, lines, quoted=True),
    ".tsv": lambda place, lines: _delimited_table(place, lines, quoted=False),
    ".parquet": lambda place, lines: _parquet_table(place),
    ".txt": _text_table,
}
