"""A run's settings, checked: numbers of the right kind, and the method that they describe."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from minipeft.data.custom import CustomData, inspect_custom_data, is_custom
from minipeft.data.tasks import Task, get_task
from minipeft.errors import MinipeftError, check_seed, finite_number, whole_number
from minipeft.methods import get_method, method_name
from minipeft.training.recipes import ALPHA, DROPOUT, RANK, WARMUP_STEPS, TrainSettings

LONGEST = 512  # tokens, where the model takes more
NAMES = (
    *("task", "method", "model", "data", "precision", "device", "output", "init_adapter"),
    *("text_column", "pair_column", "label_column", "label_type", "validation"),
)
METHOD_FLAGS = ("rank", "alpha", "dropout", "targets")  # flags of their own; the other options are --method-options
REPORT = {"rank": RANK, "alpha": ALPHA, "dropout": DROPOUT}  # the defaults of lora and its like
# What an adapter that a run starts from may leave to the run: it does not change what the adapter computes.
FREE_OF_ADAPTER = ("dropout", "lr_ratio")


def settings_of(given: dict[str, Any]) -> TrainSettings:
    """`minipeft.train`'s keywords as settings; a method's config gives its fields. Raises MinipeftError by name."""
    unknown = sorted(set(given) - {f.name for f in dataclasses.fields(TrainSettings)})
    if unknown:
        raise MinipeftError(f"unknown setting {unknown[0]!r}; the settings are train.py's flags")
    method = given.get("method")
    if method is not None and not isinstance(method, str):
        fields = dataclasses.asdict(method) if dataclasses.is_dataclass(method) else {}  # type: ignore[arg-type]
        name = method_name(method)
        options = _parsed(given.get("method_options"))
        if twice := sorted(set(fields) & (set(given) | set(options))):
            value = given.get(twice[0], options.get(twice[0]))
            raise MinipeftError(f"{twice[0]} is given twice, in {method!r} and as {value!r}; give it once")
        given = given | {"method": name, **{flag: fields.pop(flag) for flag in METHOD_FLAGS if flag in fields}}
        given["method_options"] = options | fields
    return _checked(TrainSettings(**given))


def _checked(wanted: TrainSettings) -> TrainSettings:
    """The settings with numbers of the right kind and names as text; what cannot be one is refused by its flag."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(TrainSettings):
        name, value, flag = field.name, getattr(wanted, field.name), f"--{field.name.replace('_', '-')}"
        if value is None:
            values[name] = field.default
        elif name in NAMES:
            values[name] = str(value)
        elif name == "holdout":
            values[name] = finite_number(flag, value, least=0.0)
            if not 0 < values[name] < 1:
                raise MinipeftError(f"--holdout {value!r} is no part of the training split; choose one such as 0.1")
        elif name == "seed":
            values[name] = check_seed(value)
        elif name == "warmup_steps":
            values[name] = whole_number(flag, value, least=0)
        elif name in ("lr", "weight_decay", "checkpoint_minutes"):
            values[name] = finite_number(flag, value, least=0.0)
        elif name in ("epochs", "batch_size", "grad_accum", "max_length", "max_tokens", "train_limit", "eval_limit"):
            values[name] = whole_number(flag, value)
        elif name == "method_options":
            values[name] = _parsed(value)
    return dataclasses.replace(wanted, **values)


def _parsed(options: Any) -> dict[str, Any]:
    """A method's options as a table, from one or from NAME=VALUE texts, the value as JSON where it is JSON."""
    if options is None or isinstance(options, dict):
        return dict(options or {})
    table = {}
    for text in options if isinstance(options, (list, tuple)) else [options]:
        name, equals, value = str(text).partition("=")
        if not name or not equals:
            raise MinipeftError(f"--method-options: {text!r} is not NAME=VALUE, such as rslora=true")
        try:
            table[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            table[name.replace("-", "_")] = value
    return table


def choose_task(wanted: TrainSettings) -> tuple[TrainSettings, Task, CustomData | None]:
    """The task, and what is known of one's own data where --data names them.

    The settings come back with the task's name and, of one's own data, all that reloads the task.
    """
    given = {name: getattr(wanted, name) for name in ("text_column", "pair_column", "label_column", "validation")}
    if is_custom(wanted.task, wanted.data):
        own = inspect_custom_data(wanted.task, wanted.data, label_type=wanted.label_type, **given)
        found: dict[str, Any] = {
            "text_column": own.task.columns[0],
            "pair_column": own.task.columns[1] if len(own.task.columns) == 2 else None,
            "label_column": own.task.label_column,
            "label_type": "numbers" if own.task.is_regression else "classes",
            "validation": dict(own.task.files).get("validation"),
        }
        return dataclasses.replace(wanted, task=own.task.name, **found), own.task, own
    task = get_task("rte" if wanted.task == "auto" else wanted.task)
    for name, value in (given | {"label_type": None if wanted.label_type == "auto" else wanted.label_type}).items():
        if value is not None:
            raise MinipeftError(
                f"--{name.replace('_', '-')} {value!r} is for your own data, and {task.name} is GLUE's; "
                "name your file by --data, or leave it out"
            )
    return dataclasses.replace(wanted, task=task.name), task, None


def short_warmup(rows: int, epochs: int, wanted: TrainSettings) -> int:
    """A tenth of the steps, which are few on a small file of one's own, up to the usual warmup."""
    examples = min(rows, wanted.train_limit or rows)
    return min(WARMUP_STEPS, epochs * examples // (wanted.batch_size * wanted.grad_accum) // 10)


def choose_method(wanted: TrainSettings, start: Any = None) -> tuple[Any, TrainSettings]:
    """The method's config, and the settings with its fields filled in; a field that it does not have is refused.

    `start` is the method of an adapter that the run starts from: what is not given is as there, and what is given must
    not change what that adapter computes.
    """
    config = get_method(wanted.method)
    fields = {f.name for f in dataclasses.fields(config)}
    flags = {name: getattr(wanted, name) for name in METHOD_FLAGS if getattr(wanted, name) is not None}
    options = _parsed(wanted.method_options)
    for name, value in flags.items():
        if name not in fields:
            raise MinipeftError(f"--{name} {value!r} has no meaning for {wanted.method}; leave it out")
    for name in options:
        if name not in fields or name in METHOD_FLAGS:
            own = ", ".join(f.name for f in dataclasses.fields(config) if f.name not in METHOD_FLAGS) or "none"
            raise MinipeftError(f"--method-options: {wanted.method} has no {name!r}; its options: {own}")
    defaults = {name: value for name, value in REPORT.items() if wanted.method in ("lora", "dora")}
    if start is not None:
        if type(start) is not config:
            raise MinipeftError(
                f"--init-adapter {wanted.init_adapter} holds {start!r}; pass --method {method_name(start)}"
            )
        defaults = dataclasses.asdict(start)
    method = config(**(defaults | flags | options))
    for name in defaults if start is not None else ():
        if name not in FREE_OF_ADAPTER and getattr(method, name) != getattr(start, name):
            raise MinipeftError(
                f"--init-adapter {wanted.init_adapter} holds {start!r}: {name} {getattr(method, name)!r} "
                "would change what it computes; leave it out"
            )
    chosen = {name: getattr(method, name) for name in METHOD_FLAGS if name in fields}
    return method, dataclasses.replace(wanted, method_options=_options(method), **chosen)


def _options(method: Any) -> dict[str, Any]:
    """A method's settings beside the flags, where they are not the default."""
    default = type(method)()
    names = [f.name for f in dataclasses.fields(method) if f.name not in METHOD_FLAGS]
    return {name: getattr(method, name) for name in names if getattr(method, name) != getattr(default, name)}


def choose_max_length(wanted: int | None, method: Any, longest: int) -> int:
    """--max-length, or what the model takes up to 512 tokens, less those that a method puts before a text."""
    longest -= getattr(method, "num_virtual_tokens", 0)
    if wanted is not None and wanted > longest:
        raise MinipeftError(
            f"--max-length {wanted} is beyond the model's position table; it takes up to {longest} tokens"
        )
    return wanted or min(LONGEST, longest)
