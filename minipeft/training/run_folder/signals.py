"""Signals that wait until a step is done and the state is saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def collect_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that a step ends before the run does; a second signal ends it at once."""
    received: list[int] = []

    def collect(number: int, frame: Any) -> None:
        received.append(number)
        for name, handler in before.items():
            signal.signal(name, handler)

    try:
        before = {name: signal.signal(name, collect) for name in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread gets signals
        before = {}
    try:
        yield received
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
