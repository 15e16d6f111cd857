"""The check of each setting's value, which returns it in its right type."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from minipeft.data.tables.memory import MemoryData, is_in_memory
from minipeft.data.tokens.long_texts import POOLINGS
from minipeft.errors import MinipeftError, check_choice, check_float, check_int, check_seed
from minipeft.training.optimization.schedule import LR_SCHEDULES
from minipeft.training.reporting.trackers import check_trackers


def _text(flag: str, value: Any) -> str:
    return str(value)


def _source(flag: str, value: Any) -> str | MemoryData:
    if is_in_memory(value):
        raise MinipeftError(f"{flag}: rows in memory need a training split in memory. Pass it as data.")
    return value if isinstance(value, MemoryData) else str(value)


def _fraction(flag: str, value: Any) -> float:
    if not 0 < (number := check_float(flag, value, least=0.0)) < 1:
        raise MinipeftError(f"{flag} {value!r} is not a fraction of the training split. Choose one such as 0.1.")
    return number


def _below_one(flag: str, value: Any) -> float:
    if not (number := check_float(flag, value, least=0.0)) < 1:
        raise MinipeftError(f"{flag} {value!r} is not a number from 0 to below 1. Choose a smaller one.")
    return number


def _above_zero(flag: str, value: Any) -> float:
    if not (number := check_float(flag, value, least=0.0)) > 0:
        raise MinipeftError(f"{flag} {value!r} is not above 0. Choose a larger one.")
    return number


def _separator(flag: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) != 1:
        raise MinipeftError(f"{flag} {value!r} is not a character. Write one such as ';'.")
    return value


def _threshold(flag: str, value: Any) -> float | str:
    """Return "auto", or a probability."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if value != "auto" and not 0 < number < 1:
        raise MinipeftError(f"{flag} {value!r} is not a probability between 0 and 1. Choose one, or auto.")
    return "auto" if value == "auto" else number


def _class_weights(flag: str, value: Any) -> str | dict[str, float]:
    """Return "balanced", or the weights by class name from a dict or NAME=WEIGHT texts."""
    given = [value] if isinstance(value, str) else value
    if given == ["balanced"]:
        return "balanced"
    if isinstance(given, dict):
        weights = {str(name): _above_zero(f"{flag} {name}", weight) for name, weight in given.items()}
    else:
        weights = {}
        for text in given:
            name, equals, weight = str(text).rpartition("=")
            try:
                number = float(weight)
            except ValueError:
                number = math.nan
            if not equals or math.isnan(number):
                raise MinipeftError(f"{flag}: {text!r} is not NAME=WEIGHT. Write it such as spam=5, or pass balanced.")
            weights[name] = _above_zero(f"{flag} {name}", number)
    return weights


def _choice(choices: Iterable[str], flag: str, value: Any) -> str:
    check_choice(flag, value, choices)
    return str(value)


def parse_options(options: Any, flag: str = "--method-options") -> dict[str, Any]:
    """Return a method's options as a dict, from one or from NAME=VALUE texts; the value is JSON where it can be."""
    if options is None or isinstance(options, dict):
        return dict(options or {})
    table = {}
    for text in options if isinstance(options, (list, tuple)) else [options]:
        name, equals, value = str(text).partition("=")
        if not name or not equals:
            raise MinipeftError(f"{flag}: {text!r} is not NAME=VALUE. Write it such as rslora=true.")
        try:
            table[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            table[name.replace("-", "_")] = value
    return table


def _options(flag: str, value: Any) -> dict[str, Any]:
    return parse_options(value, flag)


# The check of each value by its name: (flag, value) → the value in its right type. What is not here is a bool.
CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("task", "method", "model", "precision", "device", "output", "init_adapter"), _text),
    **dict.fromkeys(("text_column", "pair_column", "label_column", "label_type", "select_by"), _text),
    **dict.fromkeys(("data", "validation"), _source),
    **dict.fromkeys(("epochs", "steps", "batch_size", "grad_accum", "max_length", "max_tokens"), check_int),
    **dict.fromkeys(("patience", "eval_every", "train_limit", "eval_limit"), check_int),
    **dict.fromkeys(("lr", "weight_decay", "max_grad_norm"), partial(check_float, least=0.0)),
    **dict.fromkeys(("checkpoint_minutes", "group_timeout"), partial(check_float, least=0.0)),
    **dict.fromkeys(("beta1", "beta2", "warmup_ratio", "label_smoothing"), _below_one),
    "class_weights": _class_weights,
    "label_separator": _separator,
    "threshold": _threshold,
    "epsilon": _above_zero,
    "lr_schedule": partial(_choice, LR_SCHEDULES),
    "long_text": partial(_choice, ("truncate", "window")),
    "window_pooling": partial(_choice, POOLINGS),
    **dict.fromkeys(("stride", "warmup_steps"), partial(check_int, least=0)),
    "holdout": _fraction,
    "seed": check_seed,
    "method_options": _options,
    "report_to": check_trackers,
}
