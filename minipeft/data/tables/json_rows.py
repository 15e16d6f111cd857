"""jsonl (an object per line) and json (a list of objects)."""

import codecs
import re
from collections.abc import Iterable, Iterator
from json import JSONDecodeError
from typing import Any

from minipeft.data.tables.lines import CHUNK, LONGEST_LINE, iterate_lines, open_bytes, read_errors
from minipeft.data.tables.table import Table, stream
from minipeft.errors import MinipeftError, first_line, short_repr
from minipeft.files import parse_json

# What changes the depth or begins and ends a string; a backslash takes the next character with it.
STRUCTURE = re.compile(r'\\.|[",\[\]{}]', re.DOTALL)


def jsonl_table(place: str, lines: Iterable[str]) -> Table:
    """Return the table of a file with an object per line; empty lines are skipped."""
    return _table(place, ((number, line) for number, line in enumerate(lines, 1) if line.strip()))


def json_table(path: str) -> Table:
    """Return the table of a list of objects, however it is divided into lines; without a list it is read as jsonl."""
    start = next((text for text in _chunks(path) if text.strip()), "")
    if not start.lstrip().startswith("["):
        return jsonl_table(path, iterate_lines(path))
    return _table(path, _elements(path))


def _table(place: str, texts: Iterator[tuple[int, str]]) -> Table:
    """Return the table of (line, JSON text) of each row; its columns are those of the first rows together."""

    def objects() -> Iterator[tuple[str, dict[str, Any]]]:
        for number, text in texts:
            try:
                row = parse_json(text.rstrip())
            except ValueError as error:
                line, reason = number, first_line(error)
                if isinstance(error, JSONDecodeError):  # which counts the lines of the text
                    line, reason = number + text[: error.pos].lstrip().count("\n"), f"{error.msg}, column {error.colno}"
                raise MinipeftError(
                    f"{place}: not readable as JSON (line {line}: {reason}); fix or remove the line"
                ) from None
            if not isinstance(row, dict):
                raise MinipeftError(f"{place}, line {number}: not a JSON object; fix or remove the line")
            yield f"{place}, line {number}", row

    table = stream(place, None, objects())
    if not table.first_rows:
        raise MinipeftError(f"{place}: the file is empty; it needs at least one row")
    return table


def _elements(path: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the JSON text of each element of a list.

    Only brackets, commas and quotes are looked at here. At most one element and a chunk are in memory.
    """
    pending = ""  # the start of an element, from earlier chunks
    line, depth, count, in_string = 1, 0, 0, False
    for text in _chunks(path):
        start = 0  # of the element, in this chunk
        for match in STRUCTURE.finditer(text):
            token = match[0]
            if in_string or token == '"':
                in_string = token != '"' if in_string else True
                continue
            depth += (token in "[{") - (token in "]}")
            if depth == 1 and token == "[" and not count and not (pending + text[: match.start()]).strip():
                line += text.count("\n", 0, match.start())
                start, pending = match.end(), ""
            elif (depth == 1 and token == ",") or (depth == 0 and token == "]"):
                element = pending + text[start : match.start()]
                if token == "," or count or element.strip():
                    yield line + element[: len(element) - len(element.lstrip())].count("\n"), element
                count, start, pending = count + 1, match.end(), ""
                line += element.count("\n")
        pending += text[start:]
        if len(pending) > LONGEST_LINE:
            raise MinipeftError(f"{path}, line {line}: an element longer than {LONGEST_LINE >> 20} MiB; shorten it")
    if depth or in_string:
        raise MinipeftError(f"{path}, line {line + pending.count(chr(10))}: the list has no end; is the file complete?")
    if pending.strip():
        raise MinipeftError(f"{path}, line {line}: text after the list ({short_repr(pending.strip())}); remove it")


def _chunks(path: str) -> Iterator[str]:
    """Yield the file's text; a backslash and the character after it are in one chunk."""
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    held, line = "", 1
    with read_errors(path), open_bytes(path) as file:
        more = True
        while more:
            data = file.read(CHUNK)
            more = bool(data)
            try:
                text = held + decode(data, not more)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise MinipeftError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None
            line += data.count(b"\n")
            kept = len(text) - (len(text) - len(text.rstrip("\\"))) % 2 if more else len(text)
            text, held = text[:kept], text[kept:]
            yield text
