"""The files of a checkpoint: tensors as safetensors, everything else as JSON, and a SHA-256 of all of it.

    checkpoint/step-00000120.json                     the content, and the SHA-256 of itself and of the files below
    checkpoint/step-00000120.weights.safetensors      the trained tensors
    checkpoint/step-00000120.optimizer.safetensors    the optimizer's state

The JSON file is written last: a checkpoint exists when it does. The last two are kept, so that a damaged one costs only
the steps since the one before. No pickle is read, which could execute code.
"""

import hashlib
import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minipeft.errors import MinipeftError, first_line
from minipeft.files import (
    FORMAT,
    check_format,
    make_folder,
    parse_json,
    read_small,
    sha256,
    write_atomically,
    write_json,
)

FOLDER = "checkpoint"
KEPT = 2  # checkpoints
Content = dict[str, Any]
Tensors = dict[str, Tensor]
logger = logging.getLogger("minipeft")


class DamagedError(MinipeftError):
    """A file of a checkpoint is missing, or does not have its SHA-256."""


def write_checkpoint(
    folder: Path, content: Content, model: nn.Module, optimizer: torch.optim.Optimizer, best_step: int = -1
) -> None:
    """Write a checkpoint, and remove files that neither it nor the one before needs.

    Args:
        folder: the run's folder.
        content: what the JSON file holds, in addition to the hashes. Its "step" names the files.
        model: its trainable parameters and buffers are the weights.
        optimizer: that of the model.
        best_step: the step whose weights are kept, if it is an earlier one.
    """
    make_folder(folder / FOLDER)
    earlier = {name: digest for path in list_checkpoints(folder) for name, digest in _files_of(path).items()}
    files = {name: earlier[name] for name in earlier if name.startswith(f"step-{best_step:08d}.weights")}
    kinds = {"weights": changing_tensors(model), "optimizer": _optimizer_tensors(model, optimizer)}
    for kind, tensors in kinds.items():
        path = _path(folder, content["step"], f"{kind}.safetensors")
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_atomically(path, partial(save_file, state))
        files[path.name] = sha256(path)
    content = {"format": FORMAT, **content, "files": files}
    write_json(_path(folder, content["step"], "json"), {**content, "sha256": _hash_of(content)})
    needed = {name for path in list_checkpoints(folder)[:KEPT] for name in (path.name, *_files_of(path))}
    for path in (folder / FOLDER).glob("step-*"):
        if path.name not in needed:
            path.unlink(missing_ok=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the JSON files of a run's checkpoints, the newest first."""
    return sorted((folder / FOLDER).glob("step-*.json"), reverse=True)


def has_checkpoint(folder: Path) -> bool:
    return bool(list_checkpoints(folder))


def read_content(folder: Path, whole: bool = False) -> tuple[Content, dict[Path, str]]:
    """Return the content of the newest readable checkpoint, and why each newer one cannot be read.

    Args:
        folder: the run's folder.
        whole: check the files of tensors too.

    Raises:
        MinipeftError: where none can be read, and for a checkpoint of a newer format.
    """
    damaged: dict[Path, str] = {}
    for path in list_checkpoints(folder):
        try:
            content = _read_json(path)
            check_format(path, content)
            for kind in ("weights", "optimizer") if whole else ():
                check_tensors(folder, content, kind, content["step"])
            return content, damaged
        except DamagedError as error:
            damaged[path] = str(error)
    path, reason = next(iter(damaged.items()), (folder / FOLDER, "it has no files"))
    raise MinipeftError(
        f"{path}: the checkpoint cannot be read ({reason}). Remove {folder / FOLDER} to start the run from scratch."
    )


def check_tensors(folder: Path, content: Content, kind: str, step: int) -> None:
    """Raise DamagedError unless a file of tensors has the SHA-256 that a checkpoint's content names."""
    path = _path(folder, step, f"{kind}.safetensors")
    try:
        whole = sha256(path) == content["files"].get(path.name)
    except OSError as error:
        raise DamagedError(f"{path}: {first_line(error)}") from None
    if not whole:
        raise DamagedError(f"{path} does not have its SHA-256")


def read_tensors(folder: Path, kind: str, step: int) -> Tensors:
    """Return the "weights" or the "optimizer" tensors of a step, which have been checked."""
    return load_file(_path(folder, step, f"{kind}.safetensors"))


def read_last_checkpoint(folder: Path) -> tuple[Content, Tensors, Tensors]:
    """Return the content, the weights and the optimizer's state of the newest complete checkpoint.

    A newer, damaged one is reported and removed: the steps since the complete one are repeated.
    """
    content, damaged = read_content(folder, whole=True)
    for path, reason in damaged.items():
        logger.warning("%s is damaged (%s): continuing from step %d", path, reason, content["step"])
        path.unlink()
    weights, state = (read_tensors(folder, kind, content["step"]) for kind in ("weights", "optimizer"))
    return content, weights, state


def load_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, weights: Tensors, state: Tensors
) -> None:
    """Load the tensors of a checkpoint in `folder` into model and optimizer; the optimizer's settings stay."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    by_name: dict[str, Tensors] = {}
    for name, tensor in state.items():
        key, _, parameter = name.partition(".")
        by_name.setdefault(parameter, {})[key] = tensor
    try:
        load_weights(model, weights)
        by_index = {i: by_name[names[p]] for i, p in enumerate(parameters) if names[p] in by_name}
        optimizer.load_state_dict({"state": by_index, "param_groups": optimizer.state_dict()["param_groups"]})
    except (KeyError, RuntimeError) as error:  # a tensor that the model does not have, or that has another shape
        raise MinipeftError(
            f"{folder}: the checkpoint does not fit the model ({first_line(error)}). Resume with the same model."
        ) from None


@torch.no_grad()
def load_weights(model: nn.Module, weights: Tensors) -> None:
    """Copy tensors into those of the same names that training changes; KeyError where the names differ."""
    tensors = changing_tensors(model)
    if differing := tensors.keys() ^ weights.keys():
        raise KeyError(min(differing))
    for name, tensor in tensors.items():
        tensor.copy_(weights[name])


def changing_tensors(model: nn.Module) -> Tensors:
    """Return the tensors that a step changes: the trainable parameters, and a method's buffers."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {**parameters, **dict(model.named_buffers())}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """Return the optimizer's state by name, such as exp_avg.head.dense.weight."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {f"{key}.{names[p]}": value for p, state in optimizer.state.items() for key, value in state.items()}


def _path(folder: Path, step: int, ending: str) -> Path:
    return folder / FOLDER / f"step-{step:08d}.{ending}"


def _read_json(path: Path) -> Content:
    try:
        content = dict(parse_json(read_small(path)))
    except (OSError, TypeError, ValueError) as error:
        raise DamagedError(f"{path}: {first_line(error)}") from None
    if content.pop("sha256", None) != _hash_of(content):
        raise DamagedError(f"{path} does not have its SHA-256")
    return content


def _files_of(path: Path) -> dict[str, str]:
    """Return the files of a checkpoint with their SHA-256; none of a damaged one."""
    try:
        return dict(_read_json(path)["files"])
    except DamagedError:
        return {}


def _hash_of(content: Content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
