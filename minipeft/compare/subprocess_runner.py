"""A run in a process of its own, which ends when the comparison does: by its end, a signal, or a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

# `python -m minipeft` that watches its standard input, which the comparison holds the other end of.
PROGRAM = (
    "import sys; from minipeft.compare.subprocess_runner import end_with_parent; end_with_parent(); "
    "from minipeft.cli.cli import main; sys.exit(main())"
)


def start(arguments: Sequence[str], log: Path, threads: int, lock: int) -> subprocess.Popen[bytes]:
    """Start `minipeft ARGUMENTS`, with all that it says in `log`; the descriptor `lock` stays open as long as it runs.

    It has a session of its own, so that Ctrl-C in the terminal reaches it once, through `end`.
    """
    shares = {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
    with open(log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env=shares | dict(os.environ),  # what the user chose comes first
            pass_fds=(lock,),
            start_new_session=True,
        )


def end_with_parent() -> None:
    """In the child: when the other end of standard input closes, ask this process to save and end."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def end(process: subprocess.Popen[bytes]) -> None:
    """Let a child save and end."""
    assert process.stdin is not None
    process.stdin.close()


def why(status: int, log: Path) -> str:
    """Why a child failed, in one line: its own, or the signal that ended it."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    lines = [line.rsplit("\r", 1)[-1].strip() for line in log.read_text("utf-8", "replace").splitlines()]
    said = [line for line in lines if line]
    own = [line.removeprefix("minipeft: ") for line in said if line.startswith("minipeft: ")]
    return (own or said or [f"ended with status {status}"])[-1]
