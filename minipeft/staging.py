"""Outputs that are prepared in a folder of their own, and waiting for the process that holds one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import Timeout

from minipeft.files import LEASE
from minipeft.lease import Lease


@contextmanager
def staging_folder(output: Path) -> Iterator[Path]:
    """Hold an empty folder next to `output`, in which this process alone prepares it; it is removed at the end.

    Raises:
        MinipeftError: where another process prepares the same output.
    """
    folder = output.absolute().with_name(f".{output.name}.partial")
    try:
        with Lease(folder, output):
            clear_folder(folder)  # of a process that was killed
            try:
                yield folder
            finally:
                clear_folder(folder)
    finally:
        with suppress(OSError):  # missing, or another process holds it
            folder.rmdir()


def clear_folder(folder: Path) -> None:
    """Remove everything in a folder but its lease."""
    for path in folder.iterdir():
        if path.name != LEASE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def wait_for_release(folder: Path, seconds: float) -> None:
    """Wait, for at most some seconds, while a process that lives or was stopped holds the lease of a folder."""
    if not folder.is_dir():  # to hold the lease would make the folder, where a file of predictions is to be
        return
    lease = Lease(folder)
    if lease.path.exists():  # taking a lease makes the folder, which may be the name of a file to come
        with suppress(Timeout, OSError), lease._lock.acquire(timeout=seconds):
            pass
