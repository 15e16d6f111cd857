"""csv and tsv: a header line, then a row per line."""

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain, dropwhile

from minipeft.data.tables.lines import LONGEST_LINE
from minipeft.data.tables.table import Table, stream
from minipeft.errors import MinipeftError, short_repr

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def csv_table(place: str, lines: Iterable[str]) -> Table:
    """Return the table of a csv file, whose separator is the one of SEPARATORS that its header has."""
    numbered = dropwhile(lambda line: not line[1].strip(",;\t \r\n"), enumerate(lines, 1))
    start, header = next(numbered, (1, ""))
    lines = chain([header], (line for _, line in numbered))
    return _table(place, _csv_rows(place, lines, _separator(place, header), start))


def tsv_table(place: str, lines: Iterable[str]) -> Table:
    """Return the table of a file whose fields are separated by tabs; quotes have no meaning."""
    texts = ((number, strip_line_end(line)) for number, line in enumerate(lines, 1))
    rows = ((number, text.split("\t") if text else [], False) for number, text in texts)
    return _table(place, rows, needs_tabs=True)


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


def _table(place: str, rows: Iterator[tuple[int, list[str], bool]], needs_tabs: bool = False) -> Table:
    """Return the table of (line, fields, whether any is in quotes) of each row, the first of which is the header.

    Rows and nameless columns that a spreadsheet appends to fill a rectangle are left out.
    """
    header = next((fields for _, fields, _ in rows if any(map(str.strip, fields))), [])
    if needs_tabs and len(header) == 1:
        for name in (name for separator, name in SEPARATORS.items() if separator in header[0]):
            raise MinipeftError(
                f"{place}: the header {short_repr(header[0])} is separated by {name}; a tsv file needs tabs: "
                "save it with them, or as csv"
            )

    def by_column() -> Iterator[tuple[str, dict[str, str | None]]]:
        for number, fields, quoted in rows:
            if any(map(str.strip, fields[len(header) :])):
                raise MinipeftError(
                    f"{place}, line {number}: {len(fields)} fields, but the header has {len(header)}; fix the line"
                )
            # In a file of one column, white space is a text, and so is "".
            if any(map(str.strip, fields)) or quoted or len(header) == len(fields) == 1:
                by_name = zip(header, fields, strict=False)
                yield f"{place}, line {number}", {name: value or None for name, value in by_name}

    return stream(place, tuple(name for name in header if name.strip()), by_column(), has_header=True)


def _csv_rows(place: str, lines: Iterable[str], separator: str, start: int) -> Iterator[tuple[int, list[str], bool]]:
    """Yield the line where each row starts, its fields, and whether any of them is in quotes; `start` is the first."""
    row_lines: list[str] = []  # a quoted field may have several lines

    def record() -> Iterator[str]:
        for line in lines:
            row_lines.append(line)
            yield line

    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    try:
        for fields in csv.reader(record(), strict=True, delimiter=separator):
            yield start, fields, any('"' in line for line in row_lines)
            start += len(row_lines)
            row_lines.clear()
    except csv.Error as error:
        last, opened = start + len(row_lines) - 1, start + _line_of_open_quote("".join(row_lines), separator)
        if opened < last:
            raise MinipeftError(f"{place}, line {opened}: a quote opens here and is not closed; close it") from None
        raise MinipeftError(f"{place}: not readable as csv (line {last}: {error}); fix or remove the line") from None


def _line_of_open_quote(row: str, separator: str) -> int:
    """Return the line, from 0, where the first quoted field of a row begins that is not closed as it should be."""
    position, opened, is_open = -1, 0, False
    while (position := row.find('"', position + 1)) >= 0:
        if not is_open:
            opened, is_open = position, True
        elif row[position + 1 : position + 2] == '"':
            position += 1
        elif row[position + 1 : position + 2] in (separator, "\r", "\n"):
            is_open = False
        else:  # the error
            break
    return row.count("\n", 0, opened)
