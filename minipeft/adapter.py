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
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minipeft.errors import MinipeftError, first_line, shown
from minipeft.files import in_json, make_folder, parse_json, read_json, write_together
from minipeft.methods import METHODS, Row, apply, method_name
from minipeft.methods.adapted import AdaptedLinear, adapted_layers
from minipeft.methods.peft_format import check_fields
from minipeft.model.checkpoint import name_table, tensor_names
from minipeft.model.config import EncoderConfig
from minipeft.model.roberta import SequenceClassifier

logger = logging.getLogger("minipeft")

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save_adapter(model: SequenceClassifier, folder: str | Path, **details: Any) -> None:
    """Write what trained to `folder`, which is made if need be; `details` (task, score, …) travel in the file."""
    if model.method is None:
        raise MinipeftError("the model has no method, so there is no adapter to save; call minipeft.apply first")
    if any(part.unmerged is not None for part in adapted_layers(model)):
        raise MinipeftError("the adapter is merged; call minipeft.unmerge before saving it")
    folder = Path(folder)
    make_folder(folder)
    state = {theirs: tensor.detach().cpu().contiguous() for theirs, tensor in adapter_tensors(model).items()}
    config = model.config
    content = _content(model)
    # The config travels in the weights too: a kill between the two renames is then seen when the adapter is loaded.
    details = {"labels": list(config.id2label.values()), "base": _base(config), "config": content} | details
    metadata = {"minipeft": json.dumps(details)}  # one entry: safetensors orders several at random
    write_together(
        {
            folder / CONFIG: lambda path: path.write_text(in_json(content), encoding="utf-8"),
            folder / WEIGHTS: lambda path: save_file(state, path, metadata=metadata),
        }
    )


def load_adapter(model: SequenceClassifier, folder: str | Path) -> SequenceClassifier:
    """Install the method that `folder` holds, with its trained values; returns the same model.

    Raises MinipeftError, before the model is changed, for an adapter of another base, an unknown type or setting, and a
    tensor that is missing, unused or of a wrong shape.
    """
    folder = Path(folder)
    method, state, details = read_adapter(folder, model.config)
    labels = details.get("labels")
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
    own = _head_of_the_model(model, shape, state, folder)
    _check_tensors({theirs: tensor for theirs, tensor in names.items() if theirs not in own}, state, folder)
    apply(model, method)
    _fill(model, state | own)
    if isinstance(labels, list):
        model.config = model.config.with_labels([str(label) for label in labels])
    return model


def reload_adapter(model: SequenceClassifier, folder: Path) -> None:
    """Give a model that has the method already the values in `folder`: a run's best epoch, say."""
    _, state, _ = read_adapter(folder, model.config)
    _check_tensors(adapter_tensors(model), state, folder)
    _fill(model, state)


def read_adapter(folder: Path, config: EncoderConfig) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
    """An adapter for a model of shape `config`: its method, its tensors, and the details that travel with them."""
    content = read_json(folder / CONFIG)
    state, details = _read_tensors(folder / WEIGHTS)
    base = details.get("base")
    if isinstance(base, dict) and (of_adapter := _base(config) | base) != _base(config):  # older files say less
        raise MinipeftError(
            f"{folder}: the adapter was trained on {_in_words(of_adapter)}, but the model is "
            f"{_in_words(_base(config))}; load the model that it belongs to"
        )
    try:
        method = _method(content, config)
        saved = details.get("config")
        of_weights = _method(saved, config) if isinstance(saved, dict) else method
    except (MinipeftError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise MinipeftError(f"{folder / CONFIG}: no usable config of a method ({first_line(error)})") from None
    if of_weights != method:
        name, one, other = _first_difference(method, of_weights)
        raise MinipeftError(
            f"{folder}: {name} is {shown(one)} in {CONFIG}, but {shown(other)} in {WEIGHTS}; save the adapter again"
        )
    # With bias="all", peft writes the biases of modules_to_save again, under its wrappers' names.
    again = re.compile(r"\.(modules_to_save|original_module)\.(.*\.)?bias$")
    return method, {name: tensor for name, tensor in state.items() if not again.search(name)}, details


def _first_difference(method: Any, other: Any) -> tuple[str, Any, Any]:
    if type(method) is type(other):
        for name in (f.name for f in fields(method)):
            if getattr(method, name) != getattr(other, name):
                return name, getattr(method, name), getattr(other, name)
    return "the method", method, other


@dataclass(frozen=True)
class Start:
    """Another run's adapter, to start from: its folder, method, tensors, and the details that travel with them."""

    folder: Path
    method: Any
    state: dict[str, Tensor]
    details: dict[str, Any]


def read_start(run: Path, config: EncoderConfig) -> Start:
    """The adapter of a run, or of an adapter folder, for a model of shape `config`."""
    folder = run / "adapter" if (run / "adapter" / CONFIG).is_file() else run
    return Start(folder, *read_adapter(folder, config))


def start_from(model: SequenceClassifier, start: Start) -> str:
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


def adapter_tensors(model: SequenceClassifier) -> dict[str, Tensor]:
    """What an adapter file holds: peft's name → the tensor, for what trains and for a method's own buffers."""
    row = METHODS[method_name(model.method)]
    prefix, renamed = (row.peft.prefix, row.peft.names) if row.peft else (PREFIX, {})
    modules = name_table(model, model.config)
    checkpoint = tensor_names(model, model.config)
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in checkpoint and not tensor.requires_grad:
            continue
        module = next((ours for ours in _above(name) if ours in modules), "")
        leaf = name.removeprefix(module).removeprefix(".")
        if name in renamed:  # a tensor of the whole model
            state[renamed[name]] = tensor
        elif name in checkpoint and isinstance(model.get_submodule(module), AdaptedLinear):
            state[f"{prefix}{modules[module]}.base_layer.{leaf}"] = tensor
        elif name.startswith("head."):
            state[prefix + checkpoint[name]] = tensor
        else:
            state[f"{prefix}{modules.get(module, module)}.{renamed.get(leaf, leaf)}"] = tensor
    return state


def _above(name: str) -> Iterable[str]:
    """The modules that hold a tensor, from the innermost."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _check_tensors(expected: dict[str, Tensor], state: dict[str, Tensor], folder: Path) -> None:
    """Every tensor that the model has is in the file with its shape, and no other is."""
    for name, tensor in expected.items():
        if name not in state:
            remedy = _other_layers(expected, state) or "the file is not whole"
            raise MinipeftError(f"{folder / WEIGHTS}: tensor {name} is missing; {remedy}")
        if state[name].shape != tensor.shape:
            raise MinipeftError(
                f"{folder / WEIGHTS}: {name} has shape {tuple(state[name].shape)}, but the model "
                f"asks for {tuple(tensor.shape)}; load the model that the adapter belongs to"
            )
        if not state[name].is_floating_point():
            raise MinipeftError(f"{folder / WEIGHTS}: {name} holds {state[name].dtype}, no floating-point numbers")
    if unused := sorted(set(state) - set(expected)):
        raise MinipeftError(
            f"{folder / WEIGHTS}: nothing uses tensor {unused[0]} (and {len(unused) - 1} more); "
            f"{_other_layers(expected, state) or 'the adapter belongs to another model or method'}"
        )


def _other_layers(expected: Iterable[str], state: Iterable[str]) -> str:
    """What to say where a file's tensors end at another layer than the model's; nothing where they do not."""
    asked, found = (
        max((int(number) for name in names for number in re.findall(r"\.layer\.(\d+)\.", name)), default=-1) + 1
        for names in (expected, state)
    )
    if asked == found:
        return ""
    return f"it holds tensors up to layer {found}, the model asks for {asked}: load the model that it belongs to"


@torch.no_grad()
def _fill(model: SequenceClassifier, state: dict[str, Tensor]) -> None:
    for name, tensor in adapter_tensors(model).items():
        tensor.copy_(state[name])


def _head_of_the_model(
    model: SequenceClassifier, shape: SequenceClassifier, state: dict[str, Tensor], folder: Path
) -> dict[str, Tensor]:
    """The parts of the head that peft did not save, because its modules_to_save do not name them, from the model."""
    named = read_json(folder / CONFIG).get("modules_to_save") or []
    tensors = dict(model.head.named_parameters())
    own = {}
    for theirs, tensor in adapter_tensors(shape).items():
        ours = next((name for name, t in shape.head.named_parameters() if t is tensor), None)
        part = "pooler" if ".pooler." in theirs else "classifier"
        if ours is not None and theirs not in state and part not in named:
            own[theirs] = tensors[ours].detach().clone()
    if any("classifier" in name for name in own):
        logger.warning("%s holds no classification head: the model keeps its own", folder)
    return own


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            details = parse_json((file.metadata() or {}).get("minipeft", "{}"))
    except FileNotFoundError:
        raise MinipeftError(f"{path} is missing; name the adapter folder of a run") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise MinipeftError(f"{path}: not a whole safetensors file ({str(error)[:200]})") from None
    return state, details if isinstance(details, dict) else {}


def _base(config: EncoderConfig) -> dict[str, Any]:
    names = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "intermediate_size")
    return {name: getattr(config, name) for name in names}


def _in_words(base: dict[str, Any]) -> str:
    return (
        f"{base.get('model_type')} with {base.get('num_hidden_layers')} layers of {base.get('hidden_size')} "
        f"and {base.get('vocab_size')} tokens, {base.get('num_attention_heads')} heads and an inner size of "
        f"{base.get('intermediate_size')}"
    )


COMMON = ("base_model_name_or_path", "task_type", "inference_mode", "peft_type", "modules_to_save")


def _content(model: SequenceClassifier) -> dict[str, Any]:
    """What adapter_config.json says of the model's method."""
    method, config = model.method, model.config
    name = method_name(method)
    row = METHODS[name]
    own = {"peft_type": f"MINIPEFT_{name.upper()}", **asdict(method)}
    content = own if row.peft is None else {"peft_type": row.peft.peft_type, **row.peft.write(method, config)}
    return content | {
        "base_model_name_or_path": str(model.folder) if model.folder else None,
        "task_type": "SEQ_CLS",
        "inference_mode": True,
        "modules_to_save": [
            *(["pooler"] if config.is_bert else []),
            "classifier",
            *content.get("modules_to_save", []),
        ],
    }


def _method(content: dict[str, Any], config: EncoderConfig) -> Any:
    """The method's config that an adapter_config.json describes."""
    kind = content.get("peft_type")
    for name, row in METHODS.items():
        if row.peft is not None and row.peft.describes(content):
            return row.peft.read(content, config)
        if row.peft is None and kind == f"MINIPEFT_{name.upper()}":
            return _own(row, content)
    known = [row.peft.peft_type if row.peft else f"MINIPEFT_{name.upper()}" for name, row in METHODS.items()]
    raise MinipeftError(f"unknown peft_type {kind!r}; {', '.join(dict.fromkeys(known))} are known")


def _own(row: Row, content: dict[str, Any]) -> Any:
    names = {f.name for f in fields(row.config)}
    check_fields(content, {*names, *COMMON})
    return row.config(**{name: value for name, value in content.items() if name in names})
