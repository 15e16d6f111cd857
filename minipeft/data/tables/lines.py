"""A file's bytes and lines as a stream: local or remote, compressed or not, a few lines in memory at once."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from minipeft.data.tables.remote_tables.remote import is_remote, local_copy
from minipeft.errors import MinipeftError, first_line

LONGEST_LINE = 1 << 24  # bytes; a longer line is not text, and is not read into memory
CHUNK = 1 << 16  # bytes


def _open_zstd(path: str) -> BinaryIO:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(path), "zstd"))


# The ending of a compressed file → (local path) → its decompressed bytes.
DECOMPRESS: dict[str, Callable[[str], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstd}


def name_of(path: str) -> str:
    """Return the file name of a path or an address, without the address's query."""
    return unquote(urlsplit(path).path).rsplit("/", 1)[-1] if is_remote(path) else Path(path).name


def ending_of(path: str) -> str:
    """Return the ending that gives the format, in lower case: ".csv" of "reviews.CSV.gz"."""
    return _decompressed_name(path).suffix.lower()


def stem_of(path: str) -> str:
    """Return the file name without its endings: "reviews" of "https://host/reviews.csv.gz?raw=true"."""
    return _decompressed_name(path).stem


def _decompressed_name(path: str) -> Path:
    name = Path(name_of(path))
    return Path(name.stem) if name.suffix.lower() in DECOMPRESS else name


def open_bytes(path: str) -> BinaryIO:
    """Open a file or an address for reading, decompressed by its ending."""
    decompress = DECOMPRESS.get(Path(name_of(path)).suffix.lower())
    local = local_copy(path)
    return cast(BinaryIO, decompress(local)) if decompress else open(local, "rb")


def iterate_lines(path: str) -> Iterator[str]:
    """Yield a file's lines with their line ends, one in memory at once; an error names the line that is not text."""
    return read_lines(path, lambda: open_bytes(path))


def read_lines(place: str, start: Callable[[], BinaryIO]) -> Iterator[str]:
    """Yield lines with their line ends, decoded one by one; `place` is for the error message."""
    number = 0
    with read_errors(place), start() as file:
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise MinipeftError(
                    f"{place}, line {number}: longer than {LONGEST_LINE >> 20} MiB; is it text? Shorten it"
                )
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise MinipeftError(
                    f"{place}, line {number}: not UTF-8 (byte {error.start}); save the file as UTF-8"
                ) from None


@contextmanager
def read_errors(place: str) -> Iterator[None]:
    """Raise MinipeftError for a file that cannot be read or decompressed."""
    try:
        yield
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise MinipeftError(f"{place}: cannot be read ({reason}); check the file") from None
