"""A trained method as files in peft's format.

adapter_config.json        peft's fields; a peft_type of our own for the methods that peft lacks
adapter_model.safetensors  what trained, head included, under the names that peft gives; labels, task and best score
                           travel in its metadata
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from minipeft.adapters.adapter_file import (
    CONFIG,
    WEIGHTS,
    Adapter,
    adapter_content,
    adapter_tensors,
    base_model_fields,
    read_adapter,
)
from minipeft.errors import MinipeftError, first_line
from minipeft.files import json_text, make_folder, write_together
from minipeft.methods import apply
from minipeft.methods.adapted import adapted_layers
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.config import EncoderConfig
from minipeft.model.families import family_of

logger = logging.getLogger("minipeft")


def save_adapter(model: SequenceClassifier, folder: str | Path, **details: Any) -> None:
    """Write what trained, head included, to `folder`, which is made if need be.

    Args:
        model: A model with a method.
        folder: Gets adapter_config.json and adapter_model.safetensors; an adapter that is there already is replaced.
        details: Task, score, …, which travel in the file.

    Raises:
        MinipeftError: for a model without a method, for a merged one, and where nothing can be written.
    """
    if model.method is None:
        raise MinipeftError("the model has no method, so there is no adapter to save; call minipeft.apply first")
    if any(part.unmerged is not None for part in adapted_layers(model)):
        raise MinipeftError("the adapter is merged; call minipeft.unmerge before saving it")
    folder = Path(folder)
    make_folder(folder)
    state = {theirs: tensor.detach().cpu().contiguous() for theirs, tensor in adapter_tensors(model).items()}
    config = model.config
    content = adapter_content(model)
    # The config travels in the weights too: a kill between the two renames is then seen when the adapter is loaded.
    details = {"problem_type": config.problem_type} | details
    details = {"labels": list(config.id2label.values()), "base": base_model_fields(config), "config": content} | details
    metadata = {"minipeft": json.dumps(details)}  # one entry: safetensors orders several at random
    write_together(
        {
            folder / CONFIG: lambda path: path.write_text(json_text(content), encoding="utf-8"),
            folder / WEIGHTS: lambda path: save_file(state, path, metadata=metadata),
        }
    )


def load_adapter(model: SequenceClassifier, folder: str | Path) -> SequenceClassifier:
    """Install the method that `folder` holds in `model`, with its trained values; returns the same model.

    The adapter may be ours or peft's; the model must have no method yet, and as many labels as the adapter.

    Raises:
        MinipeftError: before the model is changed, for an adapter of another base, an unknown type or setting, and a
            tensor that is missing, unused or of a wrong shape.
    """
    folder = Path(folder)
    adapter = read_adapter(folder, model.config)
    method, state, labels = adapter.method, adapter.state, adapter.details.get("labels")
    if isinstance(labels, list) and len(labels) != model.config.num_labels:
        raise MinipeftError(
            f"{folder}: the adapter has {len(labels)} labels, the model {model.config.num_labels}; "
            f"load the model with num_labels={len(labels)}"
        )
    try:
        with torch.device("meta"):
            shape = apply(SequenceClassifier(model.config), method)
    except (MinipeftError, RuntimeError, OverflowError) as error:  # torch's, for sizes that no tensor can have
        raise MinipeftError(f"{folder / CONFIG}: {first_line(error)}") from None
    names = adapter_tensors(shape)
    own = _model_head_tensors(model, shape, adapter)
    _check_tensors({theirs: tensor for theirs, tensor in names.items() if theirs not in own}, state, folder)
    apply(model, method)
    _fill(model, state | own)
    if isinstance(labels, list):
        problem_type = adapter.details.get("problem_type")
        model.config = model.config.with_labels([str(label) for label in labels], problem_type)
    return model


def reload_adapter(model: SequenceClassifier, adapter: Adapter) -> None:
    """Give a model that has the method already the values of `adapter`: a run's best epoch, say."""
    _check_tensors(adapter_tensors(model), adapter.state, adapter.folder)
    _fill(model, adapter.state)


def read_initial_adapter(run: Path, config: EncoderConfig) -> Adapter:
    """The adapter of a run, or of an adapter folder, for a model of shape `config`."""
    folder = run / "adapter" if (run / "adapter" / CONFIG).is_file() else run
    return read_adapter(folder, config)


def initialize_from_adapter(model: SequenceClassifier, start: Adapter) -> str:
    """Give a model that has the method an adapter's values, head included where the labels are the same.

    Returns one line that says what was taken.
    """
    tensors = adapter_tensors(model)
    in_head = {id(parameter) for parameter in model.head.parameters()}
    head = {name for name, tensor in tensors.items() if id(tensor) in in_head}
    labels, own = start.details.get("labels"), list(model.config.id2label.values())
    keeps_head = labels == own
    wanted = {name: tensor for name, tensor in tensors.items() if keeps_head or name not in head}
    found = {name: tensor for name, tensor in start.state.items() if keeps_head or name not in head}
    _check_tensors(wanted, found, start.folder)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(found[name])
    trained_on = f"{start.details.get('task', 'an adapter')}, labels {', '.join(map(str, labels or ['unknown']))}"
    taken = "head included" if keeps_head else f"with a new head for {', '.join(own)}"
    return f"start   {start.folder} ({trained_on}), {taken}"


def _check_tensors(expected: dict[str, Tensor], state: dict[str, Tensor], folder: Path) -> None:
    """Every tensor that the model has is in the file with its shape, and no other is."""
    for name, tensor in expected.items():
        if name not in state:
            remedy = _describe_layer_mismatch(expected, state) or "the file is not whole"
            raise MinipeftError(f"{folder / WEIGHTS}: tensor {name} is missing; {remedy}")
        if state[name].shape != tensor.shape:
            raise MinipeftError(
                f"{folder / WEIGHTS}: {name} has shape {tuple(state[name].shape)}, but the model "
                f"asks for {tuple(tensor.shape)}; load the model that the adapter belongs to"
            )
        if not state[name].is_floating_point():
            raise MinipeftError(f"{folder / WEIGHTS}: {name} holds {state[name].dtype}, not floating-point numbers")
    if unused := sorted(set(state) - set(expected)):
        raise MinipeftError(
            f"{folder / WEIGHTS}: nothing uses tensor {unused[0]} (and {len(unused) - 1} more); "
            f"{_describe_layer_mismatch(expected, state) or 'the adapter belongs to another model or method'}"
        )


def _describe_layer_mismatch(expected: Iterable[str], state: Iterable[str]) -> str:
    """What to say where a file's tensors end at another layer than the model's; nothing where they do not."""
    asked, found = (
        max((int(number) for name in names for number in re.findall(r"\.layers?\.(\d+)\.", name)), default=-1) + 1
        for names in (expected, state)
    )
    if asked == found:
        return ""
    return f"it holds tensors up to layer {found}, the model asks for {asked}: load the model that it belongs to"


@torch.no_grad()
def _fill(model: SequenceClassifier, state: dict[str, Tensor]) -> None:
    for name, tensor in adapter_tensors(model).items():
        tensor.copy_(state[name])


def _model_head_tensors(model: SequenceClassifier, shape: SequenceClassifier, adapter: Adapter) -> dict[str, Tensor]:
    """The parts of the head that peft did not save, because its modules_to_save do not name them, from the model."""
    tensors = dict(model.head.named_parameters())
    modules = family_of(model.config).head_modules
    own = {}
    for theirs, tensor in adapter_tensors(shape).items():
        ours = next((name for name, t in shape.head.named_parameters() if t is tensor), None)
        part = next((module for module in modules if f".{module}." in theirs), None)
        if ours is not None and theirs not in adapter.state and part not in adapter.modules_to_save:
            own[theirs] = tensors[ours].detach().clone()
    if any("classifier" in name for name in own):
        logger.warning("%s holds no classification head: the model keeps its own", adapter.folder)
    return own
