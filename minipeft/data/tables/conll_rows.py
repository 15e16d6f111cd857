"""CoNLL: a word and its tag per line, and an empty line between two sentences."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from minipeft.data.tables.table import Table, stream
from minipeft.errors import MinipeftError, short_repr

COLUMNS = ("tokens", "ner_tags")


def conll_table(place: str, lines: Iterable[str]) -> Table:
    """Return a row per sentence: the first field of its lines as "tokens", and the last one as "ner_tags".

    Fields are separated by tabs, or by spaces in a line without one. Lines of -DOCSTART- are left out.
    """

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        start = 1
        words: list[str] = []
        tags: list[str] = []
        for number, line in enumerate(chain(lines, [""]), 1):
            fields = line.strip("\r\n").split("\t" if "\t" in line else None)
            if fields and fields[0].strip():
                if len(fields) == 1:
                    raise MinipeftError(f"{place}, line {number}: {short_repr(fields[0])} has no tag. Add one.")
                if fields[0] != "-DOCSTART-":
                    start = start if words else number
                    words.append(fields[0])
                    tags.append(fields[-1].strip())
            elif words:
                yield f"{place}, line {start}", dict(zip(COLUMNS, (words, tags), strict=True))
                words, tags = [], []

    return stream(place, COLUMNS, rows())
