"""The lease of a run's folder: one process writes to it, whoever started the others.

    RUN/.lease      host, process and a random token of the owner; its modification time is the owner's heartbeat

File locks do not work on every network file system; creating a file exclusively and renaming it do. Clocks of two
machines are never compared: a waiting process looks whether the heartbeat changes, and measures with its own clock.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from minipeft.errors import MinipeftError
from minipeft.files import LEASE

BEAT_SECONDS = 1.0  # between two heartbeats
STALE_SECONDS = 30.0  # without a heartbeat, after which the lease may be taken over


class Lease:
    """Holds a run's folder, as a context manager.

    A lease is taken over at once where its owner has died on this machine, and elsewhere when its heartbeat has not
    changed for 30 seconds. An owner that was only stopped meanwhile finds out by `check`.

    Args:
        folder: the run's folder, which must exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.token = folder, folder / LEASE, uuid.uuid4().hex
        self._released = threading.Event()

    def __enter__(self) -> Lease:
        """Take the lease.

        Raises:
            MinipeftError: where another process holds it.
        """
        while not self._create():
            self._wait_for_owner()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        if _read(self.path).get("token") == self.token:
            with suppress(OSError):
                self.path.unlink()

    def check(self) -> None:
        """Raise MinipeftError where another process has taken the folder over; call it before every write."""
        owner = _read(self.path)
        if not owner:  # a waiting process that found the lease stale may just be looking at it
            time.sleep(BEAT_SECONDS)
            owner = _read(self.path)
        if owner.get("token") != self.token:
            raise MinipeftError(
                f"{self.folder}: {_describe(owner)} has taken the run over, while this process stood still. "
                "Nothing was written; let that process finish."
            )

    def _create(self) -> bool:
        """Create the lease's file, unless there is one."""
        created = False
        try:
            with open(self.path, "x", encoding="utf-8") as file:
                created = True
                json.dump({"token": self.token, **_this_process()}, file)
        except FileExistsError:
            return False
        except OSError as error:  # such as a full disk
            if created:
                self.path.unlink(missing_ok=True)
            raise MinipeftError(
                f"{self.path}: cannot be written ({error.strerror or error}). Free space or choose another --output."
            ) from None
        return True

    def _wait_for_owner(self) -> None:
        """Return when the owner is gone and its file is out of the way; raise while it lives."""
        owner, beat, since = _read(self.path), _heartbeat(self.path), time.monotonic()
        while not _has_died(owner) and time.monotonic() - since < STALE_SECONDS:
            time.sleep(BEAT_SECONDS / 4)
            if (now := _heartbeat(self.path)) == 0:
                return  # released
            if now != beat and owner:
                raise MinipeftError(
                    f"{self.folder} is in use by {_describe(owner)}. Wait until it has finished, or choose another "
                    "--output."
                )
            owner = owner or _read(self.path)  # empty while its owner creates it
        aside = self.path.with_name(f"{LEASE}.{self.token}.partial")
        with suppress(OSError):  # another waiting process may be faster
            os.rename(self.path, aside)
            if _read(aside) == owner:
                aside.unlink()
            else:  # of a new owner
                os.rename(aside, self.path)

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            with suppress(OSError):
                if _read(self.path).get("token") == self.token:
                    os.utime(self.path)


def _read(path: Path) -> dict[str, Any]:
    """The owner that a lease names; empty where there is none, or where it is not whole yet."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _heartbeat(path: Path) -> int:
    """The modification time of the lease in nanoseconds; 0 where there is none."""
    try:
        with open(path, "rb") as file:  # opening makes a network file system ask the server again
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return 0


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
    }


def _machine() -> str:
    """What names this boot of this machine and its process numbers; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_time(pid: int) -> str:
    """When a process started, in the kernel's clock ticks; empty for a process that does not exist."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]


def _has_died(owner: dict[str, Any]) -> bool:
    """Whether the owner ran on this machine and does not exist any more; False where that cannot be known."""
    same_machine = owner.get("machine") and owner.get("machine") == _machine()
    return bool(same_machine) and _start_time(int(owner["pid"])) != owner.get("started")


def _describe(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown host')}"
