"""What a run chooses where its settings leave it open: task, data, model, output folder, and single values."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipeft.data.tasks.custom import CustomData, inspect_custom_data, is_custom
from minipeft.data.tasks.splits import choose_data, count_rows
from minipeft.data.tasks.task import Task, get_task
from minipeft.errors import MinipeftError, check_choice
from minipeft.files import check_output
from minipeft.hub.hub import resolve_model
from minipeft.model.config import EncoderConfig
from minipeft.model.families import load_config
from minipeft.problems import PROBLEMS
from minipeft.training.optimization.schedule import Schedule, count_steps
from minipeft.training.progress import selection_metric
from minipeft.training.settings.recipes import Recipe, default_warmup
from minipeft.training.settings.train_settings import TrainSettings

ALL_ROWS = sys.maxsize
DEFAULT_MAX_LENGTH = 512  # tokens, where the model takes more


@dataclass(frozen=True)
class DataSource:
    """Where a task's splits come from.

    Attributes:
        task: its columns, labels and metrics.
        source: for `read_chunks`.
        description: for people; so is `columns`, the columns that are read.
        warnings: what may be a mistake, one line each.
    """

    task: Task
    source: str
    description: str
    columns: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A pretrained model on this machine: its folder, what describes it, and its shape."""

    folder: Path
    description: str
    config: EncoderConfig


def find_task(settings: TrainSettings) -> tuple[Task, CustomData | None]:
    """Return the task, and for a custom dataset its description; this may download a data set of the hub.

    Raises:
        MinipeftError: for an unknown task, and for settings of a custom dataset with one of GLUE's.
    """
    given = {name: getattr(settings, name) for name in ("text_column", "pair_column", "label_column", "validation")}
    if is_custom(settings.task, settings.data):
        given |= {"label_type": settings.label_type, **label_settings(settings, settings.label_type)}
        custom = inspect_custom_data(settings.task, settings.data, **given)
        return custom.task, custom
    task = get_task("rte" if settings.task == "auto" else settings.task)
    given["label_type"] = None if settings.label_type == "auto" else settings.label_type
    for name, value in given.items():
        if value is not None:
            raise MinipeftError(
                f"--{name.replace('_', '-')} {value!r} is for custom datasets, and {task.name} is GLUE's. "
                "Name your file by --data, or leave it out."
            )
    label_settings(settings, "")
    return task, None


def label_settings(settings: TrainSettings, label_type: str) -> dict[str, Any]:
    """Return the settings that only labels of this type have; raise where one of another type is given."""
    defaults = TrainSettings()
    for row in PROBLEMS.values():
        for name in row.settings if row.label_type != label_type else ():
            if (value := getattr(settings, name)) != getattr(defaults, name):
                flag = f"--{name.replace('_', '-')}"
                raise MinipeftError(
                    f"{flag} {value!r} is for --label-type {row.label_type}. Add it, or leave {flag} out."
                )
    chosen = (row.settings for row in PROBLEMS.values() if row.label_type == label_type)
    return {name: getattr(settings, name) for names in chosen for name in names}


def choose_source(settings: TrainSettings, task: Task, custom: CustomData | None = None) -> DataSource:
    """Return where a task's splits come from; this may download GLUE."""
    if custom is not None:
        return DataSource(task, custom.source, custom.describe(), custom.describe_columns(), custom.warnings)
    source, description = choose_data(task, settings.data)
    return DataSource(task, source, description, f"{' and '.join(task.columns)}, labels from {task.label_column}", ())


def choose_model(name_or_dir: str) -> Checkpoint:
    """Return the model on this machine; this may download it."""
    folder, description = resolve_model(name_or_dir)
    return Checkpoint(folder, description, load_config(folder))


def choose_schedule(settings: TrainSettings, data: DataSource, defaults: Recipe, max_tokens: int) -> Schedule:
    """Return what the loop computes; the training rows are counted where the settings depend on their number."""
    sequences_per_step = settings.batch_size * settings.grad_accum
    epochs, warmup_steps = settings.epochs or defaults.epochs, settings.warmup_steps
    if settings.steps is not None or warmup_steps is None:
        rows = count_rows(data.task, "train", data.source, settings.train_limit or ALL_ROWS)
        rows -= round(rows * (settings.holdout or 0.0))
        steps_per_epoch = max(1, count_steps(1, rows, sequences_per_step))
        epochs = epochs if settings.steps is None else -(-settings.steps // steps_per_epoch)
        steps = settings.steps or epochs * steps_per_epoch
        if warmup_steps is None and settings.warmup_ratio is not None:
            warmup_steps = math.ceil(settings.warmup_ratio * steps)  # as the Trainer of transformers rounds
        elif warmup_steps is None:
            warmup_steps = default_warmup(steps)
    return Schedule(
        epochs=epochs,
        lr=defaults.lr if settings.lr is None else settings.lr,
        warmup_steps=warmup_steps,
        weight_decay=settings.weight_decay,
        sequences_per_step=sequences_per_step,
        max_tokens=max_tokens,
        seed=settings.seed,
        select_by=choose_selection_metric(settings, data.task),
        lr_schedule=settings.lr_schedule,
        betas=(settings.beta1, settings.beta2),
        epsilon=settings.epsilon,
        max_grad_norm=settings.max_grad_norm,
        steps=settings.steps or 0,
        eval_every=settings.eval_every or 0,
        patience=settings.patience or 0,
    )


def choose_selection_metric(settings: TrainSettings, task: Task) -> str:
    """Return the name of the figure that chooses the best epoch: of the held-out examples where there are any."""
    figure = settings.select_by or task.metrics[0]
    check_choice("--select-by", figure, ("eval_loss", *task.metrics))
    return selection_metric(figure, bool(settings.holdout))


def choose_max_length(wanted: int | None, method: Any, longest: int) -> int:
    """Return --max-length, or 512 tokens or fewer, as the model and the method's virtual tokens allow."""
    longest -= getattr(method, "num_virtual_tokens", 0)
    if wanted is not None and wanted > longest:
        raise MinipeftError(
            f"--max-length {wanted} is beyond the model's position table. Choose at most {longest} tokens."
        )
    return wanted or min(DEFAULT_MAX_LENGTH, longest)


def choose_output(settings: TrainSettings, task: Task, method: Any) -> Path:
    """Return --output, or runs/<task>-<method>…, numbered where that is taken and --resume is not given.

    Raises:
        MinipeftError: for a folder that cannot take this run.
    """
    if settings.output is not None:
        folder = Path(settings.output)
    else:
        rank = f"-r{method.rank}" if hasattr(method, "rank") else ""
        first = Path("runs") / f"{task.name}-{settings.method}{rank}-seed{settings.seed}"
        names = [first, *(first.with_name(f"{first.name}-{number}") for number in range(2, 10_000))]
        free = next(number for number, name in enumerate(names) if not name.exists())
        folder = names[max(0, free - 1)] if settings.resume else names[free]
    check_output(folder, "config.json", "run", settings.resume)
    return folder
