"""A run's checkpoint → its model, its optimizer and its progress, for --resume.

Every file is compared with its SHA-256, and a damaged checkpoint is skipped. No pickle is read, which could execute
code.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import nn

from minipeft.data.tasks.task import Task
from minipeft.errors import MinipeftError, first_line, logger
from minipeft.files import check_format, sha256, write_lines
from minipeft.model.classifier import SequenceClassifier
from minipeft.training.distributed import Processes
from minipeft.training.progress import Progress, best_epoch
from minipeft.training.run_folder.checkpoint import save_best_adapter
from minipeft.training.run_folder.checkpoint_files import (
    FOLDER,
    Content,
    DamagedError,
    Tensors,
    changing_tensors,
    has_checkpoint,
    list_checkpoints,
    path_of,
    read_checkpoint_json,
)

NOTHING, CONFIG_ONLY = 0, 1  # what a node holds of a run; with a checkpoint it is the checkpoint's step + 2
Found = TypeVar("Found")


def held_of(folder: Path) -> int:
    """Return what this machine holds of a run: NOTHING, CONFIG_ONLY, or the step of its checkpoint + 2."""
    if not has_checkpoint(folder):
        return CONFIG_ONLY if (folder / "config.json").is_file() else NOTHING
    try:
        return int(read_progress(folder)["step"]) + 2
    except MinipeftError:  # the process that resumes from it raises the error for all
        return CONFIG_ONLY


def restore_checkpoint(
    folder: Path,
    model: SequenceClassifier,
    optimizer: torch.optim.Optimizer,
    processes: Processes,
) -> Progress:
    """Load the last complete checkpoint into model and optimizer, and return its progress.

    Rank 0 reads the files and sends their content to the others.

    Raises:
        MinipeftError: where no checkpoint is complete.
    """
    content, weights, state = processes.on_rank_zero(lambda: read_last_checkpoint(folder))
    load_state(folder, model, optimizer, weights, state)
    return Progress(**content["progress"])


def complete_epoch(folder: Path, model: SequenceClassifier, progress: Progress, task: Task, select_by: str) -> str:
    """Make adapter/ and metrics.jsonl those of the checkpoint, and describe where the run continues.

    A run may be killed between the checkpoint of an evaluation and the files that follow from it, and adapter/ may be
    missing or damaged.
    """
    adapter = "no epoch is finished yet"
    if progress.history:
        best = best_epoch(progress.history, select_by)
        adapter = f"the adapter is epoch {best['epoch']}'s"
        if _adapter_epoch(folder / "adapter", model) != best["epoch"]:
            current = {name: tensor.clone() for name, tensor in changing_tensors(model).items()}
            load_weights(model, read_tensors(folder, read_content(folder), "weights", best["step"]))
            save_best_adapter(folder, model, best, task)
            load_weights(model, current)
        write_lines(folder / "metrics.jsonl", progress.history)
    return f"resuming {folder} from step {progress.step} (epoch {current_epoch(vars(progress))}); {adapter}"


def _adapter_epoch(folder: Path, model: SequenceClassifier) -> Any:
    """The epoch of an adapter, from 1; None where it cannot be read."""
    from minipeft.adapters.adapter_file import read_adapter

    try:
        return read_adapter(folder, model.config).details.get("epoch")
    except MinipeftError:
        return None


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
            content = read_checkpoint_json(path)
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
    path = path_of(folder, step, f"{kind}.safetensors")
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


def read_progress(folder: Path) -> dict[str, Any]:
    """Return the fields of the last readable checkpoint's Progress."""
    return dict(read_content(folder)["progress"])


def current_epoch(progress: dict[str, Any]) -> int:
    """Return the epoch of the last step, from 1."""
    return int(progress["epoch"]) + (progress["examples_done"] > 0)


def describe_checkpoint(folder: Path) -> str:
    """Describe the last checkpoint, for the message of a run that cannot continue."""
    if not has_checkpoint(folder):
        return "no epoch was finished, so there is no checkpoint"
    progress = read_progress(folder)
    return f"{folder} keeps the checkpoint of epoch {current_epoch(progress)}, step {progress['step']}"
