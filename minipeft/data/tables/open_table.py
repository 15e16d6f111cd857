"""The files of a split or folder, and the rows of a file as a stream: jsonl, json, csv, tsv, parquet or plain text."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from minipeft.data.tables.conll_rows import conll_table
from minipeft.data.tables.csv_rows import csv_table, strip_line_end, tsv_table
from minipeft.data.tables.json_rows import json_table, jsonl_table
from minipeft.data.tables.lines import DECOMPRESS, ending_of, iterate_lines, name_of, read_lines
from minipeft.data.tables.parquet_rows import parquet_table
from minipeft.data.tables.remote_tables.remote import is_remote, local_copy
from minipeft.data.tables.table import Table, concatenate, stream
from minipeft.errors import MinipeftError, check_choice

STANDARD_INPUT = "-"
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".conll", ".parquet", ".txt")
FORMATS = ("txt", "csv", "tsv", "jsonl", "json", "conll")  # of --format; a parquet file is known by its ending


def open_table(path: str | Path, file_format: str | None = None) -> Table:
    """Open a file, an address, the shards of a split ("train-*-of-00002.parquet"), or standard input ("-").

    The format is that of the file's ending, before one of a compressed file: "reviews.csv.gz". Standard input is jsonl
    if its first line begins with {, and else plain text, unless the first line may be the header of a csv or tsv file.
    With `file_format`, one of FORMATS, the ending does not matter, unless it is .parquet.

    Raises:
        MinipeftError: here or while the rows are read: for an unknown ending, an empty file, a line that is not
            JSON, not UTF-8 or longer than 16 MiB, and a damaged file. The message names the file and line.
    """
    if file_format is not None:
        check_choice("--format", file_format, FORMATS)
    path = str(path)
    if path == STANDARD_INPUT:
        return _standard_input(file_format)
    if not is_remote(path) and "*" in Path(path).name and not Path(path).exists():
        shards = sorted(Path(path).parent.glob(Path(path).name))
        return concatenate(path, [open_table(shard, file_format) for shard in shards])
    ending = ending_of(path)
    if file_format and ending != ".parquet":  # which no other file is called
        ending = f".{file_format}"
    if not is_remote(path) and not Path(path).is_file():
        raise MinipeftError(f"{path} is not a file; check the path")
    if ending not in ENDINGS:
        raise MinipeftError(f"{path}: unknown ending {ending or 'none'!r}; use {', '.join(ENDINGS)}, or give --format")
    if ending == ".parquet" and name_of(path).lower().endswith(tuple(DECOMPRESS)):
        raise MinipeftError(f"{path}: a parquet file is compressed inside; decompress the file")
    if Path(local_copy(path)).stat().st_size == 0:
        raise MinipeftError(f"{path}: the file is empty; it needs at least one row")
    kind = ending.removeprefix(".")
    return FILE_READERS[kind](path) if kind in FILE_READERS else LINE_READERS[kind](path, iterate_lines(path))


def _standard_input(file_format: str | None) -> Table:
    if sys.stdin is None:
        raise MinipeftError("standard input is closed; give a file")
    lines = read_lines("standard input", lambda: sys.stdin.buffer)
    if (first := next(lines, None)) is None:
        raise MinipeftError("standard input is empty; it needs at least one row")
    if file_format is None:
        file_format = "jsonl" if first.lstrip().startswith("{") else "txt"
        if file_format == "txt" and _may_be_header(strip_line_end(first)):
            raise MinipeftError(
                f"standard input: the first line, {strip_line_end(first)[:80]!r}, may be the header of a csv or tsv "
                "file; pass --format csv or tsv, or --format txt for one text per line"
            )
    if file_format not in LINE_READERS:
        raise MinipeftError(f"--format {file_format} needs a file; give standard input as jsonl, csv, tsv or txt")
    return LINE_READERS[file_format]("standard input", chain([first], lines))


def _may_be_header(line: str) -> bool:
    """Whether a line may name columns: short names between separators, or one usual name."""
    names = [name.strip('"') for name in re.split("[\t,;]", line)]
    if len(names) == 1:
        return names[0].lower() in ("text", "sentence", "sentence1", "premise", "question")
    return "\t" in line or all(re.fullmatch(r"\w+([ .-]\w+){0,2}", name) for name in names)


def _text_table(place: str, lines: Iterable[str]) -> Table:
    """Return the table of a file in which every line is a text, including an empty one."""
    rows = ((f"{place}, line {number}", {"text": strip_line_end(line)}) for number, line in enumerate(lines, 1))
    return stream(place, ("text",), rows)


# Format → (place, lines) → table, and format → (path) → table.
LINE_READERS: dict[str, Callable[[str, Iterator[str]], Table]] = {
    "jsonl": jsonl_table,
    "csv": csv_table,
    "tsv": tsv_table,
    "conll": conll_table,
    "txt": _text_table,
}
FILE_READERS: dict[str, Callable[[str], Table]] = {"json": json_table, "parquet": parquet_table}


def split_file(folder: Path, names: Sequence[str], endings: Sequence[str]) -> str | None:
    """Return the file of a split in a folder: <name>.<ending>, or the hub's <name>-00000-of-00001.<ending>.

    A file that is not parquet may be compressed: <name>.<ending>.gz.
    Several shards are one path with a *, which `open_table` takes; None if there is no file. Raises MinipeftError for
    two files, and for a missing shard.
    """
    packed = "|".join(map(re.escape, DECOMPRESS))
    formats = "|".join(ending if ending == "parquet" else f"{ending}(?:{packed})?" for ending in endings)
    pattern = re.compile(rf"({'|'.join(names)})(?:-(\d{{5}})-of-(\d{{5}}))?\.({formats})")
    found: dict[str, set[str]] = {}  # a file, or the pattern of its shards → the shards
    for path in sorted(folder.glob("*")):
        if (match := pattern.fullmatch(path.name)) and path.is_file():
            name, shard, total, ending = match.groups()
            several = total is not None and int(total) > 1
            found.setdefault(f"{name}-*-of-{total}.{ending}" if several else path.name, set()).add(shard)
    for file, shards in found.items():
        prefix, star, rest = file.partition("*")
        for shard in (f"{number:05d}" for number in range(int(rest[4:9]) if star else 0)):
            if shard not in shards:
                raise MinipeftError(f"{folder}: {prefix}{shard}{rest} is missing; download the data set again")
    if len(found) > 1:
        raise MinipeftError(f"{folder} holds {' and '.join([*found][:2])}; leave one of them there")
    return str(folder / next(iter(found))) if found else None


def list_files(path: str, file_format: str | None = None) -> list[str]:
    """Return the file or address itself, or the files of a folder in the order of their names."""
    folder = Path(path)
    if path == STANDARD_INPUT or is_remote(path) or not folder.is_dir():
        return [path]
    found = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in found:
        if not entry.is_file() or (file_format is None and ending_of(str(entry)) not in ENDINGS):
            raise MinipeftError(f"{entry} is not one of {', '.join(ENDINGS)}; move it out of the folder")
    if not found:
        raise MinipeftError(f"{folder}: no file in it; add one of {', '.join(ENDINGS)}")
    return [str(entry) for entry in found]
