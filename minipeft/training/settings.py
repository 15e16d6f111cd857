"""What the user asked for, checked value by value; job.py makes a complete job of it."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar

from minipeft.data.memory import MemoryData, is_in_memory, read_memory
from minipeft.data.windows import POOLINGS
from minipeft.errors import MinipeftError, check_choice, check_float, check_int, check_seed
from minipeft.methods import get_method, method_name
from minipeft.training.events import check_trackers
from minipeft.training.optim import LR_SCHEDULES
from minipeft.training.recipes import (
    ALPHA,
    BATCH_SIZE,
    BETA1,
    BETA2,
    CHECKPOINT_MINUTES,
    DROPOUT,
    EPSILON,
    GRAD_ACCUM,
    GROUP_TIMEOUT,
    MAX_GRAD_NORM,
    RANK,
    WEIGHT_DECAY,
)
from minipeft.training.setting_names import nearest_setting

Keywords = ParamSpec("Keywords")
Answer = TypeVar("Answer")

METHOD_FLAGS = ("rank", "alpha", "dropout", "targets")  # flags of their own; the other options are --method-options
REPORT = {"rank": RANK, "alpha": ALPHA, "dropout": DROPOUT}  # the defaults of lora and dora
# Settings of an initial adapter that a run may change: they do not change what the adapter computes.
FREE_OF_ADAPTER = ("dropout", "lr_ratio")
EXCLUSIVE = (("epochs", "steps"), ("warmup_steps", "warmup_ratio"))  # settings of which a user gives one


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What the user asked for: the keywords of `minipeft.train` and the flags of train.py. None: not given."""

    task: str = "auto"
    method: str | Any = "lora"  # a name; to minipeft.train, also a config such as LoRA(rank=2)
    rank: int | None = None
    alpha: float | None = None
    dropout: float | None = None
    targets: tuple[str, ...] | None = None
    method_options: dict[str, Any] | list[str] | None = None
    init_adapter: str | None = None
    model: str = "auto"
    data: str | Any = "auto"  # a name; to minipeft.train, also rows in memory
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None
    label_type: str = "auto"
    label_separator: str | None = None
    threshold: float | str = 0.5
    validation: str | Any | None = None  # like data
    class_weights: str | list[str] | dict[str, float] | None = None
    label_smoothing: float = 0.0
    holdout: float | None = None
    select_by: str | None = None
    patience: int | None = None
    eval_every: int | None = None
    epochs: int | None = None
    steps: int | None = None
    lr: float | None = None
    lr_schedule: str = "linear"
    batch_size: int = BATCH_SIZE
    grad_accum: int = GRAD_ACCUM
    warmup_steps: int | None = None
    warmup_ratio: float | None = None
    weight_decay: float = WEIGHT_DECAY
    beta1: float = BETA1
    beta2: float = BETA2
    epsilon: float = EPSILON
    max_grad_norm: float = MAX_GRAD_NORM
    max_length: int | None = None
    long_text: str = "truncate"
    stride: int | None = None
    window_pooling: str = "mean"
    seed: int = 42
    precision: str = "auto"
    device: str = "auto"
    max_tokens: int | None = None
    compile: bool = False
    activation_checkpointing: bool = False
    cuda_graphs: bool = False
    train_limit: int | None = None
    eval_limit: int | None = None
    output: str | None = None
    checkpoint_minutes: float = CHECKPOINT_MINUTES
    group_timeout: float = GROUP_TIMEOUT
    resume: bool = False
    quiet: bool = False
    report_to: tuple[str, ...] | None = None


def keywords_of(settings: Callable[Keywords, Any]) -> Callable[[Callable[..., Answer]], Callable[Keywords, Answer]]:
    """Give a function that takes **settings the settings' signature, for help(), completion and type checkers."""

    def decorate(function: Callable[..., Answer]) -> Callable[Keywords, Answer]:
        answer = inspect.signature(function, eval_str=True).return_annotation
        signature = inspect.signature(settings, eval_str=True).replace(return_annotation=answer)
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return decorate


def read_settings(given: dict[str, Any]) -> TrainSettings:
    """Return `minipeft.train`'s keywords as settings; a method's config gives its fields.

    Raises:
        MinipeftError: for an unknown name, and for a value of the wrong kind.
    """
    known = [field.name for field in dataclasses.fields(TrainSettings)]
    if unknown := sorted(set(given) - set(known)):
        meant = nearest_setting(unknown[0], known)
        raise MinipeftError(f"unknown setting {unknown[0]!r}{meant}. The settings are train.py's flags.")
    if is_in_memory(given.get("data")):
        validation = given.get("validation")
        given = given | {"data": read_memory(given["data"], validation), "validation": None}
    method = given.get("method")
    if method is not None and not isinstance(method, str):
        fields = dataclasses.asdict(method) if dataclasses.is_dataclass(method) else {}  # type: ignore[arg-type]
        name = method_name(method)
        options = parse_options(given.get("method_options"))
        if twice := sorted(set(fields) & (set(given) | set(options))):
            value = given.get(twice[0], options.get(twice[0]))
            raise MinipeftError(f"{twice[0]} is given twice, in {method!r} and as {value!r}. Give it once.")
        given = given | {"method": name, **{flag: fields.pop(flag) for flag in METHOD_FLAGS if flag in fields}}
        given["method_options"] = options | fields
    settings = TrainSettings(**given)
    defaults = {field.name: field.default for field in dataclasses.fields(TrainSettings)}
    checked: dict[str, Any] = {
        name: defaults[name] if (value := getattr(settings, name)) is None else check(_flag(name), value)
        for name, check in CHECKS.items()
    }
    settings = dataclasses.replace(settings, **checked)
    for one, other in EXCLUSIVE:
        first, second = getattr(settings, one), getattr(settings, other)
        if first is not None and second is not None:
            raise MinipeftError(f"{_flag(one)} {first} and {_flag(other)} {second} exclude each other. Leave one out.")
    for name in ("stride", "window_pooling") if settings.long_text == "truncate" else ():
        if (value := getattr(settings, name)) != defaults[name]:
            raise MinipeftError(f"{_flag(name)} {value!r} is for --long-text window. Add it, or leave the flag out.")
    return settings


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _text(flag: str, value: Any) -> str:
    return str(value)


def _source(flag: str, value: Any) -> str | MemoryData:
    if is_in_memory(value):
        raise MinipeftError(f"{flag}: rows in memory need a training split in memory. Pass it as data.")
    return value if isinstance(value, MemoryData) else str(value)


def _seed(flag: str, value: Any) -> int:
    return check_seed(value)


def _non_negative_int(flag: str, value: Any) -> int:
    return check_int(flag, value, least=0)


def _positive(flag: str, value: Any) -> float:
    return check_float(flag, value, least=0.0)


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
    **dict.fromkeys(("patience", "eval_every"), check_int),
    **dict.fromkeys(("train_limit", "eval_limit"), check_int),
    **dict.fromkeys(("lr", "weight_decay", "checkpoint_minutes", "group_timeout", "max_grad_norm"), _positive),
    **dict.fromkeys(("beta1", "beta2", "warmup_ratio", "label_smoothing"), _below_one),
    "class_weights": _class_weights,
    "label_separator": _separator,
    "threshold": _threshold,
    "epsilon": _above_zero,
    "lr_schedule": partial(_choice, LR_SCHEDULES),
    "long_text": partial(_choice, ("truncate", "window")),
    "window_pooling": partial(_choice, POOLINGS),
    "stride": _non_negative_int,
    "warmup_steps": _non_negative_int,
    "holdout": _fraction,
    "seed": _seed,
    "method_options": _options,
    "report_to": check_trackers,
}


def choose_method(settings: TrainSettings, initial: Any = None) -> Any:
    """Return the method's config.

    Args:
        settings: the method by name, and its options.
        initial: the method of an adapter that the run is initialized from. Options that are not given are the
            adapter's; those that are given must not change what it computes.

    Raises:
        MinipeftError: for an option that the method does not have.
    """
    config = get_method(settings.method)
    fields = {f.name for f in dataclasses.fields(config)}
    flags = {name: getattr(settings, name) for name in METHOD_FLAGS if getattr(settings, name) is not None}
    options = parse_options(settings.method_options)
    for name, value in flags.items():
        if name not in fields:
            raise MinipeftError(f"--{name} {value!r} has no meaning for {settings.method}. Leave it out.")
    for name in options:
        if name not in fields or name in METHOD_FLAGS:
            known = ", ".join(f.name for f in dataclasses.fields(config) if f.name not in METHOD_FLAGS) or "none"
            raise MinipeftError(f"--method-options: {settings.method} has no {name!r}. Its options are: {known}.")
    defaults = {name: value for name, value in REPORT.items() if settings.method in ("lora", "dora")}
    if initial is not None:
        if type(initial) is not config:
            raise MinipeftError(
                f"--init-adapter {settings.init_adapter} holds {initial!r}. Pass --method {method_name(initial)}."
            )
        defaults = dataclasses.asdict(initial)
    method = config(**(defaults | flags | options))
    for name in defaults if initial is not None else ():
        if name not in FREE_OF_ADAPTER and getattr(method, name) != getattr(initial, name):
            raise MinipeftError(
                f"--init-adapter {settings.init_adapter} holds {initial!r}: {name} {getattr(method, name)!r} "
                "would change what it computes. Leave it out."
            )
    return method


def non_default_options(method: Any) -> dict[str, Any]:
    """Return a method's options that have no flag of their own, where they are not the default."""
    default = type(method)()
    names = [f.name for f in dataclasses.fields(method) if f.name not in METHOD_FLAGS]
    return {name: getattr(method, name) for name in names if getattr(method, name) != getattr(default, name)}
