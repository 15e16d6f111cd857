"""The table of a training's settings: keywords of `minipeft.train`, flags of train.py, and content of config.json.

A setting is one row. Its flag and help (cli/flags.py), its check, the docstring of `minipeft.train` and what --resume
allows derive from the row; choices.py and job.py complete the settings that are None.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from minipeft.data.tasks.task import TASKS
from minipeft.device import MAX_TOKENS, choose_max_tokens
from minipeft.errors import MinipeftError, check_float, check_probability, check_seed
from minipeft.methods import METHODS, method_name
from minipeft.training.optimization.schedule import LR_SCHEDULES
from minipeft.training.settings import checks, recipes
from minipeft.training.settings.setting import (
    DATA,
    HARDWARE,
    METHOD,
    MODEL,
    OPTIM,
    OUTPUT,
    check_given,
    describe_settings,
    rows,
    signature_of,
)

Keywords = ParamSpec("Keywords")
Answer = TypeVar("Answer")

METHOD_NAMES = ", ".join(METHODS)
# Options of methods that are flags of their own; the others are given by --method-options.
METHOD_FLAGS = ("rank", "alpha", "dropout", "targets", "train_layers")
# Settings of which a user gives one.
EXCLUSIVE = (("epochs", "steps"), ("warmup_steps", "warmup_ratio"), ("validation", "fold"))


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What the user asked for; None: not given, and chosen by the task, the method, the model or the device."""

    task: str = DATA("auto", f"{', '.join(TASKS)}, or a name for a custom dataset [auto: rte, or --data's name]")
    # minipeft.train takes rows in memory too.
    data: str | Any = DATA(
        "auto",
        "a file, folder or address, a data set of the hub (owner/name:config), or GLUE's folder [auto: GLUE]",
        check=checks.data,
        on_resume="may change",
    )
    long_text: str = DATA(
        "truncate", "over --max-length: truncate, or window to split it", check=checks.choice("truncate", "window")
    )
    stride: int | None = DATA(None, "tokens that two windows have in common [--max-length / 4]", check=checks.whole)
    window_pooling: str = DATA(
        "mean", "of a text's windows: mean or max of their logits", check=checks.choice("mean", "max")
    )
    file_format: str | None = DATA(
        None, "of the files of a custom dataset: csv, tsv, jsonl, json or conll [by ending]", on_resume="may change"
    )
    text_column: str | None = DATA(None, "of a custom dataset: the texts [text]", "COLUMN")
    pair_column: str | None = DATA(None, "of a custom dataset: the second texts [none]", "COLUMN")
    label_column: str | None = DATA(None, "of a custom dataset: the labels, as names or numbers [label]", "COLUMN")
    label_type: str = DATA("auto", "of a custom dataset: classes, numbers, multilabel or tokens")
    label_separator: str | None = DATA(
        None, "character between labels, for multilabel [none: the labels are lists]", "C", check=checks.separator
    )
    threshold: float | str = DATA(
        0.5, "probability of a predicted label, or auto, for multilabel", check=checks.threshold
    )
    validation: str | Any | None = DATA(
        None,
        "of a custom dataset: a file, or a split [10 percent of the rows]",
        "SPLIT",
        check=checks.data,
        on_resume="may change",
    )
    holdout: float | None = DATA(
        None, "of the training split, to choose the best epoch on [none]", "FRACTION", check=checks.fraction
    )
    fold: str | None = DATA(
        None, "of a custom dataset: K/N, validate on part K of N of the rows [none]", "K/N", check=checks.fold
    )
    group_column: str | None = DATA(
        None, "of a custom dataset: rows with one value are on one side of every draw [none]", "COLUMN"
    )
    weight_column: str | None = DATA(None, "of a custom dataset: the weights of the rows in the loss [all 1]", "COLUMN")
    drop_duplicates: bool = DATA(
        False, "leave out training rows whose text occurs in an earlier row, or in another split"
    )
    max_length: int | None = DATA(None, "tokens; longer sequences are truncated [512, or the model's]")
    train_limit: int | None = DATA(None, "train on the first N examples [all]")
    eval_limit: int | None = DATA(None, "evaluate on the first N examples [all]")

    model: str = MODEL(
        "auto", "a name or a folder [auto: roberta-base, else the bundled roberta-mini]", check=checks.path
    )
    init_adapter: str | None = MODEL(
        None, "start from another run's adapter; a new head for other labels [none]", "RUN", check=checks.path
    )

    method: str | Any = METHOD("lora", METHOD_NAMES, check=checks.text)  # to minipeft.train, also LoRA(rank=2), …
    rank: int | None = METHOD(None, f"LoRA's rank [{recipes.RANK}]")
    alpha: float | None = METHOD(
        None, f"LoRA's alpha; alpha / rank scales the update [{recipes.ALPHA:g}]", check=check_float
    )
    dropout: float | None = METHOD(None, f"on LoRA's input [{recipes.DROPOUT:g}]", check=check_probability)
    targets: tuple[str, ...] | None = METHOD(
        None, "query key value output intermediate ffn_output, or all [query value]"
    )
    train_layers: int | None = METHOD(
        None, "train the top N layers; compute the frozen ones below once, and cache them [all]"
    )
    method_options: dict[str, Any] | list[str] | None = METHOD(
        None, "other settings of the method: rslora=true … [none]", "NAME=VALUE", check=checks.options
    )

    epochs: int | None = OPTIM(None, "passes over the data [{epochs}]", on_resume="may grow")
    lr: float | None = OPTIM(None, "peak learning rate [{lr}]")
    steps: int | None = OPTIM(None, "optimizer steps, in place of --epochs [those of the epochs]", on_resume="may grow")
    lr_schedule: str = OPTIM(
        "linear", "linear, cosine or constant after the warmup", check=checks.choice(*LR_SCHEDULES)
    )
    batch_size: int = OPTIM(recipes.BATCH_SIZE, "sequences")
    grad_accum: int = OPTIM(recipes.GRAD_ACCUM, "batches in a step")
    warmup_steps: int | None = OPTIM(
        None, f"linear [{recipes.WARMUP_STEPS}; of fewer than 900, 10 percent]", check=checks.whole
    )
    warmup_ratio: float | None = OPTIM(
        None, "warmup as a fraction of the steps [--warmup-steps]", check=checks.below_one
    )
    weight_decay: float = OPTIM(recipes.WEIGHT_DECAY, "AdamW's, on matrices")
    beta1: float = OPTIM(recipes.BETA1, "AdamW's", check=checks.below_one)
    beta2: float = OPTIM(recipes.BETA2, "AdamW's", check=checks.below_one)
    epsilon: float = OPTIM(recipes.EPSILON, "AdamW's", check=checks.above_zero)
    max_grad_norm: float = OPTIM(recipes.MAX_GRAD_NORM, "0: no clipping")
    class_weights: str | list[str] | dict[str, float] | None = OPTIM(
        None, "balanced, or NAME=WEIGHT … for the loss [all 1]", "NAME=WEIGHT", check=checks.class_weights
    )
    label_smoothing: float = OPTIM(0.0, "of the targets, towards all classes", check=checks.below_one)
    select_by: str | None = OPTIM(None, "a metric, or eval_loss, to choose the best epoch [the task's first]", "METRIC")
    patience: int | None = OPTIM(None, "stop after so many without a better --select-by [none]", "EPOCHS")
    eval_every: int | None = OPTIM(None, "evaluate within epochs too [only at the end of each]", "STEPS")
    seed: int = OPTIM(42, "of the head, LoRA's A, the order and dropout", check=check_seed)

    device: str = HARDWARE("auto", "auto, cpu, cuda, cuda:1 … or mps", on_resume="of the call")
    precision: str = HARDWARE(
        "auto",
        "auto, fp32 or bf16 [auto: bf16 where that is faster, else fp32]",
        check=checks.choice("auto", "fp32", "bf16"),
    )
    max_tokens: int | None = HARDWARE(
        None, "tokens of a batch; bounds the memory [{max_tokens}]", on_resume="may change"
    )
    threads: int | None = HARDWARE(
        None,
        "CPU threads [OMP_NUM_THREADS, or the cores that are free]",
        check=checks.threads,
        on_resume="of the call",
    )
    compile: bool = HARDWARE(False, "let torch.compile fuse the small operations", on_resume="of the call")
    activation_checkpointing: bool = HARDWARE(
        False, "compute layers twice: less memory, more time", on_resume="of the call"
    )
    cuda_graphs: str = HARDWARE(
        "off",
        "record and replay a batch's CUDA operations: on, off, or auto where possible",
        check=checks.on_off,
        alone="on",
        on_resume="of the call",
    )
    group_timeout: float = HARDWARE(recipes.GROUP_TIMEOUT, "minutes until a lost node counts", on_resume="of the call")

    output: str | None = OUTPUT(
        None, "folder of the run [runs/<task>-<method>…]", "DIR", check=checks.output, on_resume="of the call"
    )
    checkpoint_minutes: float = OUTPUT(recipes.CHECKPOINT_MINUTES, "between two", on_resume="may change")
    checkpoint_copy: str | None = OUTPUT(
        None,
        "address to copy each checkpoint to, such as s3://bucket/run",
        "URL",
        check=checks.path,
        on_resume="may change",
    )
    resume: bool = OUTPUT(False, "continue from the run's last checkpoint", on_resume="of the call")
    report_to: tuple[str, ...] | None = OUTPUT(
        None,
        "tensorboard, wandb, mlflow or none [tensorboard, if there]",
        "TRACKER",
        check=checks.trackers,
        on_resume="may change",
    )
    quiet: bool = OUTPUT(False, "no banner and no progress bars", on_resume="of the call")


def recipe_defaults(
    task: str = "rte", method: str = "lora", model: str = "roberta-base", shape: tuple[int, str] = (768, "roberta")
) -> Mapping[str, str]:
    """Return what --help says of the defaults that a recipe decides; `shape` is hidden size and model_type."""
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
    """Return `minipeft.train`'s keywords that are given, checked; a method's config becomes its name and its fields."""
    wanted = dict(given)
    if not isinstance(wanted.get("data", ""), str | os.PathLike | None):
        from minipeft.data.tables.memory import is_in_memory, read_memory

        if is_in_memory(wanted["data"]):
            wanted["data"] = read_memory(wanted["data"], wanted.pop("validation", None))
    if not isinstance(wanted.get("method", ""), str | None):
        wanted |= _settings_of_method(wanted)
    checked = check_given(TrainSettings, wanted)
    for one, other in EXCLUSIVE:
        if one in checked and other in checked:
            flags = rows(TrainSettings)[one].flag, rows(TrainSettings)[other].flag
            raise MinipeftError(
                f"{flags[0]} {checked[one]} and {flags[1]} {checked[other]} exclude each other. Drop one."
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
