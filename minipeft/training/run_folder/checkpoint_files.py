"""The files of a checkpoint: tensors as safetensors, everything else as JSON, and a SHA-256 of all of it.

    checkpoint/step-00000120.json                     the content, and the SHA-256 of itself and of the files below
    checkpoint/step-00000120.weights.safetensors      the trained tensors
    checkpoint/step-00000120.optimizer.safetensors    the optimizer's state

The JSON file is written last: a checkpoint exists when it does. The last two are kept, so that a damaged one costs only
the steps since the one before. checkpoint_reader.py reads them.
"""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from minipeft.errors import MinipeftError, first_line
from minipeft.files import (
    FORMAT,
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
        path = path_of(folder, content["step"], f"{kind}.safetensors")
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_atomically(path, partial(save_file, state))
        files[path.name] = sha256(path)
    content = {"format": FORMAT, **content, "files": files}
    write_json(path_of(folder, content["step"], "json"), {**content, "sha256": _hash_of(content)})
    needed = {name for path in list_checkpoints(folder)[:KEPT] for name in (path.name, *_files_of(path))}
    for path in (folder / FOLDER).glob("step-*"):
        if path.name not in needed:
            path.unlink(missing_ok=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the JSON files of a run's checkpoints, the newest first."""
    return sorted((folder / FOLDER).glob("step-*.json"), reverse=True)


def has_checkpoint(folder: Path) -> bool:
    return bool(list_checkpoints(folder))


def changing_tensors(model: nn.Module) -> Tensors:
    """Return the tensors that a step changes: the trainable parameters, and a method's buffers."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {**parameters, **dict(model.named_buffers())}


def path_of(folder: Path, step: int, ending: str) -> Path:
    """Return the path of a file of a step."""
    return folder / FOLDER / f"step-{step:08d}.{ending}"


def read_checkpoint_json(path: Path) -> Content:
    """Return the content of a checkpoint's JSON file; raise DamagedError without its SHA-256."""
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
        return dict(read_checkpoint_json(path)["files"])
    except DamagedError:
        return {}


def _hash_of(content: Content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
