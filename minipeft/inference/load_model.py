"""A folder → what prediction needs: a run's best adapter, an adapter on its base by name, or a merged checkpoint."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from minipeft.adapters.adapter import install_adapter
from minipeft.adapters.adapter_file import read_adapter
from minipeft.adapters.save import CONFIG
from minipeft.data.tasks.custom import custom_task
from minipeft.data.tasks.task import TASKS, Task, get_task
from minipeft.device import choose_max_tokens, inference_precision
from minipeft.errors import MinipeftError, check_int, first_line, format_names, logger, short_repr
from minipeft.files import read_json, read_json_lines
from minipeft.hub import resolve_model
from minipeft.hub.names import name_in_path
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.config import EncoderConfig, generic_labels, label_order
from minipeft.model.families import load_config
from minipeft.model.pretrained import cast_frozen, load_pretrained, reorder_labels, tensor_names
from minipeft.problems import PROBLEMS, problem_class, problem_of
from minipeft.training.progress import best_epoch, selection_metric
from minipeft.training.settings.choices import choose_max_length

LONGEST_NAME = 1024  # characters of a base model's name or folder
OTHER = "Name a run, an adapter or a merged checkpoint"

Loaded = tuple[SequenceClassifier, Path, Task, dict[str, Any]]  # with the tokenizer's folder and the settings


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds an adapter and is not a run, whose adapter is in adapter/."""
    return (folder / CONFIG).is_file()


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a model as transformers writes it; a run's config.json names no model_type."""
    try:
        return "model_type" in read_json(folder / "config.json", {})
    except MinipeftError:
        return False


def load_best(folder: Path, device: str, precision: str | None, pairs: bool | None) -> Loaded:
    """Load the best adapter of a run on its base model; the run's config.json has all that the others lack."""
    path = folder / "config.json"
    settings = read_json(path)
    if missing := sorted({"task", "model", "precision", "max_length", "max_tokens", "source"} - set(settings)):
        raise MinipeftError(f"{path}: {missing[0]} is missing; name the folder of a run")
    try:
        for name in ("task", "model", "precision", "source"):
            if not isinstance(settings[name], str):
                raise MinipeftError(f"{name} {short_repr(settings[name])} is not a text")
        for name in ("max_length", "max_tokens"):
            check_int(name, settings[name])
        task = (custom_task(settings) or get_task(settings["task"])).with_metric(settings.get("select_by", "eval_loss"))
    except MinipeftError as error:
        raise MinipeftError(f"{path}: {error}; train again") from None
    model_folder, _ = resolve_model(settings["model"])
    model = load_without_warnings(model_folder, task.num_labels, task.problem.name)
    if settings["max_length"] > model.config.max_length:
        raise MinipeftError(
            f"{path}: max_length {short_repr(settings['max_length'])} is beyond the model's "
            f"{model.config.max_length}; train again"
        )
    _warn_if_unfinished(folder, settings, task)
    adapter = read_adapter(folder / "adapter", model.config)
    precision = precision or inference_precision(settings["precision"], device)
    cast_frozen(install_adapter(model, adapter), _dtype(precision))
    match_labels(model, task, adapter.folder)
    task = replace(task, problem=task.problem.with_details(adapter.details))
    return model, model_folder, task, settings


def _warn_if_unfinished(folder: Path, settings: dict[str, Any], task: Task) -> None:
    """Warn that a run was interrupted, with the epoch of its adapter; raise where there is none yet."""
    if (folder / "result.json").is_file():
        return
    if not (folder / "adapter").is_dir():
        raise MinipeftError(f"{folder}: no epoch is finished, so there is no adapter. Continue with train.py --resume.")
    try:
        rows = read_json_lines(folder / "metrics.jsonl")
        figure = selection_metric(settings.get("select_by") or task.metrics[0], bool(settings.get("holdout")))
        best = best_epoch(rows, figure)
        epoch, done = best["epoch"], rows[-1]["epoch"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # nothing is known of its epochs
        epoch = done = "?"
    logger.warning(
        f"{folder}: the run is not finished ({done} of {settings.get('epochs')} epochs): the adapter is from epoch "
        f"{epoch}; train.py --resume continues it"
    )


def load_adapter_folder(folder: Path, device: str, precision: str | None, pairs: bool | None) -> Loaded:
    """Load an adapter, minipeft's or peft's, on the base model that its adapter_config.json names.

    `pairs` says whether it takes pairs of texts, where its file does not.
    """
    place = f"{folder / CONFIG}: base_model_name_or_path"
    name = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise MinipeftError(f"{place} {short_repr(name)} is not the name of a model. Write the base model's name.")
    try:
        base, _ = resolve_model(name if Path(name).is_dir() else name_in_path(name))
        config = load_config(base)
    except (MinipeftError, OSError, ValueError, RuntimeError) as error:  # a name that no file can have raises too
        raise MinipeftError(f"{place}: {first_line(error)}") from None
    adapter = read_adapter(folder, config)
    if adapter.num_labels is None:
        raise MinipeftError(f"{folder}: no classification head in it. Train one, or name another adapter.")
    model = load_without_warnings(base, adapter.num_labels, adapter.problem_type)
    model = install_adapter(model, adapter)
    settings = {"method": type(adapter.method).__name__, "model": name}
    task = _task(adapter.details.get("task") or folder.name, model.config, adapter.details, pairs)
    match_labels(model, task, folder)
    settings |= _limits(model, adapter.method, device, precision)
    return cast_frozen(model, _dtype(precision)), base, task, settings


def load_checkpoint(folder: Path, device: str, precision: str | None, pairs: bool | None) -> Loaded:
    """Load a fine-tuned checkpoint, with the labels of its config.json."""
    config = load_config(folder)
    model = load_without_warnings(folder, config.num_labels)
    if not config.has_own_head:
        raise MinipeftError(f"{folder}: {format_names(config.architectures)} is not a classifier. {OTHER}.")
    if model.new_tensors:
        missing = tensor_names(model, config)[model.new_tensors[0]]
        raise MinipeftError(f"{folder}: no classification head in it. {OTHER} ({missing} is missing).")
    task = _task(folder.name, config, {}, pairs)
    match_labels(model, task, folder)
    settings = {"model": str(folder)} | _limits(model, None, device, precision)
    return cast_frozen(model, _dtype(precision)), folder, task, settings


def match_labels(model: SequenceClassifier, task: Task, place: Path) -> None:
    """Give the model's outputs the order of the task's classes, by name; LABEL_0, LABEL_1, … are in order already."""
    names = list(model.config.id2label.values())
    if not task.labels or names == generic_labels(len(task.labels)):
        return
    if (order := label_order(names, task.labels)) is None:
        raise MinipeftError(
            f"{place}: the labels {format_names(names)} are not those of {task.name} ({format_names(task.labels)}). "
            "Name the model that belongs to the task."
        )
    reorder_labels(model, order)


def load_without_warnings(base: Path, num_labels: int, problem_type: str | None = None) -> SequenceClassifier:
    """Load a base model without the warning of a new head, which the adapter replaces."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return load_pretrained(base, num_labels, problem_type=problem_type)
    finally:
        logger.setLevel(level)


def _task(name: str, config: EncoderConfig, details: dict[str, Any], pairs: bool | None) -> Task:
    """Return GLUE's task of that name if the model has its classes, else a custom task; `details` are an adapter's."""
    labels, kind = list(config.id2label.values()), config.label_kind
    generic = labels == generic_labels(len(labels))
    if len(labels) > (most := PROBLEMS[kind].most):
        raise MinipeftError(f"{name}: problem_type {kind} with {len(labels)} labels is not supported; {most} label is")
    known = get_task(name) if name in TASKS else None
    same_kind = known is not None and (known.problem.name, known.num_labels) == (kind, len(labels))
    if known and same_kind and (generic or not known.labels or label_order(labels, known.labels) is not None):
        return replace(known, problem=known.problem.with_details(details))
    columns = details.get("columns") or [problem_class(kind).columns[0], *(["pair"] if pairs else [])]
    if generic:
        labels = [str(number) for number in range(len(labels))]  # as files have them
    problem, label_column = problem_of(kind, labels, details), problem_class(kind).columns[1]
    return Task(name, tuple(columns), problem, label_column=label_column, files=(("train", ""),))


def _limits(model: SequenceClassifier, method: Any, device: str, precision: str | None) -> dict[str, Any]:
    precision = precision or "fp32"
    max_tokens = choose_max_tokens(device, precision, model.config.hidden_size)
    return {
        "max_length": choose_max_length(None, method, model.config.max_length),
        "max_tokens": max_tokens,
        "precision": precision,
        "source": "",
    }


def _dtype(precision: str | None) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32
