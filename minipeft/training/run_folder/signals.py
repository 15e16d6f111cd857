"""Signals that wait until a step is done and the state is saved."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# A terminal that closes sends SIGHUP, which Windows lacks.
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def handle_signals(handler: Callable[[int, Any], object]) -> Iterator[None]:
    """Call `handler` on the signals that end a process; one that is ignored, as nohup ignores SIGHUP, stays ignored."""
    try:
        before = {number: signal.signal(number, handler) for number in ENDING if not _is_ignored(number)}
    except ValueError:  # only the main thread gets signals
        before = {}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def collect_signals() -> Iterator[list[int]]:
    """Collect the signals, so that a step ends before the run does; Ctrl-C after another signal ends it at once.

    Two signals of other kinds are one request: a parent and a process manager each send SIGTERM, and a terminal that
    closes sends SIGHUP to the shell, which sends it again.
    """
    received: list[int] = []
    interrupt = signal.getsignal(signal.SIGINT)

    def collect(number: int, frame: Any) -> None:
        received.append(number)
        if interrupt is not None:
            signal.signal(signal.SIGINT, interrupt)

    with handle_signals(collect):
        yield received


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN
