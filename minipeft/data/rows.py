"""A file's rows as a stream: jsonl, csv, tsv, parquet or plain text, a few rows in memory at a time."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from minipeft.errors import MinipeftError, first_line
from minipeft.files import parse_json

STANDARD_INPUT = "-"
LONGEST_LINE = 1 << 24  # bytes; what is longer is no line of text, and is not read into memory
LARGEST_COLUMN = 1 << 30  # bytes of a column in one row group of a parquet file, uncompressed


@dataclass(frozen=True)
class Table:
    """The rows of a file, not read yet.

    place      what the file is called in messages
    columns    their names
    read       names of columns → the values of each row, once; None where a row has none
    """

    place: str
    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[Sequence[Any]]]

    def __post_init__(self) -> None:
        for name in self.columns:
            if self.columns.count(name) > 1:
                raise MinipeftError(f"{self.place}: two columns are called {name!r}; rename one")


def open_table(path: str | Path) -> Table:
    """Open a file by its ending, or standard input ("-": jsonl where the first line begins with {, else plain text).

    Raises MinipeftError, here or while it is read, that names the file and the line: for another ending, an empty
    file, a line that is no JSON object, not UTF-8 or longer than 16 MiB, and a damaged parquet file.
    """
    if str(path) == STANDARD_INPUT:
        if sys.stdin is None:
            raise MinipeftError("standard input is closed; give a file")
        lines = _lines("standard input", lambda: sys.stdin.buffer)
        if (first := next(lines, None)) is None:
            raise MinipeftError("standard input is empty; it needs at least one row")
        reader = _json_table if first.lstrip().startswith("{") else _text_table
        return reader("standard input", chain([first], lines))
    path = Path(path)
    if path.suffix.lower() not in READERS:
        raise MinipeftError(f"{path}: {path.suffix or 'no ending'!r} is not known; one of {', '.join(READERS)} is")
    if not path.is_file():
        raise MinipeftError(f"{path} is no file; name one that is there")
    if path.stat().st_size == 0:
        raise MinipeftError(f"{path}: the file is empty; it needs at least one row")
    return READERS[path.suffix.lower()](str(path))


def files_of(path: str) -> list[str]:
    """The file itself, or those of a folder in the order of their names; one of an unknown format is refused."""
    folder = Path(path)
    if path == STANDARD_INPUT or not folder.is_dir():
        return [path]
    found = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in found:
        if entry.suffix.lower() not in READERS or not entry.is_file():
            raise MinipeftError(f"{entry} is none of {', '.join(READERS)}; move it out of the folder")
    if not found:
        raise MinipeftError(f"{folder}: no file in it; one of {', '.join(READERS)} is needed")
    return [str(entry) for entry in found]


def _lines(place: str, start: Callable[[], BinaryIO]) -> Iterator[str]:
    """Lines with their ends, decoded one by one."""
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


def lines_of(path: str) -> Iterator[str]:
    """A file's lines with their ends, one in memory at a time; MinipeftError names the line that is no text."""
    return _lines(path, lambda: open(path, "rb"))


def _text_table(place: str, lines: Iterable[str]) -> Table:
    """Every line is a text, an empty one too: line i of what is written belongs to line i."""
    return Table(place, ("text",), lambda names: ([_stripped(line)] for line in lines))


def _json_table(place: str, lines: Iterable[str]) -> Table:
    def objects() -> Iterator[dict[str, Any]]:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = parse_json(line)
                except ValueError as error:
                    raise MinipeftError(
                        f"{place}: not readable as JSON (line {number}: {first_line(error)}); mend or remove the line"
                    ) from None
                if not isinstance(row, dict):
                    raise MinipeftError(f"{place}, line {number}: no JSON object; mend or remove the line")
                yield row

    rows = objects()
    first = next(rows, None)
    if first is None:
        raise MinipeftError(f"{place}: the file is empty; it needs at least one row")
    return Table(place, tuple(first), lambda names: ([row.get(name) for name in names] for row in chain([first], rows)))


def _delimited_table(place: str, lines: Iterable[str], quoted: bool) -> Table:
    """A header line, then fields: comma-separated and quoted (csv), or tab-separated as they stand (tsv)."""
    rows = _csv_rows(place, lines) if quoted else ((n, _stripped(line).split("\t")) for n, line in enumerate(lines, 1))
    _, header = next(rows, (0, [""]))

    def read(names: Sequence[str]) -> Iterator[list[Any]]:
        places = [header.index(name) for name in names]
        for number, fields in rows:
            if len(fields) > len(header):
                raise MinipeftError(
                    f"{place}, line {number}: {len(fields)} fields, but the header has {len(header)}; mend the line"
                )
            if fields not in ([], [""]):  # an empty line
                yield [fields[i] or None if i < len(fields) else None for i in places]

    return Table(place, tuple(header), read)


def _csv_rows(place: str, lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    reader = csv.reader(lines, strict=True)
    try:
        for fields in reader:
            yield reader.line_num, fields
    except csv.Error as error:
        raise MinipeftError(
            f"{place}: not readable as csv (line {reader.line_num}: {error}); mend or remove the line"
        ) from None


def _parquet_table(path: str) -> Table:
    from pyarrow import parquet

    try:
        columns = tuple(parquet.read_schema(path).names)
    except Exception as error:  # the library raises exceptions of many kinds
        raise MinipeftError(f"{path}: not readable as parquet ({first_line(error)}); write the file anew") from None

    def read(names: Sequence[str]) -> Iterator[Sequence[Any]]:
        row = 0
        try:
            # A text that a file holds once may stand in a million rows: as a dictionary it stays one text.
            file = parquet.ParquetFile(path, buffer_size=1 << 20, read_dictionary=list(names))
            for group in range(file.metadata.num_row_groups):
                for chunk in map(file.metadata.row_group(group).column, range(file.metadata.num_columns)):
                    if chunk.path_in_schema in names and chunk.total_uncompressed_size > LARGEST_COLUMN:
                        raise MinipeftError(
                            f"{path}: column {chunk.path_in_schema!r} has {chunk.total_uncompressed_size:,} bytes in "
                            f"row group {group}; write the file anew with smaller row groups"
                        )
            for batch in file.iter_batches(1024, columns=list(names), use_threads=False):
                yield from zip(*(_values(batch[name]) for name in names), strict=True)
                row += len(batch)
        except MinipeftError:
            raise
        except Exception as error:
            raise MinipeftError(
                f"{path}, from row {row} on: not readable as parquet ({first_line(error)}); write the file anew"
            ) from None

    return Table(path, columns, read)


def _values(column: Any) -> list[Any]:
    """A pyarrow array as a list, in which equal rows of a dictionary are one object."""
    if not hasattr(column, "dictionary"):
        return column.to_pylist()
    import pyarrow

    indices = column.indices.to_pylist()
    used = sorted(set(indices) - {None})
    values = column.dictionary.take(pyarrow.array(used, pyarrow.int64())).to_pylist()
    by_index = dict(zip(used, values, strict=True))
    return [by_index.get(index) for index in indices]


def _stripped(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


READERS: dict[str, Callable[[str], Table]] = {
    ".jsonl": lambda path: _json_table(path, lines_of(path)),
    ".csv": lambda path: _delimited_table(path, lines_of(path), quoted=True),
    ".tsv": lambda path: _delimited_table(path, lines_of(path), quoted=False),
    ".parquet": _parquet_table,
    ".txt": lambda path: _text_table(path, lines_of(path)),
}
