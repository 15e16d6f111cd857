"""Checkpoints in Hugging Face's format: the ONE table of names, and reading and writing through it."""

from __future__ import annotations

import logging
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minipeft.errors import MinipeftError, first_line, shown
from minipeft.files import parse_json, read_small, write_atomically, write_json
from minipeft.model.config import MODEL_TYPES, EncoderConfig, load_config
from minipeft.model.roberta import MaskedLanguageModel, SequenceClassifier, initialise

logger = logging.getLogger("minipeft")

# Our module ↔ Hugging Face's. {p} is the family's prefix ("roberta." or "bert."), {i} a layer's number.
ENCODER_NAMES = {
    "encoder.word_embeddings": "{p}embeddings.word_embeddings",
    "encoder.position_embeddings": "{p}embeddings.position_embeddings",
    "encoder.token_type_embeddings": "{p}embeddings.token_type_embeddings",
    "encoder.layer_norm": "{p}embeddings.LayerNorm",
    "encoder.layers.{i}.query": "{p}encoder.layer.{i}.attention.self.query",
    "encoder.layers.{i}.key": "{p}encoder.layer.{i}.attention.self.key",
    "encoder.layers.{i}.value": "{p}encoder.layer.{i}.attention.self.value",
    "encoder.layers.{i}.output": "{p}encoder.layer.{i}.attention.output.dense",
    "encoder.layers.{i}.attention_layer_norm": "{p}encoder.layer.{i}.attention.output.LayerNorm",
    "encoder.layers.{i}.intermediate": "{p}encoder.layer.{i}.intermediate.dense",
    "encoder.layers.{i}.ffn_output": "{p}encoder.layer.{i}.output.dense",
    "encoder.layers.{i}.output_layer_norm": "{p}encoder.layer.{i}.output.LayerNorm",
}
CLASSIFIER_NAMES = {
    "roberta": {"head.dense": "classifier.dense", "head.out_proj": "classifier.out_proj"},
    "bert": {"head.dense": "{p}pooler.dense", "head.out_proj": "classifier"},
}
LANGUAGE_MODEL_NAMES = {
    "roberta": {"dense": "lm_head.dense", "layer_norm": "lm_head.layer_norm", "bias": "lm_head.bias"},
    "bert": {
        "dense": "cls.predictions.transform.dense",
        "layer_norm": "cls.predictions.transform.LayerNorm",
        "bias": "cls.predictions.bias",
    },
}
# Tensors that a checkpoint may hold for another purpose, by the start of their names without the prefix.
UNUSED_BY_CLASSIFIER = {
    "roberta": ("lm_head.", "pooler.", "embeddings.position_ids"),
    "bert": ("cls.", "embeddings.position_ids"),
}
UNUSED_BY_LANGUAGE_MODEL = {
    "roberta": ("classifier.", "pooler.", "lm_head.decoder.", "embeddings.position_ids"),
    "bert": ("classifier.", "pooler.", "cls.predictions.decoder.", "cls.seq_relationship.", "embeddings.position_ids"),
}


def name_table(model: nn.Module, config: EncoderConfig) -> dict[str, str]:
    """Our module's name → Hugging Face's, for every module of `model` that holds tensors of a checkpoint."""
    family = MODEL_TYPES[config.model_type]
    own = LANGUAGE_MODEL_NAMES if isinstance(model, MaskedLanguageModel) else CLASSIFIER_NAMES
    table = {}
    for ours, theirs in (ENCODER_NAMES | own[family]).items():
        for i in range(config.num_hidden_layers if "{i}" in ours else 1):
            table[ours.replace("{i}", str(i))] = theirs.replace("{i}", str(i)).replace("{p}", family + ".")
    return table


def modules_named(model: nn.Module, suffix: str, config: EncoderConfig) -> list[str]:
    """Our names of the modules whose path in transformers' model ends in `suffix`, which is how peft names modules."""
    return [ours for ours, theirs in name_table(model, config).items() if f".{theirs}".endswith(f".{suffix}")]


def tensor_names(model: nn.Module, config: EncoderConfig) -> dict[str, str]:
    """Our tensor's name → Hugging Face's, for the tensors of a checkpoint (a method's own are not among them)."""
    table = name_table(model, config)
    names = {}
    for module, theirs in table.items():
        if module == "bias":  # the language model's output bias is a tensor, not a module
            names[module] = theirs
        else:
            names[f"{module}.weight"] = f"{theirs}.weight"
            if "embeddings" not in module:
                names[f"{module}.bias"] = f"{theirs}.bias"
    return names


def load_pretrained(
    name_or_dir: str | Path, num_labels: int = 2, dtype: torch.dtype = torch.float32
) -> SequenceClassifier:
    """Load a checkpoint of the RoBERTa family, by name or from a folder, as a sequence classifier.

    name_or_dir  roberta-base, roberta-mini, owner/name, … or a folder; a name that is not here yet is fetched
    num_labels   classes; 1 for regression. A checkpoint without a classification head gets a new one, and says so.
    dtype        of the frozen weights and the activations: torch.float32 or torch.bfloat16
    The model is in evaluation mode; call .train() before training it.
    Raises MinipeftError for a missing or damaged file, and for a tensor that is unknown, missing or of a wrong shape.
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
    model = _fill(model, config, folder, UNUSED_BY_CLASSIFIER)
    model.folder = folder
    return cast_frozen(model, dtype).eval()


def load_language_model(folder: Path) -> MaskedLanguageModel:
    """Load a checkpoint with its masked-language-model head (a missing one is initialised, and said so)."""
    config = load_config(folder)
    with torch.device("meta"):
        model = MaskedLanguageModel(config)
    return _fill(model, config, folder, UNUSED_BY_LANGUAGE_MODEL)


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
    content = config.to_dict() | {"dtype": str(dtype).removeprefix("torch.")}
    if isinstance(model, MaskedLanguageModel):
        content["architectures"] = ["BertForMaskedLM" if config.is_bert else "RobertaForMaskedLM"]
    write_json(folder / "config.json", content)
    state = {theirs: tensors[ours].to(dtype).contiguous() for ours, theirs in tensor_names(model, config).items()}
    write_atomically(folder / "model.safetensors", lambda path: save_file(state, path, metadata={"format": "pt"}))


def _fill(model: Any, config: EncoderConfig, folder: Path, unused: dict[str, tuple[str, ...]]) -> Any:
    """Give a model on the meta device its tensors: from the folder's weights, and a new head where it has none."""
    family = MODEL_TYPES[config.model_type]
    found = {_plain_name(name, family): tensor for name, tensor in read_weights(folder).items()}
    state: dict[str, Tensor] = {}
    missing = []
    for ours, theirs in tensor_names(model, config).items():
        expected = model.get_parameter(ours).shape
        tensor = found.pop(_plain_name(theirs, family), None)
        if tensor is None:
            missing.append(ours)
        elif tensor.shape != expected:
            raise MinipeftError(
                f"{folder}: {theirs} has shape {tuple(tensor.shape)}, but config.json and num_labels "
                f"ask for {tuple(expected)}; {_shape_remedy(ours)}"
            )
        elif not tensor.is_floating_point():
            raise MinipeftError(
                f"{folder}: {theirs} holds {tensor.dtype}, no floating-point numbers; "
                "minipeft takes float32, float16 or bfloat16 weights"
            )
        else:
            state[ours] = tensor.to(torch.float32)
    unknown = sorted(name for name in found if not name.startswith(unused[family]))
    if unknown:
        raise MinipeftError(
            f"{folder}: unknown tensor {unknown[0]} (and {len(unknown) - 1} more): these are not the "
            f"weights of the {config.num_hidden_layers}-layer {config.model_type} in config.json"
        )
    lacking = [name for name in missing if name.startswith("encoder.")]
    head = [name for name in tensor_names(model, config) if not name.startswith("encoder.")]
    if family == "roberta" and missing and not lacking and len(missing) < len(head):
        lacking = missing  # half a head is a damaged file; bert's pooler without a classifier is not
    if lacking:
        theirs = tensor_names(model, config)[lacking[0]]
        raise MinipeftError(
            f"{folder}: tensor {theirs} is missing (and {len(lacking) - 1} more); fetch the checkpoint again"
        )
    model.load_state_dict(state, strict=False, assign=True)
    new = sorted({name.rpartition(".")[0] or name for name in missing})
    for name in new:
        part = nn.Module() if name == "bias" else model.get_submodule(name)
        if name == "bias":
            model.bias = nn.Parameter(torch.zeros(config.vocab_size))
        initialise(part.to_empty(device="cpu"), config.initializer_range)
    if new:
        from minipeft.hub.hub import model_name

        logger.warning(
            "%s has no %s: initialised (normal, standard deviation %g)",
            model_name(folder),
            " and ".join(new),
            config.initializer_range,
        )
    return model.requires_grad_(True)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of model.safetensors, of its shards, or of pytorch_model.bin (unpickling tensors alone)."""
    index, single, pickled = (
        folder / name for name in ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin")
    )
    if single.is_file():
        return _read_safetensors(single)
    if index.is_file():
        try:
            shards = sorted(set(parse_json(read_small(index))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise MinipeftError(
                f"{index}: no weight_map in it ({first_line(error)}); fetch the checkpoint again"
            ) from None
        tensors: dict[str, Tensor] = {}
        for shard in shards:
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise MinipeftError(f"{index}: shard {shard!r} is no plain file name; fetch the checkpoint again")
            if not (folder / shard).is_file():
                raise MinipeftError(f"{folder}: shard {shard} is missing; fetch the checkpoint again")
            tensors |= _read_safetensors(folder / shard)
        return tensors
    if pickled.is_file():
        try:
            _refuse_compressed(pickled)
            content = torch.load(pickled, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load lets through the errors of zip, pickle and storage alike
            raise MinipeftError(
                f"{pickled}: not readable as tensors alone ({first_line(error)}); use a checkpoint in safetensors"
            ) from None
        if not isinstance(content, dict) or not all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
        ):
            raise MinipeftError(f"{pickled}: holds no table of tensors; use a checkpoint in safetensors")
        for name, tensor in content.items():
            if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
                raise MinipeftError(
                    f"{pickled}: {shown(name)} claims more numbers than the file holds; use a checkpoint in safetensors"
                )
        return content
    raise MinipeftError(
        f"{folder}: no weights (model.safetensors, its shards with an index, or pytorch_model.bin); "
        "put them there or name another folder"
    )


def _refuse_compressed(path: Path) -> None:
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


def _plain_name(name: str, family: str) -> str:
    """Hugging Face's name without prefix; gamma and beta are what old checkpoints call LayerNorm's two."""
    name = name.removeprefix(family + ".")
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda m: "LayerNorm." + {"gamma": "weight", "beta": "bias"}[m[1]], name)


def _shape_remedy(ours: str) -> str:
    if ours.startswith("head.out_proj"):
        return "load it with its own num_labels, or take a checkpoint without a head"
    return "config.json and the weights belong to different models"
