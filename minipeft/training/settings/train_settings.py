"""The table of a training's settings: keywords of `minipeft.train`, flags of train.py, and content of config.json.

A setting is one row. Its flag and help (cli/flags.py), its check, the docstring of `minipeft.train` and what --resume
allows derive from the row; choices.py and job.py complete the settings that are None.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from minipeft.data.tables.memory import is_in_memory, read_memory
from minipeft.data.tasks.task import TASKS
from minipeft.device import MAX_TOKENS, choose_max_tokens
from minipeft.errors import MinipeftError, check_float, check_int, check_probability, check_seed
from minipeft.methods import METHODS, method_name
from minipeft.training.optimization.schedule import LR_SCHEDULES
from minipeft.training.settings import checks, recipes
from minipeft.training.settings.setting import check_given, describe_settings, rows, setting, signature_of

Keywords = ParamSpec("Keywords")
Answer = TypeVar("Answer")

METHOD_NAMES = ", ".join(METHODS)
METHOD_FLAGS = ("rank", "alpha", "dropout", "targets")  # flags of their own; the other options are --method-options
EXCLUSIVE = (("epochs", "steps"), ("warmup_steps", "warmup_ratio"))  # settings of which a user gives one

DATA, MODEL, METHOD = "task and data", "model", "method"
OPTIMIZATION, HARDWARE, OUTPUT = "optimization", "hardware", "output"


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What the user asked for; None: not given, and chosen by the task, the method, the model or the device."""

    task: str = setting(
        "auto", checks.text, DATA, f"{', '.join(TASKS)}, or a name for a custom dataset [auto: rte, or --data's name]"
    )
    data: str | Any = setting(  # to minipeft.train, also rows in memory
        "auto",
        checks.data,
        DATA,
        "a file, folder or address, a data set of the hub (owner/name:config), or GLUE's folder [auto: GLUE]",
        on_resume="may change",
    )
    long_text: str = setting(
        "truncate", checks.choice("truncate", "window"), DATA, "over --max-length: truncate, or window to split it"
    )
    stride: int | None = setting(
        None, checks.whole, DATA, "tokens that two windows have in common [--max-length / 4]", metavar="N"
    )
    window_pooling: str = setting(
        "mean", checks.choice("mean", "max"), DATA, "of a text's windows: mean or max of their logits"
    )
    text_column: str | None = setting(
        None, checks.text, DATA, "of a custom dataset: the texts [text]", metavar="COLUMN"
    )
    pair_column: str | None = setting(
        None, checks.text, DATA, "of a custom dataset: the second texts [none]", metavar="COLUMN"
    )
    label_column: str | None = setting(
        None, checks.text, DATA, "of a custom dataset: the labels, as names or numbers [label]", metavar="COLUMN"
    )
    label_type: str = setting("auto", checks.text, DATA, "of a custom dataset: classes, numbers or multilabel")
    label_separator: str | None = setting(
        None,
        checks.separator,
        DATA,
        "character between labels, for multilabel [none: the labels are lists]",
        metavar="C",
    )
    threshold: float | str = setting(
        0.5, checks.threshold, DATA, "probability of a predicted label, or auto, for multilabel"
    )
    validation: str | Any | None = setting(  # like data
        None,
        checks.data,
        DATA,
        "of a custom dataset: a file, or a split [10 percent of the rows]",
        metavar="SPLIT",
        on_resume="may change",
    )
    holdout: float | None = setting(
        None, checks.fraction, DATA, "of the training split, to choose the best epoch on [none]", metavar="FRACTION"
    )
    max_length: int | None = setting(
        None, check_int, DATA, "tokens; longer sequences are truncated [512, or the model's]", metavar="N"
    )
    train_limit: int | None = setting(None, check_int, DATA, "train on the first N examples [all]", metavar="N")
    eval_limit: int | None = setting(None, check_int, DATA, "evaluate on the first N examples [all]", metavar="N")

    model: str = setting(
        "auto", checks.path, MODEL, "a name or a folder [auto: roberta-base, else the bundled roberta-mini]"
    )
    init_adapter: str | None = setting(
        None, checks.path, MODEL, "start from another run's adapter; a new head for other labels [none]", metavar="RUN"
    )

    method: str | Any = setting("lora", checks.text, METHOD, METHOD_NAMES)  # to minipeft.train, also LoRA(rank=2), …
    rank: int | None = setting(None, check_int, METHOD, f"LoRA's rank [{recipes.RANK}]", metavar="N")
    alpha: float | None = setting(
        None, check_float, METHOD, f"LoRA's alpha; alpha / rank scales the update [{recipes.ALPHA:g}]"
    )
    dropout: float | None = setting(None, check_probability, METHOD, f"on LoRA's input [{recipes.DROPOUT:g}]")
    targets: tuple[str, ...] | None = setting(
        None,
        checks.texts,
        METHOD,
        "query key value output intermediate ffn_output [query value]",
        several=True,
    )
    method_options: dict[str, Any] | list[str] | None = setting(
        None,
        checks.options,
        METHOD,
        "other settings of the method: rslora=true … [none]",
        metavar="NAME=VALUE",
        several=True,
    )

    epochs: int | None = setting(
        None, check_int, OPTIMIZATION, "passes over the data [{epochs}]", metavar="N", on_resume="may grow"
    )
    lr: float | None = setting(None, checks.not_negative, OPTIMIZATION, "peak learning rate [{lr}]")
    steps: int | None = setting(
        None,
        check_int,
        OPTIMIZATION,
        "optimizer steps, in place of --epochs [those of the epochs]",
        metavar="N",
        on_resume="may grow",
    )
    lr_schedule: str = setting(
        "linear", checks.choice(*LR_SCHEDULES), OPTIMIZATION, "linear, cosine or constant after the warmup"
    )
    batch_size: int = setting(recipes.BATCH_SIZE, check_int, OPTIMIZATION, "sequences", metavar="N")
    grad_accum: int = setting(recipes.GRAD_ACCUM, check_int, OPTIMIZATION, "batches in a step", metavar="N")
    warmup_steps: int | None = setting(
        None,
        checks.whole,
        OPTIMIZATION,
        f"linear [{recipes.WARMUP_STEPS}; of fewer than 900, 10 percent]",
        metavar="N",
    )
    warmup_ratio: float | None = setting(
        None, checks.below_one, OPTIMIZATION, "warmup as a fraction of the steps [--warmup-steps]", metavar="X"
    )
    weight_decay: float = setting(recipes.WEIGHT_DECAY, checks.not_negative, OPTIMIZATION, "AdamW's, on matrices")
    beta1: float = setting(recipes.BETA1, checks.below_one, OPTIMIZATION, "AdamW's", metavar="X")
    beta2: float = setting(recipes.BETA2, checks.below_one, OPTIMIZATION, "AdamW's", metavar="X")
    epsilon: float = setting(recipes.EPSILON, checks.above_zero, OPTIMIZATION, "AdamW's", metavar="X")
    max_grad_norm: float = setting(recipes.MAX_GRAD_NORM, checks.not_negative, OPTIMIZATION, "0: no clipping")
    class_weights: str | list[str] | dict[str, float] | None = setting(
        None,
        checks.class_weights,
        OPTIMIZATION,
        "balanced, or NAME=WEIGHT … for the loss [all 1]",
        metavar="NAME=WEIGHT",
        several=True,
    )
    label_smoothing: float = setting(
        0.0, checks.below_one, OPTIMIZATION, "of the targets, towards all classes", metavar="X"
    )
    select_by: str | None = setting(
        None,
        checks.text,
        OPTIMIZATION,
        "a metric, or eval_loss, to choose the best epoch [the task's first]",
        metavar="METRIC",
    )
    patience: int | None = setting(
        None, check_int, OPTIMIZATION, "stop after so many without a better --select-by [none]", metavar="EPOCHS"
    )
    eval_every: int | None = setting(
        None, check_int, OPTIMIZATION, "evaluate within epochs too [only at the end of each]", metavar="STEPS"
    )
    seed: int = setting(42, check_seed, OPTIMIZATION, "of the head, LoRA's A, the order and dropout")

    device: str = setting("auto", checks.text, HARDWARE, "auto, cpu, cuda, cuda:1 … or mps", on_resume="of the call")
    precision: str = setting(
        "auto",
        checks.choice("auto", "fp32", "bf16"),
        HARDWARE,
        "auto, fp32 or bf16 [auto: bf16 where that is native, else fp32]",
    )
    max_tokens: int | None = setting(
        None, check_int, HARDWARE, "tokens of a batch; bounds the memory [{max_tokens}]", metavar="N"
    )
    compile: bool = setting(
        False, checks.boolean, HARDWARE, "let torch.compile fuse the small operations", on_resume="of the call"
    )
    activation_checkpointing: bool = setting(
        False, checks.boolean, HARDWARE, "compute layers twice: less memory, more time", on_resume="of the call"
    )
    cuda_graphs: bool = setting(
        False,
        checks.boolean,
        HARDWARE,
        "record and replay a batch's CUDA operations: less overhead",
        on_resume="of the call",
    )
    group_timeout: float = setting(
        recipes.GROUP_TIMEOUT,
        checks.not_negative,
        HARDWARE,
        "minutes until a lost node counts",
        on_resume="of the call",
    )

    output: str | None = setting(
        None,
        checks.path,
        OUTPUT,
        "folder of the run [runs/<task>-<method>…]",
        metavar="DIR",
        on_resume="of the call",
    )
    checkpoint_minutes: float = setting(
        recipes.CHECKPOINT_MINUTES, checks.not_negative, OUTPUT, "between two", on_resume="may change"
    )
    resume: bool = setting(
        False, checks.boolean, OUTPUT, "continue from the run's last checkpoint", on_resume="of the call"
    )
    report_to: tuple[str, ...] | None = setting(
        None,
        checks.trackers,
        OUTPUT,
        "tensorboard, wandb, mlflow or none [tensorboard, if there]",
        metavar="TRACKER",
        several=True,
        on_resume="may change",
    )
    quiet: bool = setting(False, checks.boolean, OUTPUT, "no banner and no progress bars", on_resume="of the call")


def recipe_defaults(
    task: str = "rte", method: str = "lora", model: str = "roberta-base", shape: tuple[int, str] = (768, "roberta")
) -> Mapping[str, str]:
    """Return what --help says of the defaults that a recipe decides, by setting.

    Args:
        task: the task's name, or a custom dataset's.
        method: the method's name.
        model: the model's name.
        shape: the model's hidden size and model_type.
    """
    recipe = recipes.recipe(task if task in recipes.LORA_RECIPES else None, method, *shape)
    tokens, bf16_tokens = (choose_max_tokens("cpu", precision, shape[0]) for precision in ("fp32", "bf16"))
    choice = f"for {task}, {method}, {model}"
    return {
        "epochs": f"{recipe.epochs} {choice}",
        "lr": f"{recipe.lr:g} {choice}",
        "max_tokens": f"CPU {tokens}, in bf16 {bf16_tokens}; CUDA {MAX_TOKENS['cuda']}",
    }


def keywords_of(settings: Callable[Keywords, Any]) -> Callable[[Callable[..., Answer]], Callable[Keywords, Answer]]:
    """Give a function that takes **settings the rows of TrainSettings as signature and in its docstring."""

    def decorate(function: Callable[..., Answer]) -> Callable[Keywords, Answer]:
        answer = inspect.signature(function, eval_str=True).return_annotation
        signature = inspect.Signature(signature_of(TrainSettings), return_annotation=answer)
        function.__signature__ = signature  # type: ignore[attr-defined]
        function.__doc__ = f"{(function.__doc__ or '').rstrip()}{describe_settings(TrainSettings, recipe_defaults())}"
        return function

    return decorate


def read_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `minipeft.train`'s keywords that are given, checked; a method's config becomes its name and its fields.

    Raises:
        MinipeftError: for an unknown name, a value of the wrong type, and settings that exclude each other.
    """
    wanted = dict(given)
    if is_in_memory(wanted.get("data")):
        wanted["data"] = read_memory(wanted["data"], wanted.pop("validation", None))
    if not isinstance(wanted.get("method", ""), str | None):
        wanted |= _settings_of_method(wanted)
    checked = check_given(TrainSettings, wanted)
    for one, other in EXCLUSIVE:
        if one in checked and other in checked:
            flags = rows(TrainSettings)[one].flag, rows(TrainSettings)[other].flag
            raise MinipeftError(
                f"{flags[0]} {checked[one]} and {flags[1]} {checked[other]} exclude each other. Leave one out."
            )
    return checked


def _settings_of_method(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that say the same as method=LoRA(rank=2, …)."""
    method, name = given["method"], method_name(given["method"])
    fields = dataclasses.asdict(method)
    options = checks.options("--method-options", given.get("method_options") or {})
    others = {flag: given[flag] for flag in METHOD_FLAGS if given.get(flag) is not None} | options
    if twice := sorted(set(fields) & set(others)):
        value = others[twice[0]]
        raise MinipeftError(f"{twice[0]} is given twice, in {method!r} and as {value!r}. Give it once.")
    flags = {flag: fields.pop(flag) for flag in METHOD_FLAGS if flag in fields}
    return {"method": name, **flags, "method_options": options | fields}


def check_windows(settings: TrainSettings) -> None:
    """Raise for settings of windows without --long-text window."""
    for name in ("stride", "window_pooling") if settings.long_text == "truncate" else ():
        row, value = rows(TrainSettings)[name], getattr(settings, name)
        if value != row.default:
            raise MinipeftError(f"{row.flag} {value!r} is for --long-text window. Add it, or leave the flag out.")
