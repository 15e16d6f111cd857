"""An adapter's two files → the method's config and tensors, checked before anything uses them."""

import math
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from minipeft.adapters.save import CALIBRATION, CONFIG, PROBABILITIES, WEIGHTS, base_model_fields, peft_type_of
from minipeft.errors import MinipeftError, check_choice, first_line, short_repr
from minipeft.files import check_format, parse_json, read_json
from minipeft.methods import METHODS
from minipeft.methods.peft_format.reading import WITHOUT_EFFECT, check_fields
from minipeft.model.config import EncoderConfig, check_distinct
from minipeft.model.families import family_of
from minipeft.problems import PROBLEMS, problem_row, token_problem_type

PICKLE = "adapter_model.bin"
LARGEST_DETAILS = 1 << 24  # characters
LONGEST_NAME = 1000  # characters of a task's, a class's or a column's name


@dataclass(frozen=True)
class Adapter:
    """What the files hold.

    Attributes:
        content: The content of adapter_config.json.
        state: peft's name → the tensor.
        details: What travels with the tensors: labels, task, score, epoch.
        num_labels: Number of classes, from the head or the labels; None where neither is there.
        problem_type: The kind of labels, which peft's files say only where it is tokens.
    """

    folder: Path
    method: Any
    content: dict[str, Any]
    state: dict[str, Tensor]
    details: dict[str, Any]
    num_labels: int | None
    problem_type: str | None


def read_adapter(folder: Path, config: EncoderConfig) -> Adapter:
    """Read an adapter for a model of shape `config`; files that do not fit it, or each other, raise MinipeftError."""
    content = read_json(folder / CONFIG)
    state, details = _read_tensors(folder)
    base, labels = details.get("base"), details.get("labels")
    of_model = base_model_fields(config)
    if isinstance(base, dict) and (of_adapter := of_model | base) != of_model:
        raise MinipeftError(
            f"{folder}: the adapter was trained on {_describe(of_adapter)}, but the model is {_describe(of_model)}; "
            "load the model that it belongs to"
        )
    kind = details.get("problem_type") or token_problem_type((), content.get("task_type"))
    of_head = replace(config, problem_type=kind) if problem_row(kind).per_token else config  # other names in the head
    num_labels = _count_labels(state, labels, of_head, folder)
    if (folder / CALIBRATION).is_file():
        stored = read_json(folder / CALIBRATION)
        details |= {name: stored[name] for name in PROBABILITIES if name in stored}
    for name in PROBABILITIES:
        values = details.get(name, [])
        largest = 1.0 if name == "thresholds" else math.inf
        numbers = isinstance(values, list) and all(isinstance(value, float) and 0 < value < largest for value in values)
        if not numbers or len(values) not in (0, 1, num_labels):
            raise MinipeftError(
                f"{folder}: {name} {short_repr(values)} are not one number for each label. Remove {CALIBRATION}."
            )
    try:
        method = _method(content, details, config)
    except (MinipeftError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise MinipeftError(f"{folder / CONFIG}: no usable config of a method ({first_line(error)})") from None
    saved = details.get("config", content)  # a kill between the two renames of saving leaves files of two adapters
    for name in content if isinstance(saved, dict) else ():
        if name not in WITHOUT_EFFECT and content[name] != saved.get(name):
            raise MinipeftError(
                f"{folder}: {name} is {short_repr(content[name])} in {CONFIG}, but {short_repr(saved.get(name))} in "
                f"{WEIGHTS}; save the adapter again"
            )
    # With bias="all", peft writes the biases of modules_to_save again, under its wrappers' names.
    again = re.compile(r"\.(modules_to_save|original_module)\.(.*\.)?bias$")
    state = {name: tensor for name, tensor in state.items() if not again.search(name)}
    return Adapter(folder, method, content, state, details, num_labels, kind)


def _read_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, and the details that minipeft writes; older versions of peft write adapter_model.bin."""
    path = folder / WEIGHTS
    if not path.exists() and (folder / PICKLE).is_file():
        from minipeft.model.weight_files import read_pickled

        return read_pickled(folder / PICKLE), {}
    try:
        with safe_open(path, framework="pt") as file:
            details = _read_details((file.metadata() or {}).get("minipeft", "{}"))
            check_format(path, details)
            return {name: file.get_tensor(name) for name in file.keys()}, details  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise MinipeftError(f"{path} is missing; name the adapter folder of a run") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise MinipeftError(f"{path}: not a whole safetensors file ({str(error)[:200]})") from None


def _count_labels(
    state: dict[str, Tensor], labels: list[str] | None, config: EncoderConfig, folder: Path
) -> int | None:
    """Return the rows of the head's last weight, which fit the labels and the model, or the number of labels."""
    end = f".{family_of(config).head_names['out_proj']}.weight"
    for name, tensor in state.items():
        if name.endswith(end):
            rows = len(labels) if labels else len(tensor)
            if tensor.shape != (rows, config.hidden_size):
                raise MinipeftError(
                    f"{folder}: {name} has shape {tuple(tensor.shape)}, but the labels and the model ask for "
                    f"{(rows, config.hidden_size)}; load the model that the adapter belongs to"
                )
            return rows
    return len(labels) if labels else None


def _read_details(text: str) -> dict[str, Any]:
    """Parse the metadata of the weights, and check what a model and a task are made of; ValueError if it is wrong."""
    if len(text) > LARGEST_DETAILS:
        raise ValueError(f"its metadata have {len(text):,} characters")
    details = parse_json(text)
    if not isinstance(details, dict):
        return {}
    details = {name: value for name, value in details.items() if value is not None}
    for name in ("labels", "columns"):
        names = details.get(name, ["text"])
        if not isinstance(names, list) or not names or not all(map(_is_name, names)):
            raise ValueError(f"{name} {short_repr(names)} is not a list of names")
    if len(details.get("columns", [])) > 2:
        raise ValueError(f"columns {short_repr(details['columns'])} are more than a text and a pair")
    for name in ("task", "label_separator"):
        if not _is_name(details.get(name, name)):
            raise ValueError(f"{name} {short_repr(details[name])} is not a name")
    try:
        check_distinct(details.get("labels", []), "labels")
        check_choice("problem_type", details.get("problem_type", next(iter(PROBLEMS))), PROBLEMS)
    except MinipeftError as error:
        raise ValueError(str(error)) from None
    return details


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME


def _describe(base: dict[str, Any]) -> str:
    """Describe the fields of `base_model_fields`, which may come from a file."""
    values = {name: short_repr(value).strip("'") for name, value in base.items()}
    return (
        "{model_type} with {num_hidden_layers} layers of {hidden_size} and {vocab_size} tokens, {num_attention_heads} "
        "heads and an inner size of {intermediate_size}"
    ).format(**values)


def _method(content: dict[str, Any], details: dict[str, Any], config: EncoderConfig) -> Any:
    """The method's config that an adapter_config.json describes, or, with train_layers, the weights' metadata."""
    known = {name: peft_type_of(name) for name in METHODS}
    for name, entry in METHODS.items():
        if content.get("peft_type") != known[name]:
            continue
        if entry.peft is None:
            options = {field.name for field in fields(entry.config)}
            check_fields(content, options)
            return entry.config(**{option: value for option, value in content.items() if option in options})
        alone = list(known.values()).count(known[name]) == 1  # else a field distinguishes DoRA from LoRA
        if alone or entry.peft.use_dora == bool(content.get("use_dora")):
            return entry.config(**details["method"]) if "method" in details else entry.peft.read(content, config)
    names = ", ".join(dict.fromkeys(known.values()))
    raise MinipeftError(f"unknown peft_type {content.get('peft_type')!r}; {names} are known")
