"""A trained method → an adapter's two files, in peft's format.

adapter_config.json        peft's fields; a peft_type of our own for the methods that peft lacks
adapter_model.safetensors  what trained, head included, under the names that peft gives; labels, task and best score
                           travel in its metadata
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from minipeft.errors import MinipeftError
from minipeft.files import FORMAT, json_text, make_folder, user_path, write_together
from minipeft.methods import METHODS, method_name
from minipeft.methods.adapted import AdaptedLinear, adapted_layers
from minipeft.methods.peft_format import trained_paths, write_layers
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.config import EncoderConfig
from minipeft.model.families import family_of
from minipeft.model.pretrained import name_table, tensor_names
from minipeft.problems import problem_row

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CALIBRATION = "calibration.json"  # written by `evaluate --calibrate`, and of these weights alone
PROBABILITIES = ("temperatures", "thresholds")  # what it holds: attributes of a Problem


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
    folder = user_path(folder)
    make_folder(folder)
    (folder / CALIBRATION).unlink(missing_ok=True)
    state = {theirs: tensor.detach().cpu().contiguous() for theirs, tensor in adapter_tensors(model).items()}
    config = model.config
    content = adapter_content(model)
    # The config travels in the weights too: a kill between the two renames is then seen when the adapter is loaded.
    details = {"format": FORMAT, "problem_type": config.problem_type} | details
    if getattr(model.method, "train_layers", None) is not None:  # peft's fields list layers, and not how many
        details["method"] = asdict(model.method)
    details = {"labels": list(config.id2label.values()), "base": base_model_fields(config), "config": content} | details
    metadata = {"minipeft": json.dumps(details)}  # one entry: safetensors orders several at random
    write_together(
        {
            folder / CONFIG: lambda path: path.write_text(json_text(content), encoding="utf-8"),
            folder / WEIGHTS: lambda path: save_file(state, path, metadata=metadata),
        }
    )


def base_model_fields(config: EncoderConfig) -> dict[str, Any]:
    names = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "intermediate_size")
    return {name: getattr(config, name) for name in names}


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
    modules = getattr(method, "modules_to_save", ())
    if peft is not None and getattr(method, "train_layers", None) is not None:
        content |= write_layers(content, peft_type_of(name), model.encoder)
        modules = trained_paths(modules, model.encoder)
    return {
        "peft_type": peft_type_of(name),
        **content,
        "base_model_name_or_path": str(model.folder) if model.folder else None,
        "task_type": problem_row(config.problem_type, config.num_labels).peft_task,
        "inference_mode": True,
        "modules_to_save": [*family_of(config).head_modules, *modules],
    }


def peft_type_of(name: str) -> str:
    """peft's name of a method, or our own for a method that peft lacks."""
    return METHODS[name].peft_type or f"MINIPEFT_{name.upper()}"
