"""Checkpoints in Hugging Face's format: reading them through the families' tables of names.

saved_checkpoint.py writes them.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from minipeft.errors import MinipeftError, check_int, first_line, format_names, is_rank_zero, logger
from minipeft.model.classifier import SequenceClassifier, new_classifier
from minipeft.model.config import EncoderConfig, generic_labels, label_order
from minipeft.model.families import family_of, load_config
from minipeft.model.layers import init_weights


def load_pretrained(
    name_or_dir: str | Path,
    num_labels: int = 2,
    dtype: torch.dtype = torch.float32,
    problem_type: str | None = None,
) -> SequenceClassifier:
    """Load a checkpoint, by name or from a folder, as a classifier in evaluation mode.

    A checkpoint without a classification head, or with one for another number of labels or another task, gets a new
    head. One log line names what is new and what of the file is not used.

    Args:
        name_or_dir: roberta-base, roberta-mini, owner/name, … or a folder; a name that is not here yet is fetched.
        num_labels: Number of classes; 1 for regression.
        dtype: Of the frozen weights and the activations: torch.float32 or torch.bfloat16.
        problem_type: The kind of labels, a name in PROBLEMS; the default is that of the checkpoint, or, for another
            number of labels, classes of sequences. "token_classification" gives a TokenClassifier.

    Raises:
        MinipeftError: for a missing or damaged file, and for a tensor that is missing or has the wrong shape.
    """
    from minipeft.hub import resolve_model

    folder, _ = resolve_model(str(name_or_dir))
    check_int("num_labels", num_labels)
    config = load_config(folder)
    same_kind = problem_type in (None, config.label_kind)
    reuse_head = config.num_labels == num_labels and same_kind
    if not reuse_head:
        config = config.with_labels(generic_labels(num_labels), problem_type)
    return cast_frozen(_load_classifier(folder, config, reuse_head), dtype).eval()


def load_for_training(folder: Path, labels: Sequence[str], problem_type: str) -> SequenceClassifier:
    """Load a checkpoint with the classes `labels`; its head is used only if it has the same ones, in any order."""
    config = load_config(folder)
    order = None
    if config.label_kind == problem_type:  # the number of a regression has no name to compare
        one_number = config.num_labels == len(labels) == 1
        order = [0] if one_number else label_order(list(config.id2label.values()), labels)
    if order is None:
        return _load_classifier(folder, config.with_labels(list(labels), problem_type), reuse_head=False)
    model = reorder_labels(_load_classifier(folder, config, reuse_head=True), order)
    model.config = model.config.with_labels(list(labels), problem_type)
    return model


def reorder_labels(model: SequenceClassifier, order: list[int]) -> SequenceClassifier:
    """Give the output layer and its class names another order: new class i is the old class order[i]."""
    names = list(model.config.id2label.values())
    for parameter in model.head.get_submodule("out_proj").parameters():
        parameter.data = parameter.data[order]
    model.config = model.config.with_labels([names[index] for index in order], model.config.problem_type)
    return model


def _load_classifier(folder: Path, config: EncoderConfig, reuse_head: bool) -> SequenceClassifier:
    with torch.device("meta"):
        model = new_classifier(config)
    model = fill_from_checkpoint(model, config, folder, reuse_head and config.has_own_head)
    model.folder = folder
    return model


def cast_frozen(model: SequenceClassifier, dtype: torch.dtype) -> SequenceClassifier:
    """Compute the encoder in `dtype`, and store in it what does not train; the head stays float32."""
    if dtype not in (torch.float32, torch.bfloat16):
        raise MinipeftError(f"dtype {dtype} is not supported; torch.float32 and torch.bfloat16 are")
    for parameter in model.encoder.parameters():
        if model.method is None or not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    if dtype != torch.float32:  # by itself the head would keep the whole checkpoint's file mapped
        for parameter in model.head.parameters():
            parameter.data = parameter.data.clone()
    model.encoder.dtype = dtype
    return model


def fill_from_checkpoint(model: Any, config: EncoderConfig, folder: Path, reuse_head: bool = True) -> Any:
    """Give a model on the meta device the folder's tensors, and new values for the parts of its head that it lacks.

    Without `reuse_head` a classification head in the file is not used. `model.new_tensors` names what is new.
    """
    prefix = family_of(config).prefix
    stored = read_weights(folder)
    found = {_plain_name(name, prefix): name for name in sorted(stored, key=lambda name: name.startswith(prefix))}
    names = tensor_names(model, config)
    replaced = not reuse_head and _plain_name(names["head.out_proj.weight"], prefix) in found
    state: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        if replaced and ours.startswith("head.") and not theirs.startswith(prefix):  # BERT's pooler is the encoder's
            continue
        if (name := found.pop(_plain_name(theirs, prefix), None)) is not None:
            state[ours] = check_tensor(stored[name], model.get_parameter(ours).shape, f"{folder}: {name}")
    missing = [ours for ours in names if ours not in state]
    _check_missing(names, missing, config, folder)
    model.load_state_dict(state, strict=False, assign=True)
    new_modules = sorted({name.rpartition(".")[0] or name for name in missing})
    for name in new_modules:
        part = nn.Module() if name == "bias" else model.get_submodule(name)
        if name == "bias":
            model.bias = nn.Parameter(torch.zeros(config.vocab_size))
        for tensor_name, parameter in list(part.named_parameters(recurse=False)):
            # not to_empty, for which torch imports sympy
            setattr(part, tensor_name, nn.Parameter(torch.empty(parameter.shape, device="cpu")))
        init_weights(part, config.initializer_range)
    model.new_tensors = tuple(missing)
    _log_differences(folder, new_modules, config, list(found.values()), replaced)
    return model.requires_grad_(True)


def check_tensor(tensor: Tensor, expected: torch.Size, place: str) -> Tensor:
    """Return a stored tensor in float32; raise for another shape than `expected` and for integers."""
    if tensor.shape != expected:
        raise MinipeftError(
            f"{place} has shape {tuple(tensor.shape)}, but the model asks for {tuple(expected)}; "
            "take the model that the weights belong to"
        )
    if not tensor.is_floating_point():
        raise MinipeftError(f"{place} holds {tensor.dtype}; minipeft takes float32, float16 or bfloat16 weights")
    return tensor.to(torch.float32)


def _check_missing(names: dict[str, str], missing: list[str], config: EncoderConfig, folder: Path) -> None:
    """Raise for missing tensors of the encoder, and for a module of the head that is there in part only."""
    lacking = [ours for ours in missing if ours.startswith("encoder.")]
    for module in family_of(config).head_modules:  # BERT's pooler without a classifier is no damage
        tensors = [ours for ours, theirs in names.items() if f".{module}." in f".{theirs}"]
        if not set(tensors) <= set(missing):
            lacking += [ours for ours in tensors if ours in missing]
    if lacking:
        raise MinipeftError(
            f"{folder}: tensor {names[lacking[0]]} is missing (and {len(lacking) - 1} more); fetch the checkpoint "
            f"again, or one whose weights belong to the {config.num_hidden_layers}-layer {config.model_type} in "
            "config.json"
        )


# Starts of names, without the family's prefix, that a pretraining checkpoint usually has in addition to the encoder.
PRETRAINING_HEADS = (
    *("lm_head.", "cls.", "pooler.", "vocab_", "discriminator_predictions.", "lm_predictions.", "mask_predictions."),
    *("decoder.", "embeddings.position_"),
)


def _log_differences(
    folder: Path, new_modules: list[str], config: EncoderConfig, unused: list[str], replaced: bool
) -> None:
    """Log one line that says what is new and what of the file is not used; a warning if that is unusual."""
    from minipeft.hub.names import model_name

    parts = []
    if new_modules:
        deviation = f"normal, standard deviation {config.initializer_range:g}"
        parts.append(f"{' and '.join(new_modules)} newly initialized ({deviation})")
    if unused:
        parts.append(f"not used: {format_names(sorted(unused))}")
    prefix = family_of(config).prefix
    unusual = replaced or any(not _plain_name(name, prefix).startswith(PRETRAINING_HEADS) for name in unused)
    if parts and is_rank_zero():
        logger.log(logging.WARNING if unusual else logging.INFO, "%s: %s", model_name(folder), "; ".join(parts))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read every tensor of model.safetensors or pytorch_model.bin, in one file or in shards with an index.

    Raises:
        MinipeftError: for missing or damaged files, and for a pickle that holds more than tensors.
    """
    if (folder / "model.safetensors").is_file():
        return _read_safetensors(folder / "model.safetensors")
    from minipeft.model.weight_files import read_shards_or_pickle

    return read_shards_or_pickle(folder, _read_safetensors)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # for a dtype that torch lacks it is a KeyError
        raise MinipeftError(
            f"{path}: not a whole safetensors file ({first_line(error)}); fetch the checkpoint again"
        ) from None


def _plain_name(name: str, prefix: str) -> str:
    """Hugging Face's name without prefix; gamma and beta are what old checkpoints call LayerNorm's two."""
    name = name.removeprefix(prefix)
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda m: "LayerNorm." + {"gamma": "weight", "beta": "bias"}[m[1]], name)


def name_table(model: nn.Module, config: EncoderConfig) -> dict[str, str]:
    """Our module's name → transformers', for every module of a classifier or language model in a checkpoint."""
    family = family_of(config)
    table = {f"encoder.{ours}": theirs for ours, theirs in family.encoder_paths(config).items()}
    if hasattr(model, "head"):
        return table | {f"head.{ours}": theirs for ours, theirs in family.head_names.items()}
    return table | family.language_model


def tensor_names(model: nn.Module, config: EncoderConfig) -> dict[str, str]:
    """Our tensor's name → transformers', for the tensors of a checkpoint; a method's own are not among them."""
    names = {}
    for ours, theirs in name_table(model, config).items():
        if ours == "bias":  # the language model's output bias is a tensor, not a module
            names[ours] = theirs
        else:
            module = model.get_submodule(ours)
            for leaf in ("weight", "bias"):
                if getattr(module, leaf, None) is not None:
                    names[f"{ours}.{leaf}"] = f"{theirs}.{leaf}"
    return names
