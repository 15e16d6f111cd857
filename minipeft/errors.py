"""What ends a command early: bad input, or a signal."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any


class MinipeftError(Exception):
    """Bad input: the message names the value, the place and the remedy, in one line.

    The command line prints it on standard error and ends with status 2; nothing is overwritten.
    """


class WorkerError(MinipeftError):
    """What one process of several meets by itself and therefore says itself; other errors the first process says."""


class ErrorOnRankZero(MinipeftError):
    """An error that rank 0 has raised for all processes, and prints."""


class Interrupted(BaseException):
    """A signal ended a run after its state was saved; the command line ends with 128 + the signal's number.

    Like KeyboardInterrupt no Exception: code that catches another library's errors must not catch it.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def first_line(error: BaseException) -> str:
    """The first line of another library's error, for a message of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def check_int(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int of `least` or more; anything else raises under `name`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise MinipeftError(f"{name} {value!r} is not a whole number of {least} or more")
    return number


def check_float(name: str, value: Any, least: float = -math.inf) -> float:
    """`value` as a finite float of `least` or more; anything else raises under `name`."""
    try:
        number = math.nan if isinstance(value, (bool, str)) or not hasattr(value, "__float__") else float(value)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.nan
    if not math.isfinite(number) or number < least:
        more = "" if least == -math.inf else f" of {least:g} or more"
        raise MinipeftError(f"{name} {short_repr(value)} is not a finite number{more}")
    return number


def check_probability(name: str, value: Any) -> float:
    """`value` as a float from 0 to below 1, what a dropout may be; anything else raises under `name`."""
    if not 0 <= (number := check_float(name, value)) < 1:
        raise MinipeftError(f"{name} {number!r} is not a probability below 1")
    return number


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise unless `value` is one of the choices; the message lists them."""
    if value not in (known := tuple(choices)):
        raise MinipeftError(f"unknown {name} {short_repr(value)}; one of {', '.join(known)}{nearest(value, known)}")


def nearest(value: Any, choices: Iterable[str]) -> str:
    """Return a question that names the choice most similar to `value`, or "" where none is similar."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = get_close_matches(str(value).lower(), list(by_lower), n=1)
    return f" (did you mean {by_lower[found[0]]}?)" if found else ""


def check_seed(name: str, value: Any) -> int:
    """A seed that every random generator takes."""
    try:
        if (seed := check_int(name, value, least=0)) < 2**32:
            return seed
    except MinipeftError:
        pass
    raise MinipeftError(f"{name} {value!r} is not a whole number from 0 to {2**32 - 1}")


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_rank_zero() -> bool:
    """Whether this process prints for its job: rank 0, and a process without torchrun."""
    return not under_torchrun() or os.environ["RANK"] == "0"


def short_repr(value: Any) -> str:
    """A value as Python writes it, cut to what fits into a message."""
    text = repr(value[:100] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= 100 else f"{text[:80]}…"


def format_names(names: Sequence[str], most: int = 12) -> str:
    """Return names as a comma-separated list, cut after the first `most`."""
    more = f", … ({len(names):,} in all)" if len(names) > most else ""
    return ", ".join(short_repr(name)[1:-1] for name in names[:most]) + more


def is_unicode(text: str) -> bool:
    """False for text with lone surrogates, which have no bytes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
