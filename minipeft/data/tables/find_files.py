"""Which files hold the rows: the file or shards of a split, the files of a folder."""

import re
from collections.abc import Sequence
from pathlib import Path

from minipeft.data.tables.lines import DECOMPRESS, ending_of
from minipeft.data.tables.open_table import ENDINGS, STANDARD_INPUT
from minipeft.data.tables.remote_tables.remote import is_remote
from minipeft.errors import MinipeftError


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
