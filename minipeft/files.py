"""Files that are complete or absent: written under a temporary name, synced, renamed."""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from minipeft.errors import MinipeftError, first_line

PARTIAL = ".*.partial"  # the temporary files that a kill may leave; nothing reads them
LEASE = ".owner"  # in a run's folder, see minipeft/lease.py
OWNERSHIP_CHECKS: dict[Path, Callable[[], None]] = {}  # of the folders that this process holds a lease of
SHARED_CACHE = "MINIPEFT_SHARED_CACHE"  # the environment variable that names the folder of caches of compare's runs
FORMAT = 1  # of the files that minipeft writes and reads again
LARGEST_SMALL_FILE = 1 << 26  # bytes of a config, an index or a tokenizer; xlm-roberta's tokenizer has 17 MB


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, sync it and rename it to `path`: readers see the old file or the new one."""
    write_together({path: write})


def write_together(writers: dict[Path, Callable[[Path], object]]) -> None:
    """`write_atomically` for files of one folder: the first is renamed only when all are complete and synced.

    In a folder that this process has a lease of, it must hold it still; that is checked last before the rename.
    """
    unique = uuid.uuid4().hex[:8]  # two processes never write the same temporary file
    temporary = {path: path.with_name(f".{path.name}.{unique}.partial") for path in writers}
    try:
        for path, write in writers.items():
            write(temporary[path])
            with open(temporary[path], "rb+") as file:  # Windows syncs only files that are open for writing
                os.fsync(file.fileno())
            temporary[path].chmod(0o666 & ~_umask())  # safetensors makes files that only their owner can read
        for path in writers:
            check_ownership(path)
        for path in writers:
            os.replace(temporary[path], path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap a full disk
        for path in writers:  # the process that took the folder over has removed the temporary files
            check_ownership(path)
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise MinipeftError(
            f"{path}: cannot be written ({first_line(reason)}). The last good state is kept: "
            "free space or choose another folder."
        ) from None
    finally:
        for left in temporary.values():
            with suppress(OSError):
                left.unlink(missing_ok=True)


def check_ownership(path: Path) -> None:
    """Raise MinipeftError where this process held a lease of a folder above `path`, and holds it no more."""
    for folder, check in list(OWNERSHIP_CHECKS.items()):
        if folder in path.absolute().parents:
            check()


def _sync_folder(folder: Path) -> None:
    """Sync a folder's entries: until then a power loss may undo a rename."""
    with suppress(OSError):  # Windows and some file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def make_folder(folder: Path, attempts: int = 10) -> None:
    """Make a folder and those above it; try again where another process has just removed an empty one."""
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _sync_folder(folder.parent)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and attempts > 1:
            return make_folder(folder, attempts - 1)
        raise MinipeftError(f"{folder}: cannot be made ({error.strerror or error}); choose another folder") from None


def user_path(path: str | Path) -> Path:
    """Return a path that a user gave, with `~` expanded, which neither Python does nor a shell in --output=~/run.

    Raises:
        MinipeftError: for an address such as s3://bucket/run, which Path would turn into a local folder "s3:".
    """
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
        raise MinipeftError(f"{path}: a folder at an address is not supported. Name a local path.")
    return Path(path).expanduser()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """One JSON object, indented."""
    write_text(path, json_text(content))


def json_text(content: dict[str, Any]) -> str:
    """The text of `write_json`."""
    return json.dumps(content, indent=2) + "\n"


def read_json(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON object, `missing` where there is no file, or a MinipeftError that names the file."""
    if missing is not None and not path.is_file():
        return missing
    try:
        content = parse_json(read_small(path))
    except FileNotFoundError:
        holds = "an adapter folder, such as RUN/adapter," if path.name.startswith("adapter") else "a run's folder"
        raise MinipeftError(f"{path} is missing; name {holds} instead of {path.parent}") from None
    except (OSError, ValueError) as error:
        raise MinipeftError(f"{path}: not readable as JSON ({first_line(error)})") from None
    if not isinstance(content, dict):
        raise MinipeftError(f"{path}: holds no JSON object")
    check_format(path, content)
    return content


def check_format(path: Path, content: dict[str, Any]) -> None:
    """Raise MinipeftError for the content of a file that a newer version of minipeft has written."""
    number = content.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise MinipeftError(
            f"{path}: the file has format {number}, and this version of minipeft reads format {FORMAT}. "
            "Install a newer minipeft."
        )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def parse_json(text: str | bytes) -> Any:
    """The value that JSON text stands for; ValueError for every text that is none, one nested too deeply included."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_small(path: Path) -> bytes:
    """Return the content of a small file; raise ValueError for a large one, OSError for a missing one."""
    if path.exists() and not path.is_file():
        raise ValueError("no file")
    with open(path, "rb") as file:
        content = file.read(LARGEST_SMALL_FILE + 1)
    if len(content) > LARGEST_SMALL_FILE:
        raise ValueError(f"larger than {LARGEST_SMALL_FILE >> 20} MiB")
    return content


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_json_lines(path: Path) -> list[Any]:
    """The values of a file of one JSON value a line; OSError and ValueError for what cannot be read."""
    return [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_text(path: Path, text: str) -> None:
    """A text file, in UTF-8."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def check_output(folder: Path, marker: str, kind: str, resume: bool, flag: str = "--output") -> None:
    """Raise for an output folder that holds another result of its `kind`, or anything else."""
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise MinipeftError(f"{above} is not a folder that can be written to. Choose another {flag}.")
    if (folder / marker).is_file():
        if not resume:
            raise MinipeftError(
                f"{folder} already holds a {kind}. Pass --resume to continue it, or choose another {flag}."
            )
    elif folder.is_dir() and not all(path.match(PARTIAL) or path.match(f"{LEASE}*") for path in folder.iterdir()):
        raise MinipeftError(f"{folder} is not empty and holds no {kind}. Choose another {flag}.")
