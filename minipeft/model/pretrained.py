"""Checkpoints in Hugging Face's format: reading and writing them through the families' tables of names."""

import logging
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minipeft.errors import MinipeftError, check_int, first_line, format_names, is_rank_zero, short_repr
from minipeft.files import parse_json, read_small, write_atomically, write_json
from minipeft.model.classifier import SequenceClassifier, new_classifier
from minipeft.model.config import EncoderConfig, generic_labels, label_order
from minipeft.model.families import family_of, load_config, tensor_names
from minipeft.model.roberta import MaskedLanguageModel, init_weights
from minipeft.problems import problem_row

logger = logging.getLogger("minipeft")


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
    from minipeft.hub.hub import resolve_model

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
        one = config.num_labels == len(labels) == 1
        order = [0] if one else label_order(list(config.id2label.values()), labels)
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
    model = _fill(model, config, folder, reuse_head and config.has_own_head)
    model.folder = folder
    return model


def load_language_model(folder: Path) -> MaskedLanguageModel:
    """Load a checkpoint with its masked-language-model head; a missing head is initialized, and a log line says so."""
    config = load_config(folder)
    family = family_of(config)
    if not family.language_model or config.hidden_act != "gelu":
        raise MinipeftError(
            f"{folder}: model_type {config.model_type} with hidden_act {config.hidden_act} cannot be pretrained here; "
            "use a RoBERTa or BERT with gelu"
        )
    with torch.device("meta"):
        model = MaskedLanguageModel(config)
    return _fill(model, config, folder)


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
    of_labels = problem_row(config.problem_type, config.num_labels).architecture
    kind = "ForMaskedLM" if isinstance(model, MaskedLanguageModel) else of_labels
    architectures = [family_of(config).architecture + kind]
    content = {"architectures": architectures, "dtype": str(dtype).removeprefix("torch.")}
    write_json(folder / "config.json", config.to_dict() | content)
    state = {theirs: tensors[ours].to(dtype).contiguous() for ours, theirs in tensor_names(model, config).items()}
    write_atomically(folder / "model.safetensors", lambda path: save_file(state, path, metadata={"format": "pt"}))


def _fill(model: Any, config: EncoderConfig, folder: Path, reuse_head: bool = True) -> Any:
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
    for name, read in (("model.safetensors", _read_safetensors), ("pytorch_model.bin", read_pickled)):
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


def read_pickled(path: Path) -> dict[str, Tensor]:
    """Read a file of torch.save that holds tensors only; nothing else in it is unpickled."""
    try:
        _check_uncompressed(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load lets through the errors of zip, pickle and storage alike
        raise MinipeftError(
            f"{path}: not readable as tensors alone ({first_line(error)}); use a checkpoint in safetensors"
        ) from None
    if not isinstance(content, dict):
        raise MinipeftError(f"{path}: holds no table of tensors; use a checkpoint in safetensors")
    # An entry that is not a tensor, such as a module's _extra_state, is never used; the empty tensor keeps its name.
    tensors = {str(name): value if isinstance(value, Tensor) else torch.empty(0) for name, value in content.items()}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise MinipeftError(
                f"{path}: {short_repr(name)} claims more numbers than the file holds; use a checkpoint in safetensors"
            )
    return tensors


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
