"""An adapter's two files: peft's fields and names on one side, a method's config and tensors on the other."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from minipeft.errors import MinipeftError, first_line, short_repr
from minipeft.files import parse_json, read_json
from minipeft.methods import METHODS, MethodEntry, method_name
from minipeft.methods.adapted import AdaptedLinear
from minipeft.methods.peft_format import check_fields
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.config import EncoderConfig
from minipeft.model.families import family_of, name_table, tensor_names

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Adapter:
    """What the files hold.

    Attributes:
        state: peft's name → the tensor.
        details: What travels with the tensors: labels, task, score, epoch.
        modules_to_save: What peft saved in addition to the method; the model keeps its modules of the head that are
            not among them.
    """

    folder: Path
    method: Any
    state: dict[str, Tensor]
    details: dict[str, Any]
    modules_to_save: tuple[str, ...]


def read_adapter(folder: Path, config: EncoderConfig) -> Adapter:
    """Read an adapter for a model of shape `config`; files that do not fit it, or each other, raise MinipeftError."""
    content = read_json(folder / CONFIG)
    state, details = _read_tensors(folder / WEIGHTS)
    base = details.get("base")
    of_model = base_model_fields(config)
    if isinstance(base, dict) and (of_adapter := of_model | base) != of_model:  # older files say less
        raise MinipeftError(
            f"{folder}: the adapter was trained on {_describe(of_adapter)}, but the model is {_describe(of_model)}; "
            "load the model that it belongs to"
        )
    try:
        method = _method(content, config)
        saved = details.get("config")
        of_weights = _method(saved, config) if isinstance(saved, dict) else method
        saved_modules = content.get("modules_to_save") or ()
        saved_modules = (saved_modules,) if isinstance(saved_modules, str) else tuple(saved_modules)
    except (MinipeftError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise MinipeftError(f"{folder / CONFIG}: no usable config of a method ({first_line(error)})") from None
    if of_weights != method:
        name, one, other = _first_differing_setting(method, of_weights)
        raise MinipeftError(
            f"{folder}: {name} is {short_repr(one)} in {CONFIG}, but {short_repr(other)} in {WEIGHTS}; "
            "save the adapter again"
        )
    # With bias="all", peft writes the biases of modules_to_save again, under its wrappers' names.
    again = re.compile(r"\.(modules_to_save|original_module)\.(.*\.)?bias$")
    state = {name: tensor for name, tensor in state.items() if not again.search(name)}
    return Adapter(folder, method, state, details, saved_modules)


def _first_differing_setting(method: Any, other: Any) -> tuple[str, Any, Any]:
    if type(method) is type(other):
        for name in (f.name for f in fields(method)):
            if getattr(method, name) != getattr(other, name):
                return name, getattr(method, name), getattr(other, name)
    return "the method", method, other


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


def base_model_fields(config: EncoderConfig) -> dict[str, Any]:
    names = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "intermediate_size")
    return {name: getattr(config, name) for name in names}


def _describe(base: dict[str, Any]) -> str:
    return (
        f"{base.get('model_type')} with {base.get('num_hidden_layers')} layers of {base.get('hidden_size')} "
        f"and {base.get('vocab_size')} tokens, {base.get('num_attention_heads')} heads and an inner size of "
        f"{base.get('intermediate_size')}"
    )


def adapter_tensors(model: SequenceClassifier) -> dict[str, Tensor]:
    """What an adapter file holds: peft's name → the tensor, for trainable parameters and a method's buffers."""
    peft = METHODS[method_name(model.method)].peft
    prefix, renamed = (peft.prefix, peft.names) if peft else (PREFIX, {})
    modules = name_table(model, model.config)
    checkpoint = tensor_names(model, model.config)
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in checkpoint and not tensor.requires_grad:
            continue
        module = next((ours for ours in _parent_modules(name) if ours in modules), "")
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


def _parent_modules(name: str) -> Iterable[str]:
    """The modules that hold a tensor, from the innermost."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def adapter_content(model: SequenceClassifier) -> dict[str, Any]:
    """What adapter_config.json says of the model's method."""
    method, config = model.method, model.config
    name = method_name(method)
    peft = METHODS[name].peft
    content = asdict(method) if peft is None else peft.write(method, config)
    return {
        "peft_type": _peft_type(name),
        **content,
        "base_model_name_or_path": str(model.folder) if model.folder else None,
        "task_type": "SEQ_CLS",
        "inference_mode": True,
        "modules_to_save": [*family_of(config).head_modules, *content.get("modules_to_save", [])],
    }


def _method(content: dict[str, Any], config: EncoderConfig) -> Any:
    """The method's config that an adapter_config.json describes."""
    known = {name: _peft_type(name) for name in METHODS}
    for name, peft_type in known.items():
        if content.get("peft_type") == peft_type:  # of several methods with one peft_type, a field decides
            peft = METHODS[name].peft
            if peft is None:
                return _own(METHODS[name], content)
            if peft.describes(content):
                return peft.read(content, config)
    names = ", ".join(dict.fromkeys(known.values()))
    raise MinipeftError(f"unknown peft_type {content.get('peft_type')!r}; {names} are known")


def _peft_type(name: str) -> str:
    """peft's name of a method, or our own for a method that peft lacks."""
    return METHODS[name].peft_type or f"MINIPEFT_{name.upper()}"


def _own(entry: MethodEntry, content: dict[str, Any]) -> Any:
    names = {f.name for f in fields(entry.config)}
    check_fields(content, names)
    return entry.config(**{name: value for name, value in content.items() if name in names})
