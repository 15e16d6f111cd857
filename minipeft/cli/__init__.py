"""The command line: `minipeft COMMAND …` and train.py."""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """`minipeft COMMAND …` → the exit status."""
    return _call("main", arguments)


def main_train(arguments: Sequence[str] | None = None) -> int:
    """`train.py …` → the exit status."""
    return _call("main_train", arguments)


def _call(name: str, arguments: Sequence[str] | None) -> int:
    """Call a function of cli.py; an interruption during its imports ends the process without a traceback."""
    previous: Any = signal.SIG_DFL
    with suppress(ValueError):  # only the main thread gets signals
        previous = signal.signal(signal.SIGINT, lambda number, frame: os._exit(_say_interrupted()))
    from minipeft.cli import cli

    try:
        with suppress(ValueError):
            signal.signal(signal.SIGINT, previous)
        status: int = getattr(cli, name)(arguments)
    except KeyboardInterrupt:
        status = _say_interrupted()
    return status


def _say_interrupted() -> int:
    print("minipeft: interrupted", file=sys.stderr, flush=True)
    return 130
