"""The lease of a folder, such as a run's: one process writes to it, whoever started the others.

    RUN/.owner      names the owner's host and process; its modification time is the owner's heartbeat

The lease is filelock's SoftFileLease, a file that needs no lock of the operating system, so that it works on network
file systems. Clocks of two machines are never compared: a waiting process measures with its own whether the heartbeat
changes. This module adds the folder, the messages, and the check before every write.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from filelock import SoftFileLease, Timeout

from minipeft.errors import MinipeftError
from minipeft.files import LEASE, OWNERSHIP_CHECKS, make_folder

BEAT_SECONDS = 1.0  # between two heartbeats
STALE_SECONDS = 30.0  # without a heartbeat, after which the lease may be taken over


class Lease:
    """Holds a folder, as a context manager: only this process writes to it with the functions of files.py.

    A lease is taken over at once where its owner has died on this machine, and elsewhere when its heartbeat has not
    changed for 30 seconds. Every write of an owner that was only stopped meanwhile raises MinipeftError.

    Args:
        folder: the folder, which is made if it is missing, and removed at the end if it is still empty.
        output: what the messages name: the file or folder that is prepared in `folder`.
    """

    def __init__(self, folder: Path, output: Path | None = None) -> None:
        self.folder, self.path, self.output = folder, folder / LEASE, output or folder
        self._lock = SoftFileLease(
            self.path,
            lease_duration=STALE_SECONDS,
            heartbeat_interval=BEAT_SECONDS,
            thread_local=False,
            poll_interval=BEAT_SECONDS / 4,
        )
        self._made: list[Path] = []

    def __enter__(self) -> Lease:
        """Take the lease."""
        self._made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        try:
            self._acquire()
        except (Timeout, RuntimeError):  # RuntimeError: this thread itself holds the lease
            self._remove_empty_folders()
            raise MinipeftError(
                f"{self.output} is in use by {self._owner()}. Wait until it has finished, or choose another --output."
            ) from None
        except OSError as error:
            self._remove_empty_folders()
            reason = error.strerror or error
            raise MinipeftError(f"{self.path}: cannot be written ({reason}). Choose another --output.") from None
        OWNERSHIP_CHECKS[self.folder.absolute()] = self.check
        return self

    def __exit__(self, *error: object) -> None:
        OWNERSHIP_CHECKS.pop(self.folder.absolute(), None)
        with suppress(OSError):  # on a disk that has become read-only; the heartbeat ends with the process
            self._lock.release()
        self._remove_empty_folders()

    def check(self) -> None:
        """Raise MinipeftError where another process has taken the folder over."""
        if (owner := self._lock.owner) is None or owner.token != self._lock.token:
            raise MinipeftError(
                f"{self.output}: {self._owner()} has taken the run over, while this process stood still. "
                "Nothing was written; let that process finish."
            )

    def _acquire(self, attempts: int = 10) -> None:
        """Make the folder and take the lease; try again where its owner has just released it or removed the folder."""
        make_folder(self.folder)
        beat = self._heartbeat()
        try:
            # A heartbeat that changes is that of a running owner; filelock takes over the lease of any other.
            self._lock.acquire(cancel_check=lambda: self._heartbeat() not in (None, beat))
        except (FileNotFoundError, Timeout) as error:
            if attempts == 1 or (isinstance(error, Timeout) and self._lock.owner is not None):
                raise
            self._acquire(attempts - 1)

    def _heartbeat(self) -> int | None:
        """Return the modification time of the owner's file in nanoseconds; None where there is none."""
        try:
            with open(self.path, "rb") as file:  # opening makes a network file system ask the server again
                return os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            return None

    def _owner(self) -> str:
        owner = self._lock.owner
        return f"process {owner.pid} on {owner.hostname}" if owner else "another process"

    def _remove_empty_folders(self) -> None:
        for folder in self._made:
            with suppress(OSError):  # not empty
                folder.rmdir()
