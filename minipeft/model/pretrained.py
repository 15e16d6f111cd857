"""Checkpoints in Hugging Face's format: reading and writing them through the families' tables of names."""

from __future__ import annotations

import logging
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minipeft.errors import MinipeftError, first_line, short_repr
from minipeft.files import parse_json, read_small, write_atomically, write_json
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.config import EncoderConfig
from minipeft.model.families import family_of, load_config, tensor_names
from minipeft.model.roberta import MaskedLanguageModel, init_weights

logger = logging.getLogger("minipeft")


def load_pretrained(
    name_or_dir: str | Path, num_labels: int = 2, dtype: torch.dtype = torch.float32
) -> SequenceClassifier:
    """Load a checkpoint of the RoBERTa family, by name or from a folder, as a sequence classifier.

    Args:
        name_or_dir: roberta-base, roberta-mini, owner/name, … or a folder; a name that is not here yet is fetched.
        num_labels: Classes; 1 for regression. A checkpoint without a classification head gets a new one, and says so.
        dtype: Of the frozen weights and the activations: torch.float32 or torch.bfloat16.

    The model is in evaluation mode; call .train() before training it.

    Raises:
        MinipeftError: for a missing or damaged file, and for a tensor that is unknown, missing or of a wrong shape.
    """
    from minipeft.hub.hub import resolve_model

    folder, _ = resolve_model(str(name_or_dir))
    config = load_config(folder)
    if num_labels < 1:
        raise MinipeftError(f"num_labels {num_labels} is less than 1; give the number of classes, or 1 for regression")
    if config.num_labels != num_labels:
        config = config.with_labels([f"LABEL_{number}" for number in range(num_labels)])
    with torch.device("meta"):
        model = SequenceClassifier(config)
    model = _fill(model, config, folder, family_of(config).ignored)
    model.folder = folder
    return cast_frozen(model, dtype).eval()


def load_language_model(folder: Path) -> MaskedLanguageModel:
    """Load a checkpoint with its masked-language-model head (a missing one is initialised, and said so)."""
    config = load_config(folder)
    family = family_of(config)
    if not family.language_model or config.hidden_act != "gelu":
        raise MinipeftError(
            f"{folder}: model_type {config.model_type} with hidden_act {config.hidden_act} cannot be pretrained here; "
            "use a RoBERTa or BERT with gelu"
        )
    with torch.device("meta"):
        model = MaskedLanguageModel(config)
    return _fill(model, config, folder, family.ignored_by_language_model)


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


def save_checkpoint(
    model: SequenceClassifier | MaskedLanguageModel, folder: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write config.json and model.safetensors as transformers reads them; `folder` must exist."""
    config = model.config
    tensors = model.state_dict()
    kind = "MaskedLM" if isinstance(model, MaskedLanguageModel) else "SequenceClassification"
    architectures = [f"{family_of(config).architecture}For{kind}"]
    content = {"architectures": architectures, "dtype": str(dtype).removeprefix("torch.")}
    write_json(folder / "config.json", config.to_dict() | content)
    state = {theirs: tensors[ours].to(dtype).contiguous() for ours, theirs in tensor_names(model, config).items()}
    write_atomically(folder / "model.safetensors", lambda path: save_file(state, path, metadata={"format": "pt"}))


def _fill(model: Any, config: EncoderConfig, folder: Path, ignored: tuple[str, ...]) -> Any:
    """Give a model on the meta device its tensors: from the folder's weights, and a new head where it has none."""
    family = family_of(config)
    found = {_plain_name(name, family.prefix): tensor for name, tensor in read_weights(folder).items()}
    names = tensor_names(model, config)
    state: dict[str, Tensor] = {}
    missing = []
    for ours, theirs in names.items():
        expected = model.get_parameter(ours).shape
        tensor = found.pop(_plain_name(theirs, family.prefix), None)
        if tensor is None:
            missing.append(ours)
        elif tensor.shape != expected:
            raise MinipeftError(
                f"{folder}: {theirs} has shape {tuple(tensor.shape)}, but config.json and num_labels "
                f"ask for {tuple(expected)}; {_shape_remedy(ours)}"
            )
        elif not tensor.is_floating_point():
            raise MinipeftError(
                f"{folder}: {theirs} holds {tensor.dtype}, not floating-point numbers; "
                "minipeft takes float32, float16 or bfloat16 weights"
            )
        else:
            state[ours] = tensor.to(torch.float32)
    unknown = sorted(name for name in found if not name.startswith(ignored))
    if unknown:
        raise MinipeftError(
            f"{folder}: unknown tensor {unknown[0]} (and {len(unknown) - 1} more): these are not the "
            f"weights of the {config.num_hidden_layers}-layer {config.model_type} in config.json"
        )
    lacking = [name for name in missing if name.startswith("encoder.")]
    for module in family.head_modules:  # a part of one is a damaged file; a pooler without a classifier is not
        tensors = [ours for ours, theirs in names.items() if f".{module}." in f".{theirs}"]
        if any(ours in missing for ours in tensors) and any(ours in state for ours in tensors):
            lacking += [ours for ours in tensors if ours in missing]
    if lacking:
        theirs = names[lacking[0]]
        raise MinipeftError(
            f"{folder}: tensor {theirs} is missing (and {len(lacking) - 1} more); fetch the checkpoint again"
        )
    model.load_state_dict(state, strict=False, assign=True)
    new = sorted({name.rpartition(".")[0] or name for name in missing})
    for name in new:
        part = nn.Module() if name == "bias" else model.get_submodule(name)
        if name == "bias":
            model.bias = nn.Parameter(torch.zeros(config.vocab_size))
        for tensor_name, parameter in list(part.named_parameters(recurse=False)):
            # not to_empty, for which torch imports sympy
            setattr(part, tensor_name, nn.Parameter(torch.empty(parameter.shape, device="cpu")))
        init_weights(part, config.initializer_range)
    if new:
        from minipeft.hub.names import model_name

        logger.info(
            "%s has no %s: newly initialized (normal, standard deviation %g)",
            model_name(folder),
            " and ".join(new),
            config.initializer_range,
        )
    return model.requires_grad_(True)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read every tensor of model.safetensors or pytorch_model.bin, in one file or in shards with an index.

    Raises:
        MinipeftError: for missing or damaged files, and for a pickle that holds more than tensors.
    """
    for name, read in (("model.safetensors", _read_safetensors), ("pytorch_model.bin", _read_pickled)):
        if (folder / name).is_file():
            return read(folder / name)
        if (index := folder / f"{name}.index.json").is_file():
            tensors: dict[str, Tensor] = {}
            for shard in _shards(index):
                tensors |= read(shard)
            return tensors
    raise MinipeftError(
        f"{folder}: no weights (model.safetensors or pytorch_model.bin, or their shards with an index). "
        "Put them there or name another folder"
    )


def _shards(index: Path) -> list[Path]:
    """Return the files that an index names."""
    try:
        names = sorted(set(parse_json(read_small(index))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MinipeftError(f"{index}: no weight_map in it ({first_line(error)}); fetch the checkpoint again") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise MinipeftError(f"{index}: shard {name!r} is not a plain file name; fetch the checkpoint again")
        if not (index.parent / name).is_file():
            raise MinipeftError(f"{index.parent}: shard {name} is missing; fetch the checkpoint again")
    return [index.parent / name for name in names]


def _read_pickled(path: Path) -> dict[str, Tensor]:
    """Read a file of torch.save that holds tensors only; nothing else in it is unpickled."""
    try:
        _check_uncompressed(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load lets through the errors of zip, pickle and storage alike
        raise MinipeftError(
            f"{path}: not readable as tensors alone ({first_line(error)}); use a checkpoint in safetensors"
        ) from None
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise MinipeftError(f"{path}: holds no table of tensors; use a checkpoint in safetensors")
    for name, tensor in content.items():
        if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise MinipeftError(
                f"{path}: {short_repr(name)} claims more numbers than the file holds; use a checkpoint in safetensors"
            )
    return content


def _check_uncompressed(path: Path) -> None:
    """torch never compresses what it saves; what would grow on reading may grow beyond the memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("it is compressed")


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


def _shape_remedy(ours: str) -> str:
    if ours.startswith("head.out_proj"):
        return "load it with its own num_labels, or take a checkpoint without a head"
    return "config.json and the weights belong to different models"
