"""The check of each setting's value: (flag, value) → the value in its right type. Nothing here imports torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from minipeft.errors import MinipeftError, check_choice, check_float, check_int, short_repr
from minipeft.training.reporting.trackers import TRACKERS, is_installed

if TYPE_CHECKING:
    from minipeft.data.tables.memory import MemoryData

not_negative: Callable[[str, Any], float] = partial(check_float, least=0.0)
whole: Callable[[str, Any], int] = partial(check_int, least=0)
MOST_THREADS = 1024


def threads(flag: str, value: Any) -> int:
    """Return a number of CPU threads; OpenMP crashes with very many."""
    if (count := check_int(flag, value)) > MOST_THREADS:
        raise MinipeftError(f"{flag} {count} is above {MOST_THREADS}. Give the number of CPU cores at most.")
    return count


def text(flag: str, value: Any) -> str:
    if not isinstance(value, str):
        raise MinipeftError(f"{flag} {short_repr(value)} is not a text. Pass one.")
    return str(value)


def path(flag: str, value: Any) -> str:
    """Return a path, a name or an address as a string, with `~` expanded."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(location := os.fspath(value), bytes):
        raise MinipeftError(f"{flag} {short_repr(value)} is not a path or a name. Pass a string or a Path.")
    return os.path.expanduser(location)


def output(flag: str, value: Any) -> str:
    """Return the path of a local folder."""
    if "://" in (location := path(flag, value)):
        raise MinipeftError(
            f"{flag} {location}: an address is not supported. Name a local folder, and see --checkpoint-copy."
        )
    return location


def paths(flag: str, value: Any) -> list[str]:
    return [path(flag, one) for one in texts(flag, value)]


def data(flag: str, value: Any) -> str | MemoryData:
    """Return a path or a name, or rows in memory that `read_memory` has read."""
    if isinstance(value, (str, os.PathLike)):
        return path(flag, value)
    from minipeft.data.tables.memory import MemoryData

    if not isinstance(value, MemoryData):
        raise MinipeftError(f"{flag}: rows in memory need a training split in memory. Pass it as data.")
    return value


def boolean(flag: str, value: Any) -> bool:
    """Return True or False, NumPy's included; a string such as "false" would be true in Python."""
    if isinstance(value, bool) or (getattr(getattr(value, "dtype", None), "kind", None) == "b" and value.ndim == 0):
        return bool(value)
    raise MinipeftError(f"{flag} {short_repr(value)} is not True or False. Pass one of the two, without quotes.")


def choice(*choices: str) -> Callable[[str, Any], str]:
    """Return the check of a setting with these values."""

    def check(flag: str, value: Any) -> str:
        check_choice(flag, value, choices)
        return str(value)

    return check


def on_off(flag: str, value: Any) -> str:
    """Return "on", "off" or "auto"; True is "on", and False is "off"."""
    return choice("auto", "on", "off")(flag, {True: "on", False: "off"}[value] if isinstance(value, bool) else value)


def texts(flag: str, value: Any) -> list[str]:
    """Return one text or several as a list."""
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, (list, tuple)) or not all(isinstance(one, str) for one in several):
        raise MinipeftError(f"{flag} {short_repr(value)} is not a text or a list of texts. Pass a list.")
    return list(several)


def limited(fits: Callable[[float], bool], rule: str) -> Callable[[str, Any], float]:
    """Return the check of a number of 0 or more that `fits`; `rule` ends the error message."""

    def check(flag: str, value: Any) -> float:
        if not fits(number := not_negative(flag, value)):
            raise MinipeftError(f"{flag} {short_repr(value)} is not {rule}")
        return number

    return check


fraction = limited(lambda number: 0 < number < 1, "a fraction of the training split. Choose one such as 0.1.")
below_one = limited(lambda number: number < 1, "a number from 0 to below 1. Choose a smaller one.")
above_zero = limited(lambda number: number > 0, "above 0. Choose a larger one.")


def fold(flag: str, value: Any) -> str:
    """Return a fold such as "2/5"."""
    number, _, num_folds = str(value).partition("/")
    if not (number.isdecimal() and num_folds.isdecimal() and 1 <= int(number) <= int(num_folds) >= 2):
        raise MinipeftError(f"{flag} {short_repr(value)} is not a fold. Write one such as 2/5, the second of five.")
    return f"{int(number)}/{int(num_folds)}"


def separator(flag: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) != 1:
        raise MinipeftError(f"{flag} {short_repr(value)} is not a character. Write one such as ';'.")
    return value


def threshold(flag: str, value: Any) -> float | str:
    """Return "auto", or a probability."""
    if isinstance(value, str) and value == "auto":
        return "auto"
    with suppress(ValueError, MinipeftError):
        if 0 < (number := float(value) if isinstance(value, str) else check_float(flag, value)) < 1:
            return number
    raise MinipeftError(f"{flag} {short_repr(value)} is not a probability between 0 and 1. Choose one, or auto.")


def class_weights(flag: str, value: Any) -> str | dict[str, float]:
    """Return "balanced", or the weights by class name from a dict or NAME=WEIGHT texts."""
    if isinstance(value, dict):
        return {str(name): above_zero(f"{flag} {name}", weight) for name, weight in value.items()}
    if (given := texts(flag, value)) == ["balanced"]:
        return "balanced"
    weights = {}
    for one in given:
        name, _, weight = one.rpartition("=")
        try:
            weights[name] = above_zero(f"{flag} {name}", float(weight if "=" in one else ""))
        except ValueError:
            message = f"{flag}: {one!r} is not NAME=WEIGHT. Write it such as spam=5, or pass balanced."
            raise MinipeftError(message) from None
    return weights


def options(flag: str, value: Any) -> dict[str, Any]:
    """Return a method's options from a dict or from NAME=VALUE texts; the value is JSON where it can be."""
    if isinstance(value, dict):
        return {text(flag, name): option for name, option in value.items()}
    table: dict[str, Any] = {}
    for one in texts(flag, value):
        name, equals, option = one.partition("=")
        if not name or not equals:
            raise MinipeftError(f"{flag}: {one!r} is not NAME=VALUE. Write it such as rslora=true.")
        table[name.replace("-", "_")] = option
        with suppress(ValueError):
            table[name.replace("-", "_")] = json.loads(option)
    return table


def trackers(flag: str, value: Any) -> tuple[str, ...]:
    """Return the names of trackers that are installed; () for "none"."""
    names = dict.fromkeys(texts(flag, value))
    for name in names:
        check_choice(flag, name, (*TRACKERS, "none"))
        if name != "none" and not is_installed(name):
            raise MinipeftError(f"{flag} {name}: it is not installed. Run pip install {name}, or leave it out.")
    named = tuple(name for name in names if name != "none")
    if "none" in names and named:
        raise MinipeftError(f"{flag} none has no meaning together with {named[0]}. Leave one out.")
    return named
