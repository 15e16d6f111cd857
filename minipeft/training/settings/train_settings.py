"""What the user asked for; checks.py checks each value, and job.py makes a complete job of it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from minipeft.data.tables.memory import is_in_memory, read_memory
from minipeft.errors import MinipeftError, nearest
from minipeft.methods import changed_options, get_method, method_name
from minipeft.training.settings import recipes
from minipeft.training.settings.checks import CHECKS, parse_options
from minipeft.training.settings.other_names import nearest_setting

Keywords = ParamSpec("Keywords")
Answer = TypeVar("Answer")

METHOD_FLAGS = ("rank", "alpha", "dropout", "targets")  # flags of their own; the other options are --method-options
REPORT = {"rank": recipes.RANK, "alpha": recipes.ALPHA, "dropout": recipes.DROPOUT}  # the defaults of lora and dora
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
    batch_size: int = recipes.BATCH_SIZE
    grad_accum: int = recipes.GRAD_ACCUM
    warmup_steps: int | None = None
    warmup_ratio: float | None = None
    weight_decay: float = recipes.WEIGHT_DECAY
    beta1: float = recipes.BETA1
    beta2: float = recipes.BETA2
    epsilon: float = recipes.EPSILON
    max_grad_norm: float = recipes.MAX_GRAD_NORM
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
    checkpoint_minutes: float = recipes.CHECKPOINT_MINUTES
    group_timeout: float = recipes.GROUP_TIMEOUT
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
            known = [f.name for f in dataclasses.fields(config) if f.name not in METHOD_FLAGS]
            raise MinipeftError(
                f"--method-options: {settings.method} has no {name!r}{nearest(name, known)}. "
                f"Its options are: {', '.join(known) or 'none'}."
            )
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
    return {name: value for name, value in changed_options(method).items() if name not in METHOD_FLAGS}
