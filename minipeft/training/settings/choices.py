"""What a run chooses where its settings leave it open: task, data, model, output folder, and single values."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minipeft.data.tasks.splits import HUB_NAME, choose_data, read_chunks, training_strata
from minipeft.data.tasks.task import TASKS, Task, get_task
from minipeft.errors import MinipeftError, is_rank_zero, nearest
from minipeft.files import check_output
from minipeft.hub import resolve_model
from minipeft.methods import get_method, method_name
from minipeft.model.config import EncoderConfig
from minipeft.model.families import load_config
from minipeft.problems import PROBLEMS
from minipeft.training.optimization.schedule import Schedule, count_steps
from minipeft.training.progress import selection_metric
from minipeft.training.settings import checks
from minipeft.training.settings.recipes import ALPHA, DROPOUT, RANK, Recipe, default_warmup
from minipeft.training.settings.setting import rows
from minipeft.training.settings.train_settings import METHOD_FLAGS, TrainSettings

if TYPE_CHECKING:
    from minipeft.data.tasks.custom import CustomData

DEFAULT_MAX_LENGTH = 512  # tokens, where the model takes more
MAJORITY = 0.8  # of the validation rows: with a larger class the accuracy selects no more
REPORT = {"rank": RANK, "alpha": ALPHA, "dropout": DROPOUT}  # the defaults of lora and dora
# Settings of an initial adapter that a run may change: they do not change what the adapter computes.
FREE_OF_ADAPTER = ("dropout", "lr_ratio")


@dataclass(frozen=True)
class DataSource:
    """Where a task's splits come from."""

    task: Task
    source: str  # for `read_chunks`
    description: str
    columns: str  # a description of those that are read
    warnings: tuple[str, ...] = ()  # what may be a mistake, one line each


class Checkpoint(NamedTuple):
    """A pretrained model on this machine: its folder, what describes it, and its shape."""

    folder: Path
    description: str
    config: EncoderConfig


def find_task(settings: TrainSettings) -> tuple[Task, CustomData | None]:
    """Return the task, and for a custom dataset its description; this may download a data set of the hub.

    Raises:
        MinipeftError: for an unknown task, and for settings of a custom dataset with one of GLUE's.
    """
    names = ("text_column", "pair_column", "label_column", "validation", "fold", "group_column", "weight_column")
    columns = {name: getattr(settings, name) for name in (*names, "file_format")}
    if settings.task not in ("auto", *TASKS) or settings.data not in ("auto", "standin"):
        from minipeft.data.tasks.custom import inspect_custom_data, is_custom

        if is_custom(settings.task, settings.data, settings.file_format):
            labels = {"label_type": settings.label_type, **label_settings(settings, settings.label_type)}
            quiet = settings.quiet or not is_rank_zero()
            custom = inspect_custom_data(settings.task, settings.data, quiet=quiet, **columns, **labels)
            return custom.task, custom
    task = get_task("rte" if settings.task == "auto" else settings.task)
    if settings.data not in ("auto", "standin", HUB_NAME):
        choose_data(task, settings.data)  # raises for data that are neither
    remedy = f"custom datasets, and {task.name} is GLUE's. Name a file or a folder with train.csv by --data."
    _refuse(settings, (*columns, "label_type"), remedy)
    label_settings(settings, "")
    return task, None


def label_settings(settings: TrainSettings, label_type: str) -> dict[str, Any]:
    """Return the settings that only labels of this type have; raise where one of another type is given."""
    for row in PROBLEMS.values():
        if row.label_type != label_type:
            _refuse(settings, row.settings, f"--label-type {row.label_type}. Add it, or leave {{}} out.")
    chosen = (row.settings for row in PROBLEMS.values() if row.label_type == label_type)
    return {name: getattr(settings, name) for names in chosen for name in names}


def check_windows(settings: TrainSettings) -> None:
    """Raise for settings of windows without --long-text window."""
    if settings.long_text == "truncate":
        _refuse(settings, ("stride", "window_pooling"), "--long-text window. Add it, or leave {} out.")


def _refuse(settings: TrainSettings, names: Iterable[str], remedy: str) -> None:
    """Raise where a setting is given that has no meaning."""
    for name in names:
        row, value = rows(TrainSettings)[name], getattr(settings, name)
        if value != row.default:
            raise MinipeftError(f"{row.flag} {value!r} is for {remedy.format(row.flag)}")


def choose_source(settings: TrainSettings, task: Task, custom: CustomData | None = None) -> DataSource:
    """Return where a task's splits come from; this may download GLUE."""
    if custom is not None:
        return DataSource(task, custom.source, custom.describe(), custom.describe_columns(), custom.warnings)
    source, description = choose_data(task, settings.data)
    return DataSource(task, source, description, f"{' and '.join(task.columns)}, labels from {task.label_column}")


def choose_model(name_or_dir: str) -> Checkpoint:
    """Return the model on this machine; this may download it."""
    folder, description = resolve_model(name_or_dir)
    return Checkpoint(folder, description, load_config(folder))


def choose_method(settings: TrainSettings, initial: Any = None) -> Any:
    """Return the method's config.

    `initial` is the method of an adapter that the run is initialized from: options that are not given are its options,
    and those that are given must not change what it computes.
    """
    config = get_method(settings.method)
    fields = [field.name for field in dataclasses.fields(config)]
    flags = {name: getattr(settings, name) for name in METHOD_FLAGS if getattr(settings, name) is not None}
    options = checks.options("--method-options", settings.method_options or {})
    for name, value in flags.items():
        if name not in fields:
            flag = rows(TrainSettings)[name].flag
            raise MinipeftError(f"{flag} {value!r} has no meaning for {settings.method}. Leave it out.")
    known = [name for name in fields if name not in METHOD_FLAGS]
    for name in options:
        if name not in known:
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


def count_examples(settings: TrainSettings, data: DataSource) -> int:
    """Return the number of examples that a run trains on: the rows, but for those that are held out."""
    count, strata, groups = training_strata(data.task, data.source, settings.train_limit)
    if settings.holdout is None:
        return count
    from minipeft.data.tasks.draw import draw_together
    from minipeft.data.tasks.text_hashes import text_hash

    if groups is None:  # as `hold_out` draws them: equal texts together
        chunks = read_chunks(data.task, "train", data.source, settings.train_limit)
        groups = [text for chunk in chunks for text in map(text_hash, chunk.texts, chunk.pairs or repeat(None))]
    return count - int(draw_together(groups, strata, settings.holdout, settings.seed).sum())


def choose_schedule(settings: TrainSettings, data: DataSource, defaults: Recipe, max_tokens: int) -> Schedule:
    """Return what the loop computes; the training rows are counted where the settings depend on their number."""
    sequences_per_step = settings.batch_size * settings.grad_accum
    epochs, warmup_steps = settings.epochs or defaults.epochs, settings.warmup_steps
    if settings.steps is not None or warmup_steps is None:
        steps_per_epoch = max(1, count_steps(1, count_examples(settings, data), sequences_per_step))
        epochs = epochs if settings.steps is None else -(-settings.steps // steps_per_epoch)
        steps = settings.steps or epochs * steps_per_epoch
        if warmup_steps is None:
            ratio = settings.warmup_ratio  # rounded as in the Trainer of transformers
            warmup_steps = default_warmup(steps) if ratio is None else math.ceil(ratio * steps)
    return Schedule(
        epochs=epochs,
        lr=defaults.lr if settings.lr is None else settings.lr,
        warmup_steps=warmup_steps,
        weight_decay=settings.weight_decay,
        sequences_per_step=sequences_per_step,
        max_tokens=max_tokens,
        seed=settings.seed,
        select_by=selection_metric(settings.select_by or data.task.metrics[0], bool(settings.holdout)),
        lr_schedule=settings.lr_schedule,
        betas=(settings.beta1, settings.beta2),
        epsilon=settings.epsilon,
        max_grad_norm=settings.max_grad_norm,
        steps=settings.steps or 0,
        eval_every=settings.eval_every or 0,
        patience=settings.patience or 0,
    )


def choose_select_by(settings: TrainSettings, task: Task) -> str:
    """Return --select-by; the default is the task's first metric, or one that counts each class alike.

    The latter holds where the classes are weighted, or one of them has over 80 percent of a custom dataset's validation
    rows: the accuracy would prefer an epoch that predicts this class only.
    """
    if settings.select_by is not None or task.metrics[0] != task.problem.default_metrics[0]:
        return settings.select_by or task.metrics[0]
    metric = task.problem.unbalanced_metric
    unbalanced = bool(metric and settings.class_weights)
    if "accuracy" in task.metrics and task.is_custom and not unbalanced:
        from minipeft.data.tasks.folds import validation_targets

        _, majority = task.problem.baseline(validation_targets(task, settings.eval_limit))
        unbalanced = majority is not None and majority > MAJORITY
    return metric if unbalanced else task.metrics[0]


def choose_max_length(wanted: int | None, method: Any, longest: int) -> int:
    """Return --max-length, or 512 tokens or fewer, as the model and the method's virtual tokens allow."""
    longest -= getattr(method, "num_virtual_tokens", 0)
    if wanted is not None and wanted > longest:
        raise MinipeftError(f"--max-length {wanted} is beyond the model's position table. Choose at most {longest}.")
    return wanted or min(DEFAULT_MAX_LENGTH, longest)


def choose_output(settings: TrainSettings, task: Task, method: Any) -> Path:
    """Return --output, or runs/<task>-<method>…; further runs have the numbers from 2, --resume continues the last.

    Raises:
        MinipeftError: for a folder that cannot take this run.
    """
    rank = f"-r{method.rank}" if hasattr(method, "rank") else ""
    name = f"{task.name}-{settings.method}{rank}-seed{settings.seed}"
    folder = Path(settings.output) if settings.output else numbered_folder(Path("runs") / name, settings.resume)
    check_output(folder, "config.json", "run", settings.resume)
    return folder


def numbered_folder(first: Path, resume: bool) -> Path:
    """Return the folder with the highest number of X, X-2, X-3, … to resume it, or the one after it for a new run."""
    names = [path.name for path in first.parent.glob(f"{first.name}*")] if first.parent.is_dir() else []
    found = [re.fullmatch(rf"{re.escape(first.name)}(?:-([1-9]\d*))?", name) for name in names]
    highest = max((int(match[1] or 1) for match in found if match), default=0)
    number = highest if resume and highest else highest + 1
    return first if number == 1 else first.with_name(f"{first.name}-{number}")
