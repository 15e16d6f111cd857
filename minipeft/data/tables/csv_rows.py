"""csv and tsv: a header line, then a row per line."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from minipeft.data.tables.lines import LONGEST_LINE
from minipeft.data.tables.table import Table
from minipeft.errors import MinipeftError, short_repr

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def csv_table(place: str, lines: Iterable[str]) -> Table:
    """Fields in quotes where needed, separated by commas, semicolons or tabs: whichever the header has."""
    lines = iter(lines)
    first = next(lines, "")
    separator = _separator(place, first)
    return _table(place, _csv_rows(place, chain([first], lines), separator))


def tsv_table(place: str, lines: Iterable[str]) -> Table:
    """Fields separated by tabs; quotes have no meaning."""
    rows = ((number, strip_line_end(line).split("\t")) for number, line in enumerate(lines, 1))
    number, header = next(rows, (0, [""]))
    for separator, name in SEPARATORS.items():
        if len(header) == 1 and separator in header[0]:
            raise MinipeftError(
                f"{place}: the header {short_repr(header[0])} is separated by {name}; a tsv file needs tabs: "
                "save it with them, or as csv"
            )
    return _table(place, chain([(number, header)], rows))


def strip_line_end(line: str) -> str:
    """Return a line without its line end."""
    return line.removesuffix("\n").removesuffix("\r")


def _separator(place: str, header: str) -> str:
    """Return the separator of a header line; one inside quotes does not count."""
    outside = re.sub(r'"[^"]*("|$)', "", header)
    found = [separator for separator in SEPARATORS if separator in outside]
    if len(found) > 1:
        names = " or ".join(SEPARATORS[separator] for separator in found)
        raise MinipeftError(
            f"{place}: the header {short_repr(strip_line_end(header))} may be separated by {names}; "
            "put the column names in double quotes"
        )
    return found[0] if found else ","


def _table(place: str, rows: Iterator[tuple[int, list[str]]]) -> Table:
    _, header = next(rows, (0, [""]))

    def read(names: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
        places = [header.index(name) for name in names]
        for number, fields in rows:
            if len(fields) > len(header):
                raise MinipeftError(
                    f"{place}, line {number}: {len(fields)} fields, but the header has {len(header)}; fix the line"
                )
            if fields not in ([], [""]):  # an empty line
                yield f"{place}, line {number}", [fields[i] or None if i < len(fields) else None for i in places]

    return Table(place, tuple(header), read, has_header=True)


def _csv_rows(place: str, lines: Iterable[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    reader = csv.reader(lines, strict=True, delimiter=separator)
    try:
        start = 1  # the first line of a row, whose quoted fields may have several
        for fields in reader:
            yield start, fields
            start = reader.line_num + 1
    except csv.Error as error:
        raise MinipeftError(
            f"{place}: not readable as csv (line {reader.line_num}: {error}); fix or remove the line"
        ) from None
