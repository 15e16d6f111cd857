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
    Lines of -DOCSTART- and comments are left out. A comment begins with # and white space, before a sentence, and its
    number of fields is not that of the words before it (at first: not two).

    Raises:
        MinipeftError: while rows are read, for a tag without a word, and for words that are numbered, as in CoNLL-U.
    """

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        start, num_fields = 1, 2
        words: list[str] = []
        tags: list[str | None] = []
        for number, line in enumerate(chain(lines, [""]), 1):
            line = line.strip("\r\n ")
            # Other white space than tabs and spaces is part of a word.
            fields = line.split("\t") if "\t" in line else re.split(" +", line)
            word, *others = fields
            if not words and re.match(r"#\s", line) and (len(fields) != num_fields or " " in word):
                continue
            if word == "3" and words == ["1", "2"] and len(fields) > 2:
                remedy = "Write a word and its tag per line"
                raise MinipeftError(f"{place}, line {number}: the words are numbered, as in CoNLL-U. {remedy}.")
            if not word and any(other.strip() for other in others):
                raise MinipeftError(f"{place}, line {number}: a tag without a word. Write the word before it.")
            if word:
                if word != "-DOCSTART-":
                    start, num_fields = start if words else number, len(fields)
                    words.append(word)
                    tags.append(others[-1].strip() or None if others else None)
            elif words:
                yield f"{place}, line {start}", dict(zip(COLUMNS, (words, tags), strict=True))
                words, tags = [], []

    return stream(place, COLUMNS, rows())
