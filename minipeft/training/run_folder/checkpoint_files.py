"""The files of a checkpoint: tensors as safetensors, everything else as JSON, and a SHA-256 of all of it.

    checkpoint/step-00000120.json                     the content, and the SHA-256 of itself and of the files below
    checkpoint/step-00000120.weights.safetensors      the trained tensors
    checkpoint/step-00000120.optimizer.safetensors    the optimizer's state

The JSON file is written last: a checkpoint exists when it does. The last two are kept, so that a damaged one costs only
the steps since the one before. No pickle is read, which could execute code.
"""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minipeft.errors import MinipeftError, first_line, logger
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
Found = TypeVar("Found")


class DamagedError(MinipeftError):
    """A file of a checkpoint is missing, or does not have its SHA-256."""


def write_checkpoint(
    folder: Path, content: Content, model: nn.Module, optimizer: torch.optim.Optimizer, best_step: int = -1
) -> None:
    """Write a checkpoint, and remove files that neither it nor the one before needs.

    "step" in the content names the files; the weights of an earlier `best_step` are kept.
    """
    make_folder(folder / FOLDER)
    earlier = {name: digest for path in list_checkpoints(folder) for name, digest in _files_of(path).items()}
    files = {name: earlier[name] for name in earlier if name.startswith(f"step-{best_step:08d}.weights")}
    of_optimizer = {  # by name, such as exp_avg.head.dense.weight
        f"{key}.{name}": tensor
        for name, parameter in model.named_parameters()
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }
    kinds = {"weights": changing_tensors(model), "optimizer": of_optimizer}
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


def read_content(folder: Path) -> Content:
    """Return the content of the newest readable checkpoint."""
    return _read_newest(folder, lambda content: content)[0]


def read_last_checkpoint(folder: Path) -> tuple[Content, Tensors, Tensors]:
    """Return the content, the weights and the optimizer's state of the newest complete checkpoint.

    A newer, damaged one is reported and removed: the steps since the complete one are repeated.
    """

    def read(content: Content) -> tuple[Content, Tensors, Tensors]:
        weights, state = (read_tensors(folder, content, kind, content["step"]) for kind in ("weights", "optimizer"))
        return content, weights, state

    found, damaged = _read_newest(folder, read)
    for path, reason in damaged.items():
        logger.warning("%s is damaged (%s): continuing from step %d", path, reason, found[0]["step"])
        path.unlink()
    return found


def _read_newest(folder: Path, read: Callable[[Content], Found]) -> tuple[Found, dict[Path, str]]:
    """Return what `read` makes of the newest checkpoint that is not damaged, and what is wrong with each newer one."""
    damaged: dict[Path, str] = {}
    for path in list_checkpoints(folder):
        try:
            content = _read_json(path)
            check_format(path, content)
            return read(content), damaged
        except DamagedError as error:
            damaged[path] = str(error)
    path, reason = next(iter(damaged.items()), (folder / FOLDER, "it has no files"))
    raise MinipeftError(
        f"{path}: the checkpoint cannot be read ({reason}). Remove {folder / FOLDER} to start the run from scratch."
    )


def read_tensors(folder: Path, content: Content, kind: str, step: int) -> Tensors:
    """Return the "weights" or the "optimizer" tensors of a step; raise DamagedError without the SHA-256 in content."""
    path = _path(folder, step, f"{kind}.safetensors")
    try:
        whole = sha256(path) == content["files"].get(path.name)
    except OSError as error:
        raise DamagedError(f"{path}: {first_line(error)}") from None
    if not whole:
        raise DamagedError(f"{path} does not have its SHA-256")
    return load_file(path)


def load_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, weights: Tensors, state: Tensors
) -> None:
    """Load the tensors of a checkpoint in `folder` into model and optimizer; the optimizer's settings stay."""
    parameters = dict(model.named_parameters())
    try:
        load_weights(model, weights)
        for name, tensor in state.items():
            key, _, of_parameter = name.partition(".")
            parameter = parameters[of_parameter]
            optimizer.state[parameter][key] = tensor.to(parameter.device)
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
