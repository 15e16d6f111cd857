"""Folders that are not runs → what prediction needs: an adapter on its base by name, and a merged checkpoint."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from minipeft.adapters.adapter import load_adapter
from minipeft.adapters.adapter_file import CONFIG, WEIGHTS, read_adapter
from minipeft.data.tasks.task import TASKS, Task, get_task
from minipeft.device import choose_device, choose_max_tokens
from minipeft.errors import MinipeftError, first_line
from minipeft.files import parse_json, read_json, read_small
from minipeft.hub.hub import resolve_model
from minipeft.hub.names import name_in_path
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.config import EncoderConfig
from minipeft.model.families import family_of, load_config
from minipeft.model.pretrained import cast_frozen, load_pretrained, read_weights
from minipeft.problems import problem_of
from minipeft.training.settings.choices import choose_max_length

logger = logging.getLogger("minipeft")

Loaded = tuple[SequenceClassifier, Path, Task, dict[str, Any]]  # with the tokenizer's folder and the settings


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds an adapter and is not a run, whose adapter is in adapter/."""
    return (folder / CONFIG).is_file()


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a model as transformers writes it; a run's config.json names no model_type."""
    try:
        content = parse_json(read_small(folder / "config.json"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "model_type" in content


def load_adapter_folder(folder: Path, device: str, precision: str, pairs: bool | None) -> Loaded:
    """Load an adapter, minipeft's or peft's, on the base model that its adapter_config.json names.

    Args:
        folder: The adapter folder.
        device: Where the model will be.
        precision: "fp32" or "bf16".
        pairs: Whether the adapter takes pairs of texts, where its file does not say so.

    Raises:
        MinipeftError: for a base model that cannot be found, and for an adapter without a classification head.
    """
    name = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise MinipeftError(
            f"{folder / CONFIG}: base_model_name_or_path is missing. Write the base model's name there."
        )
    try:
        base, _ = resolve_model(name if Path(name).is_dir() else name_in_path(name))
    except MinipeftError as error:
        raise MinipeftError(f"{folder / CONFIG}: base_model_name_or_path: {error}") from None
    adapter = read_adapter(folder, load_config(base))
    labels = adapter.details.get("labels") or _labels_of_head(folder)
    model = load_without_warnings(base, len(labels))
    load_adapter(model, folder)
    settings = {"method": type(adapter.method).__name__, "model": name}
    task = _task(str(adapter.details.get("task") or folder.name), model.config, adapter.details, pairs)
    settings |= _limits(model, adapter.method, device, precision)
    return cast_frozen(model, _dtype(precision)), base, task, settings


def load_checkpoint(folder: Path, device: str, precision: str, pairs: bool | None) -> Loaded:
    """Load a fine-tuned checkpoint, with the labels of its config.json.

    Raises:
        MinipeftError: for a checkpoint without a classification head.
    """
    config = load_config(folder)
    names, stored = family_of(config).head_names, read_weights(folder)
    if f"{names['out_proj']}.weight" not in stored:
        raise MinipeftError(f"{folder}: no classification head in it. Name a run, an adapter or a merged checkpoint.")
    model = load_pretrained(folder, config.num_labels, _dtype(precision))
    model.config = config
    task = _task(folder.name, config, {}, pairs)
    return model, folder, task, {"model": str(folder)} | _limits(model, None, device, precision)


def load_without_warnings(base: Path, num_labels: int) -> SequenceClassifier:
    """Load a base model without the warning of a new head, which the adapter replaces."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return load_pretrained(base, num_labels)
    finally:
        logger.setLevel(level)


def _labels_of_head(folder: Path) -> list[str]:
    """Return the label names of an adapter that has none: LABEL_0, … for each output of its head."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise MinipeftError(f"{folder / WEIGHTS}: cannot be read ({first_line(error)}). Copy the file again.") from None
    for name, shape in shapes.items():
        if name.endswith(("classifier.out_proj.weight", "classifier.weight", "score.weight")):
            return [f"LABEL_{number}" for number in range(shape[0])]
    raise MinipeftError(f"{folder / WEIGHTS}: no classification head in it. Train one, or name another adapter.")


def _task(name: str, config: EncoderConfig, details: dict[str, Any], pairs: bool | None) -> Task:
    """Return the task of a model with a head; `details` are its adapter's."""
    labels = list(config.id2label.values())
    if name in TASKS and (known := get_task(name)).num_labels == len(labels):
        return replace(known, problem=type(known.problem).of_outputs(labels))
    columns = details.get("columns")
    if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns):
        columns = ["text", "pair"] if pairs else ["text"]
    if labels == [f"LABEL_{number}" for number in range(len(labels))]:
        labels = [str(number) for number in range(len(labels))]  # as files have them
    return Task(name, tuple(columns), problem_of(config.problem_type, labels, details), files=(("train", ""),))


def _limits(model: SequenceClassifier, method: Any, device: str, precision: str) -> dict[str, Any]:
    max_tokens = choose_max_tokens(choose_device(device), precision, model.config.hidden_size)
    return {
        "max_length": choose_max_length(None, method, model.config.max_length),
        "max_tokens": max_tokens,
        "precision": precision,
        "source": "",
    }


def _dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32
