"""Progress of long work: a bar on a terminal and in a notebook, elsewhere one line when it takes over ten seconds."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

LINE_AFTER = 10.0  # seconds
BAR_AFTER = 1.0
READ_BARS = "MINIPEFT_READ_BARS"  # in the environment: a parent process reads the bar of a training's steps
Part = TypeVar("Part")


def disable_bar(quiet: bool) -> bool | None:
    """Return tqdm's argument `disable`: a bar is shown on a terminal and in a notebook, whose stderr is no terminal."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return True if quiet else False if hasattr(shell, "kernel") else None


def show_progress(
    parts: Iterable[Part],
    name: str,
    quiet: bool = False,
    total: int | None = None,
    rows: Callable[[Any], int] = len,
) -> Iterator[Part]:
    """Yield the parts of some work as they come, and show how many rows of it are done.

    Args:
        parts: The parts, such as chunks of a file.
        name: What is done: "tokenizing train".
        quiet: Whether nothing is shown.
        total: The number of all rows, where it is known.
        rows: A part → its number of rows.
    """
    from tqdm.auto import tqdm

    start, done, waiting = time.monotonic(), 0, not quiet
    bar_settings = {"total": total, "unit": " rows", "leave": False, "delay": BAR_AFTER, "disable": disable_bar(quiet)}
    with tqdm(desc=name, **bar_settings) as bar:
        for part in parts:
            yield part
            done += rows(part)
            bar.update(rows(part))
            if waiting and bar.disable and time.monotonic() - start > LINE_AFTER:
                waiting = False
                of_all = f" of {total:,}" if total else ""
                print(f"{name}: {done:,}{of_all} rows after {LINE_AFTER:g} s", file=sys.stderr, flush=True)
