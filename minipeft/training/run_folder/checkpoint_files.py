"""The files of a checkpoint: tensors as safetensors, everything else as JSON, and a SHA-256 of all of it.

    checkpoint/step-00000120.json                     the content, and the SHA-256 of itself and of the files below
    checkpoint/step-00000120.weights.safetensors      the trained tensors
    checkpoint/step-00000120.optimizer.safetensors    the optimizer's state

The JSON file is written last: a checkpoint exists when it does. The last two are kept, so that a damaged one costs only
the steps since the one before. No pickle is read, which could execute code.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minipeft.errors import MinipeftError, first_line
from minipeft.files import FORMAT, check_format, make_folder, read_json, sha256, write_atomically, write_json

FOLDER = "checkpoint"
KEPT = 2  # checkpoints
Content = dict[str, Any]
Tensors = dict[str, Tensor]
logger = logging.getLogger("minipeft")


def has_checkpoint(folder: Path) -> bool:
    return bool(list_checkpoints(folder))


def write_checkpoint(
    folder: Path,
    step: int,
    content: Content,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    keep: Sequence[str] = (),
) -> None:
    """Write the checkpoint of a step, and remove files that neither it nor the one before needs.

    Args:
        folder: the run's folder.
        step: optimizer steps done, which name the files.
        content: what the JSON file holds, in addition to the step and the hashes.
        model: its trainable parameters and buffers are the weights.
        optimizer: that of the model.
        keep: files of earlier checkpoints that this one needs as well.
    """
    checkpoint = folder / FOLDER
    make_folder(checkpoint)
    known = {name: digest for path in list_checkpoints(folder) for name, digest in _files_of(path).items()}
    files = {name: known[name] for name in keep if name in known}
    for kind, tensors in {
        "weights": changing_tensors(model),
        "optimizer": _optimizer_tensors(model, optimizer),
    }.items():
        path = tensor_file(folder, step, kind)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_atomically(path, partial(save_file, state))
        files[path.name] = sha256(path)
    content = {"format": FORMAT, "step": step, **content, "files": files}
    write_json(checkpoint / f"step-{step:08d}.json", {**content, "sha256": _content_hash(content)})
    kept = list_checkpoints(folder)[:KEPT]
    needed = {name for path in kept for name in (path.name, *_files_of(path))}
    for path in checkpoint.glob("step-*"):
        if path.name not in needed:
            path.unlink(missing_ok=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the JSON files of a run's checkpoints, the newest first."""
    return sorted((folder / FOLDER).glob("step-*.json"), reverse=True)


def read_checkpoint(folder: Path) -> tuple[Content, dict[Path, str]]:
    """Return the content of the newest complete checkpoint, and why each newer one cannot be read.

    Raises:
        MinipeftError: where none is complete, and for a checkpoint of a newer format.
    """
    damaged: dict[Path, str] = {}
    for path in list_checkpoints(folder):
        try:
            content = read_json(path)
        except MinipeftError as error:
            damaged[path] = str(error)
            continue
        if content.pop("sha256", None) != _content_hash(content):
            damaged[path] = f"{path.name} does not have its SHA-256"
            continue
        check_format(path, content)
        own = {name: digest for name, digest in content["files"].items() if name.startswith(path.stem)}
        if not (reason := _first_damaged(path.parent, own)):
            return content, damaged
        damaged[path] = reason
    newest, reason = next(iter(damaged.items()), (folder / FOLDER, "it has no files"))
    raise MinipeftError(
        f"{newest}: the checkpoint cannot be read ({reason}). Remove {folder / FOLDER} to start the run from scratch."
    )


def read_tensors(folder: Path, content: Content, step: int, kind: str) -> Tensors:
    """Return the "weights" or the "optimizer" tensors of a step, on the host.

    Args:
        folder: the run's folder.
        content: that of a checkpoint which needs the file.
        step: the step, that of the checkpoint or an earlier one.
        kind: "weights" or "optimizer".
    """
    path = tensor_file(folder, step, kind)
    try:
        reason = _first_damaged(path.parent, {path.name: content["files"].get(path.name, "")})
        if not reason:
            return load_file(path)
    except (OSError, SafetensorError) as error:
        reason = first_line(error)
    raise MinipeftError(f"{path}: cannot be read ({reason}). Remove {path.parent} to start the run from scratch.")


def read_last_checkpoint(folder: Path) -> tuple[Content, Tensors, Tensors]:
    """Return the content, the weights and the optimizer's state of the newest complete checkpoint.

    A newer, damaged one is reported and removed: the steps since the complete one are repeated.
    """
    content, damaged = read_checkpoint(folder)
    weights, state = (read_tensors(folder, content, content["step"], kind) for kind in ("weights", "optimizer"))
    for path, reason in damaged.items():
        logger.warning(
            "%s is damaged (%s): the run continues from the checkpoint of step %d", path, reason, content["step"]
        )
        path.unlink()
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
    return {
        f"{key}.{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def tensor_file(folder: Path, step: int, kind: str) -> Path:
    return folder / FOLDER / f"step-{step:08d}.{kind}.safetensors"


def _files_of(path: Path) -> dict[str, str]:
    """The files of a checkpoint, with their SHA-256; none of a damaged one."""
    try:
        files = read_json(path).get("files")
    except MinipeftError:
        return {}
    return files if isinstance(files, dict) else {}


def _first_damaged(folder: Path, files: dict[str, str]) -> str:
    """Return what is wrong with the first damaged file; "" where each has its SHA-256."""
    for name, expected in files.items():
        try:
            status = (folder / name).stat()
            found = _hash(folder / name, status.st_size, status.st_mtime_ns)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found != expected:
            return f"{name} does not have its SHA-256"
    return ""


@lru_cache(maxsize=16)  # the start of a run reads its checkpoint several times
def _hash(path: Path, size: int, modified: int) -> str:
    return sha256(path)


def _content_hash(content: Content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
