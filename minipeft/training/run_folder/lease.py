"""The lease of a run's folder: one process writes to it, whoever started the others.

    RUN/.owner/<token>      names the owner's host and process; its modification time is the owner's heartbeat

The token is random, and .owner is renamed into place with the file in it, which fails while .owner holds another file.
To take the lease from an owner is to remove the file with its token: an owner that lives is never disturbed, and an
owner that was only stopped finds its file gone. File locks do not work on every network file system; these operations
do. Clocks of two machines are never compared: a waiting process measures with its own whether the heartbeat changes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from minipeft.errors import MinipeftError
from minipeft.files import LEASE, OWNERSHIP_CHECKS, make_folder

BEAT_SECONDS = 1.0  # between two heartbeats
STALE_SECONDS = 30.0  # without a heartbeat, after which the lease may be taken over
MOST_ATTEMPTS = 40  # to take the lease of a folder without an owner


class Lease:
    """Holds a folder, as a context manager: only this process writes to it with the functions of files.py.

    A lease is taken over at once where its owner has died on this machine, and elsewhere when its heartbeat has not
    changed for 30 seconds. Every write of an owner that was only stopped meanwhile raises MinipeftError.

    Args:
        folder: the folder, which is made if it is missing, and removed at the end if it is still empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.token = folder, folder / LEASE, uuid.uuid4().hex
        self._file = self.path / self.token
        self._lock = FileLock(_lock_file(self.token), timeout=0)
        self._released = threading.Event()
        self._made: list[Path] = []

    def __enter__(self) -> Lease:
        """Take the lease.

        Raises:
            MinipeftError: where another process holds it.
        """
        self._made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        make_folder(self.folder)
        with suppress(OSError, NotImplementedError):  # without it, a killed owner is recognized after 30 s
            self._lock.acquire()
        try:
            self._take()
        except BaseException:
            self._unlock()
            raise
        OWNERSHIP_CHECKS[self.folder.absolute()] = self.check
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._released.set()
        OWNERSHIP_CHECKS.pop(self.folder.absolute(), None)
        with suppress(OSError):
            _remove(self._file)
            self.path.rmdir()
        self._unlock()

    def check(self) -> None:
        """Raise MinipeftError where another process has taken the folder over."""
        if _heartbeat(self._file):
            return
        since = time.monotonic()
        while (owner := self._owner()) is None and time.monotonic() - since < BEAT_SECONDS:
            time.sleep(BEAT_SECONDS / 10)  # it has removed this process's file, and not yet written its own
        raise MinipeftError(
            f"{self.folder}: {_describe(owner)} has taken the run over, while this process stood still. "
            "Nothing was written; let that process finish."
        )

    def _take(self) -> None:
        attempts = 0
        while (error := self._create()) is not None:
            if owner := self._owner():
                self._wait_for(owner)
            elif (attempts := attempts + 1) == MOST_ATTEMPTS:
                reason = error.strerror or error
                raise MinipeftError(f"{self.path}: cannot be written ({reason}). Choose another --output.")
            else:
                time.sleep(BEAT_SECONDS / 40)  # released at this moment

    def _create(self) -> OSError | None:
        """Put .owner with this process's file into place; return the error where that fails."""
        staged = self.path.with_name(f"{LEASE}.{self.token}.partial")
        try:
            staged.mkdir(parents=True)  # another process may have removed the empty folder
            content = {"host": socket.gethostname(), "pid": os.getpid()}
            (staged / self.token).write_text(json.dumps(content), encoding="utf-8")
            with suppress(OSError):  # succeeds only where it is empty
                self.path.rmdir()
            os.rename(staged, self.path)
        except OSError as error:
            return None if _heartbeat(self._file) else error
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return None

    def _owner(self) -> Path | None:
        """The file of the process that holds the lease."""
        try:
            return next(self.path.iterdir(), None)
        except OSError:
            return None

    def _wait_for(self, owner: Path) -> None:
        """Return when the owner's file is gone, at most 30 seconds after its last heartbeat; raise if it lives."""
        beat, since = _heartbeat(owner), time.monotonic()
        while not _remove_dead(owner) and time.monotonic() - since < STALE_SECONDS:
            time.sleep(BEAT_SECONDS / 4)
            now = _heartbeat(owner)
            if now and now != beat:
                raise MinipeftError(
                    f"{self.folder} is in use by {_describe(owner)}. Wait until it has finished, or choose another "
                    "--output."
                )
            if not now:
                return
        _remove(owner)

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            with suppress(OSError):
                os.utime(self._file)

    def _unlock(self) -> None:
        self._lock.release()
        with suppress(OSError):
            Path(self._lock.lock_file).unlink(missing_ok=True)
        for folder in self._made:
            with suppress(OSError):  # not empty
                folder.rmdir()


def wait_for_release(folder: Path, seconds: float) -> None:
    """Wait, for at most some seconds, while a process with a heartbeat holds the lease of a folder.

    An owner that has died on this machine loses it.
    """
    lease, end = Lease(folder), time.monotonic() + seconds
    beat, since = 0, time.monotonic()
    while (owner := lease._owner()) and not _remove_dead(owner) and time.monotonic() < end:
        if (now := _heartbeat(owner)) != beat:
            beat, since = now, time.monotonic()
        elif time.monotonic() - since > 5 * BEAT_SECONDS:
            return  # it was stopped: whoever takes the lease waits for STALE_SECONDS
        time.sleep(BEAT_SECONDS / 10)


def _heartbeat(file: Path) -> int:
    """The modification time of an owner's file in nanoseconds; 0 where there is none."""
    try:
        with open(file, "rb") as opened:  # opening makes a network file system ask the server again
            return os.fstat(opened.fileno()).st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _remove(file: Path) -> None:
    """Remove a file that another process may be reading, which Windows forbids for that moment."""
    for _ in range(MOST_ATTEMPTS):
        with suppress(PermissionError):
            return file.unlink(missing_ok=True)
        time.sleep(BEAT_SECONDS / 40)


def _lock_file(token: str) -> Path:
    """The file that an owner locks while it lives, on its own machine, where file locks do work."""
    return Path(tempfile.gettempdir()) / f"minipeft-{token}.lock"


def _remove_dead(owner: Path) -> bool:
    """Remove the file of an owner that ran on this machine and has ended; False where that cannot be known."""
    if not re.fullmatch("[0-9a-f]{32}", owner.name) or _read(owner).get("host") != socket.gethostname():
        return False
    if not (path := _lock_file(owner.name)).exists():
        return False
    try:
        with FileLock(path, timeout=0):  # the system has unlocked it
            _remove(owner)
            path.unlink(missing_ok=True)
            return True
    except (OSError, NotImplementedError, Timeout):
        return False


def _read(owner: Path) -> dict[str, Any]:
    try:
        content = json.loads(owner.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _describe(owner: Path | None) -> str:
    content = _read(owner) if owner else {}
    return f"process {content.get('pid', 'unknown')} on {content.get('host', 'an unknown host')}"
