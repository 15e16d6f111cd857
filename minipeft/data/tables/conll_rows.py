"""CoNLL: a word and its tag per line, and an empty line between two sentences."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from minipeft.data.tables.table import Table, stream
from minipeft.errors import MinipeftError

COLUMNS = ("tokens", "ner_tags")


def conll_table(place: str, lines: Iterable[str]) -> Table:
    """Return a row per sentence: the first field of its lines as "tokens", and the last one as "ner_tags".

    Fields are separated by tabs, or by spaces in a line without one. A word alone has no tag: `predict` needs none.
    Lines of -DOCSTART- are left out. CoNLL-U, of ten fields with the word as the second, raises MinipeftError.
    """

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        start = 1
        words: list[str] = []
        tags: list[str | None] = []
        for number, line in enumerate(chain(lines, [""]), 1):
            line = line.strip("\r\n ")
            # Other white space than tabs and spaces is part of a word.
            word, *others = line.split("\t") if "\t" in line else re.split(" +", line)
            if len(others) == 9 and word.isdecimal():
                raise MinipeftError(f"{place}, line {number}: CoNLL-U is not read. Write a word and its tag per line.")
            if word:
                if word != "-DOCSTART-":
                    start = start if words else number
                    words.append(word)
                    tags.append(others[-1].strip() or None if others else None)
            elif words:
                yield f"{place}, line {start}", dict(zip(COLUMNS, (words, tags), strict=True))
                words, tags = [], []

    return stream(place, COLUMNS, rows())
