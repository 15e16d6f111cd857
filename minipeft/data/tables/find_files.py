"""Which files hold the rows: the file or shards of a split, the files of a folder."""

from collections.abc import Sequence
from pathlib import Path

from minipeft.data.tables.lines import DECOMPRESS, ending_of
from minipeft.data.tables.open_table import READERS, STANDARD_INPUT
from minipeft.data.tables.remote import is_remote
from minipeft.errors import MinipeftError

SHARDS = "-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]"  # as the hub names the files of a split


def split_file(folder: Path, split: str, endings: Sequence[str]) -> str | None:
    """Return the file of a split in a folder: <split>.<ending>, or the hub's <split>-00000-of-00001.<ending>.

    A file that is not parquet may be compressed: <split>.<ending>.gz.
    Several shards are one path with a *, which `open_table` takes; None if there is no file. Raises MinipeftError for
    two files, and for a missing shard.
    """
    endings = [
        ending + packed for ending in endings for packed in ("", *DECOMPRESS) if ending != "parquet" or not packed
    ]
    found = [str(folder / f"{split}.{ending}") for ending in endings if (folder / f"{split}.{ending}").is_file()]
    for ending in endings:
        shards = sorted(folder.glob(f"{split}{SHARDS}.{ending}"))
        by_total: dict[str, list[Path]] = {}
        for shard in shards:
            by_total.setdefault(shard.name.removesuffix(f".{ending}")[-5:], []).append(shard)
        for total, files in by_total.items():
            expected = [f"{split}-{number:05d}-of-{total}.{ending}" for number in range(int(total))]
            if lacking := sorted({*expected} - {file.name for file in files}):
                raise MinipeftError(f"{folder}: {lacking[0]} is missing; download the data set again")
            found.append(str(files[0] if len(files) == 1 else folder / f"{split}-*-of-{total}.{ending}"))
    if len(found) > 1:
        names = " and ".join(Path(name).name for name in found[:2])
        raise MinipeftError(f"{folder} holds {names}; leave one of them there")
    return found[0] if found else None


def list_files(path: str, file_format: str | None = None) -> list[str]:
    """Return the file or address itself, or the files of a folder in the order of their names."""
    folder = Path(path)
    if path == STANDARD_INPUT or is_remote(path) or not folder.is_dir():
        return [path]
    found = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in found:
        if not entry.is_file() or (file_format is None and ending_of(str(entry)) not in READERS):
            raise MinipeftError(f"{entry} is not one of {', '.join(READERS)}; move it out of the folder")
    if not found:
        raise MinipeftError(f"{folder}: no file in it; add one of {', '.join(READERS)}")
    return [str(entry) for entry in found]
