"""The exceptions that end a command early, checks of values that raise them, and the logger of warnings."""

import logging
import math
import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

logger = logging.getLogger("minipeft")
# A command, whose flags are always flags; or a flag.
FLAG = re.compile(r"(?:minipeft [a-z]+ |train\.py )(?:(?!\. |[;)]).)*|(?<![\w-])--([a-z][a-z0-9-]*)")
names_flags = False  # true while the command line runs a command: its messages name flags, those of Python keywords


class MinipeftError(Exception):
    """Invalid input; the message names the value, the place and the remedy, in one line.

    The command line prints it on standard error and ends with status 2; nothing is overwritten.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))

    def __str__(self) -> str:
        text = super().__str__()
        return text if names_flags else FLAG.sub(_keyword, text)


def _keyword(found: re.Match[str]) -> str:
    flag = "file_format" if found[1] == "format" else found[1]
    return flag.replace("-", "_") if flag else found[0]


def flag_of(keyword: str) -> str:
    """Return the flag of a keyword: "--max-length"; "--format" of file_format, as config.json has another format."""
    return "--format" if keyword == "file_format" else f"--{keyword.replace('_', '-')}"


class WorkerError(MinipeftError):
    """An error of one rank only; that rank prints it."""


class ErrorOnRankZero(MinipeftError):
    """An error that all ranks raise; rank 0 prints it."""


class Interrupted(BaseException):
    """A signal ended a run after its state was saved; the command line ends with 128 + the signal's number.

    It is not an Exception, as KeyboardInterrupt is not one: code that catches a library's errors must not catch it.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, for a message of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def check_int(name: str, value: Any, least: int = 1) -> int:
    """Return `value` as an int of `least` or more; raise MinipeftError with `name` for anything else."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise MinipeftError(f"{name} {short_repr(value)} is not a whole number of {least} or more")
    return number


def check_float(name: str, value: Any, least: float = -math.inf) -> float:
    """Return `value` as a finite float of `least` or more; raise MinipeftError with `name` for anything else."""
    try:
        number = math.nan if isinstance(value, (bool, str)) or not hasattr(value, "__float__") else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # an array, a tensor, a number of hundreds of digits
        number = math.nan
    if not math.isfinite(number) or number < least:
        more = "" if least == -math.inf else f" of {least:g} or more"
        raise MinipeftError(f"{name} {short_repr(value)} is not a finite number{more}")
    return number


def check_probability(name: str, value: Any) -> float:
    """Return `value` as a float from 0 to below 1, as a dropout has; raise MinipeftError with `name` otherwise."""
    if not 0 <= (number := check_float(name, value)) < 1:
        raise MinipeftError(f"{name} {number!r} is not a probability below 1")
    return number


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise unless `value` is one of the choices; the message lists them."""
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        raise MinipeftError(f"unknown {name} {short_repr(value)}; one of {', '.join(known)}{nearest(value, known)}")


def nearest(value: Any, choices: Iterable[str]) -> str:
    """Return a question that names the choice most similar to `value`, or "" where none is similar."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = get_close_matches(str(value).lower(), list(by_lower), n=1) if isinstance(value, str) else []
    return f" (did you mean {by_lower[found[0]]}?)" if found else ""


def check_seed(name: str, value: Any) -> int:
    """Return `value` as an int that every random generator takes as its seed; raise MinipeftError otherwise."""
    if (seed := check_int(name, value, least=0)) >= 2**32:
        raise MinipeftError(f"{name} {short_repr(value)} is not a whole number from 0 to {2**32 - 1}")
    return seed


def under_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_rank_zero() -> bool:
    """Return whether this process prints for its job: rank 0, or the only process."""
    return not under_torchrun() or os.environ["RANK"] == "0"


# Scheme, user and password, host and path (up to the next address of a chain), query and fragment.
ADDRESS = re.compile(
    r"(?<![a-z0-9+.-])([a-z][a-z0-9+.-]*://)([^\s/?#]*@)?((?:(?!::[a-z0-9+.-]+://)[^\s?#'\"<>])*)([?#][^\s'\"<>]*)?",
    re.IGNORECASE,
)


def public_address(text: str) -> str:
    """Return text in which addresses have neither user, password nor query, which may be secret."""

    def without_secrets(match: re.Match[str]) -> str:
        query = match[4] or ""
        punctuation = query[len(query.rstrip(":;,.)]")) :]  # of the sentence around the address
        return f"{match[1]}{match[3]}{punctuation}"

    return ADDRESS.sub(without_secrets, text)


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as files may hold them: without the secrets that an address may have."""

    def public(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [public(one) for one in value]
        if isinstance(value, Mapping):
            return {name: public(one) for name, one in value.items()}
        return public_address(value) if isinstance(value, str) else value

    may_hold_addresses = ("data", "source", "validation", "checkpoint_copy")
    return {name: public(value) if name in may_hold_addresses else value for name, value in settings.items()}


def printable(text: str, keep: str = "") -> str:
    """Return text for a terminal or a page: addresses are public, control characters and text directions escaped."""
    text = public_address(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def short_repr(value: Any) -> str:
    """Return repr(value) in one line, cut to 100 characters."""
    text = repr(value[:100] if isinstance(value, (str, bytes)) else value)
    if not isinstance(value, str):
        text = " ".join(text.split())  # tables and arrays have several lines
    return text if len(text) <= 100 else f"{text[:80]}…"


def format_names(names: Sequence[str], most: int = 12) -> str:
    """Return names as a comma-separated list, cut after the first `most`."""
    more = f", … ({len(names):,} in all)" if len(names) > most else ""
    return ", ".join(short_repr(name)[1:-1] for name in names[:most]) + more


def is_unicode(text: str) -> bool:
    """Return whether text can be encoded in UTF-8, which lone surrogates cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
