"""A trained method as files in peft's format; merging, and exporting a whole model.

adapter_config.json        peft's fields for LoRA; a peft_type of our own for the methods that peft lacks
adapter_model.safetensors  what trained, head included, under the names that peft gives; labels, task and best score
                           travel in its metadata
"""

from __future__ import annotations

import copy
import json
import logging
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minipeft.errors import MinipeftError
from minipeft.files import in_json, make_folder, read_json, write_together
from minipeft.methods import METHODS, apply, method_name
from minipeft.methods.lora import PEFT_NAMES, LoRA, LoRALinear
from minipeft.model.checkpoint import name_table, save_checkpoint, tensor_names
from minipeft.model.roberta import LINEAR_NAMES, SequenceClassifier

logger = logging.getLogger("minipeft")

PREFIX = "base_model.model."
TO_PEFT = {ours: theirs for theirs, ours in PEFT_NAMES.items()}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Fields of peft's LoRA config that change the mathematics, with the only value that is supported here.
PEFT_LORA_FIXED: dict[str, Any] = {
    "use_dora": False,
    "use_rslora": False,
    "bias": "none",
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
    "layers_pattern": None,
    "exclude_modules": None,
    "layer_replication": None,
    "lora_bias": False,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
}
# How A and B may have started; the other ways (pissa, olora, …) change the frozen weights too.
PEFT_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


def save_adapter(model: SequenceClassifier, folder: str | Path, **details: Any) -> None:
    """Write what trained to `folder`, which is made if need be; `details` (task, score, …) travel in the file."""
    if model.method is None:
        raise MinipeftError("the model has no method, so there is no adapter to save; call minipeft.apply first")
    if any(part.unmerged_weight is not None for part in _lora_layers(model)):
        raise MinipeftError("the adapter is merged; call minipeft.unmerge before saving it")
    folder = Path(folder)
    make_folder(folder)
    names = _adapter_names(model)
    state = {
        names[name]: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    config = model.config
    content = _peft_config(model)
    # The config travels in the weights too: a kill between the two renames is then seen when the adapter is loaded.
    details = {"labels": list(config.id2label.values()), "base": _base(model), "config": content} | details
    metadata = {"minipeft": json.dumps(details)}  # one entry: safetensors orders several at random
    write_together(
        {
            folder / CONFIG: lambda path: path.write_text(in_json(content), encoding="utf-8"),
            folder / WEIGHTS: lambda path: save_file(state, path, metadata=metadata),
        }
    )


def load_adapter(model: SequenceClassifier, folder: str | Path) -> SequenceClassifier:
    """Install the method that `folder` holds, with its trained values; returns the same model.

    Raises MinipeftError for an adapter of another base, an unknown type or setting, and a tensor that is missing,
    unused or of a wrong shape.
    """
    folder = Path(folder)
    content = read_json(folder / CONFIG)
    method = _method(content, folder)
    state, details = read_adapter(folder)
    if isinstance(saved := details.get("config"), dict) and (of_weights := _method(saved, folder)) != method:
        raise MinipeftError(
            f"{folder}: {CONFIG} is of {method!r}, but {WEIGHTS} of {of_weights!r}; save the adapter again"
        )
    base = details.get("base")
    if base is not None and base != _base(model):
        raise MinipeftError(
            f"{folder}: the adapter was trained on {_in_words(base)}, but the model is "
            f"{_in_words(_base(model))}; load the model that it belongs to"
        )
    labels = details.get("labels")
    if isinstance(labels, list) and len(labels) != model.config.num_labels:
        raise MinipeftError(
            f"{folder}: the adapter has {len(labels)} labels, the model {model.config.num_labels}; "
            f"load the model with num_labels={len(labels)}"
        )
    apply(model, method)
    if model.config.is_bert and "pooler" not in (content.get("modules_to_save") or ["pooler"]):
        for name, tensor in model.head.dense.state_dict().items():  # peft left the pooler as the checkpoint has it
            state.setdefault(_adapter_names(model)[f"head.dense.{name}"], tensor)
    _fill(model, state, folder)
    if isinstance(labels, list):
        model.config = model.config.with_labels([str(label) for label in labels])
    return model


def reload_adapter(model: SequenceClassifier, folder: Path) -> None:
    """Give a model that has the method already the values in `folder`: a run's best epoch, say."""
    _fill(model, read_adapter(folder)[0], folder)


def _fill(model: SequenceClassifier, state: dict[str, Tensor], folder: Path) -> None:
    names = _adapter_names(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            tensor = state.pop(names[name], None)
            if tensor is None:
                raise MinipeftError(f"{folder / WEIGHTS}: tensor {names[name]} is missing; the file is not whole")
            if tensor.shape != parameter.shape:
                raise MinipeftError(
                    f"{folder / WEIGHTS}: {names[name]} has shape {tuple(tensor.shape)}, but the model "
                    f"asks for {tuple(parameter.shape)}; load the model that the adapter belongs to"
                )
            parameter.copy_(tensor)
    if state:
        raise MinipeftError(
            f"{folder / WEIGHTS}: nothing uses tensor {min(state)} (and {len(state) - 1} more); "
            "the adapter belongs to another model or method"
        )


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of an adapter, and the details that travel with them (labels, task, score)."""
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            details = json.loads((file.metadata() or {}).get("minipeft", "{}"))
    except FileNotFoundError:
        raise MinipeftError(f"{path} is missing; name the adapter folder of a run") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise MinipeftError(f"{path}: not a whole safetensors file ({str(error)[:200]})") from None
    return state, details if isinstance(details, dict) else {}


@torch.no_grad()
def merge(model: SequenceClassifier) -> SequenceClassifier:
    """Add each low-rank product to its frozen weight (methods other than LoRA have nothing to merge)."""
    for part in _lora_layers(model):
        part.merge()
    return model


@torch.no_grad()
def unmerge(model: SequenceClassifier) -> SequenceClassifier:
    """Undo `merge`: the frozen weights are what they were, to the bit."""
    for part in _lora_layers(model):
        part.unmerge()
    return model


def export(model: SequenceClassifier, folder: str | Path) -> None:
    """Write a whole checkpoint, adapter merged, that transformers loads; the tokenizer's files come along."""
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise MinipeftError(f"{folder} is not empty; export to a new folder")
    make_folder(folder)
    whole = merge(copy.deepcopy(model).cpu().float())
    save_checkpoint(whole, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"):
        if model.folder is not None and (model.folder / name).is_file():
            shutil.copyfile(model.folder / name, folder / name)


def _lora_layers(model: SequenceClassifier) -> list[LoRALinear]:
    return [part for part in model.modules() if isinstance(part, LoRALinear)]


def _adapter_names(model: SequenceClassifier) -> dict[str, str]:
    """Our name of each parameter → its name in the file."""
    modules = name_table(model, model.config)
    names = {ours: PREFIX + theirs for ours, theirs in tensor_names(model, model.config).items()}
    for name, _ in model.named_parameters():
        if name not in names:  # a method's own tensor: peft keeps each in a module of its own
            module, _, leaf = name.rpartition(".")
            names[name] = f"{PREFIX}{modules[module]}.{leaf}.weight"
    return names


def _base(model: SequenceClassifier) -> dict[str, Any]:
    config = model.config
    return {
        "model_type": config.model_type,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "vocab_size": config.vocab_size,
    }


def _in_words(base: dict[str, Any]) -> str:
    return (
        f"{base.get('model_type')} with {base.get('num_hidden_layers')} layers of {base.get('hidden_size')} "
        f"and {base.get('vocab_size')} tokens"
    )


def _peft_config(model: SequenceClassifier) -> dict[str, Any]:
    method = model.method
    content: dict[str, Any] = {
        "base_model_name_or_path": str(model.folder) if model.folder else None,
        "task_type": "SEQ_CLS",
        "inference_mode": True,
    }
    if not isinstance(method, LoRA):
        return content | {"peft_type": f"MINIPEFT_{method_name(method).upper()}", **asdict(method)}
    targets: list[str] | str = [TO_PEFT.get(target, target) for target in method.targets]
    if "ffn_output" in method.targets:  # "output.dense" alone would also name attention.output.dense
        any_of = "|".join(
            ["attention\\.self\\." + target for target in targets if "." not in target]
            + [target.replace(".", "\\.") for target in targets if "." in target]
        )
        targets = f".*\\.layer\\.\\d+\\.({any_of})"
    return content | {
        "peft_type": "LORA",
        "r": method.rank,
        "lora_alpha": method.alpha,
        "lora_dropout": method.dropout,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": ["pooler", "classifier"] if model.config.is_bert else ["classifier"],
    }


def _method(content: dict[str, Any], folder: Path) -> Any:
    """The method's config that an adapter_config.json describes."""
    kind = content.get("peft_type")
    if kind == "LORA":
        for name, value in PEFT_LORA_FIXED.items():
            if content.get(name, value) not in (value, None):
                raise MinipeftError(f"{folder / CONFIG}: {name} {content[name]!r} is not supported; {value!r} is")
        if (start := content.get("init_lora_weights")) not in PEFT_INITIALISATIONS:
            raise MinipeftError(f"{folder / CONFIG}: init_lora_weights {start!r} is not supported; true is")
        try:
            return LoRA(
                content["r"],
                content["lora_alpha"],
                content.get("lora_dropout", 0.0),
                _targets(content["target_modules"], folder),
            )
        except (KeyError, TypeError, re.error, MinipeftError) as error:
            raise MinipeftError(f"{folder / CONFIG}: no usable LoRA config ({error!r})") from None
    for name, (config, _) in METHODS.items():
        if name != "lora" and kind == f"MINIPEFT_{name.upper()}":
            return config()
    raise MinipeftError(
        f"{folder / CONFIG}: unknown peft_type {kind!r}; LORA is known, and "
        f"{', '.join(f'MINIPEFT_{name.upper()}' for name in METHODS if name != 'lora')}"
    )


def _targets(modules: list[str] | str, folder: Path) -> tuple[str, ...]:
    """Our names of the linear layers that peft's target_modules (suffixes, or one regular expression) name."""
    found = []
    for ours in LINEAR_NAMES:
        path = "encoder.layer.0." + TO_PEFT.get(ours, f"attention.self.{ours}")
        paths = ("roberta." + path, "bert." + path)
        if isinstance(modules, str):
            hit = any(re.fullmatch(modules, path) for path in paths)
        else:
            hit = any(path == name or path.endswith("." + name) for name in modules for path in paths)
        if hit:
            found.append(ours)
    if not found:
        raise MinipeftError(f"{folder / CONFIG}: target_modules {modules!r} names no linear layer of the encoder")
    return tuple(found)
