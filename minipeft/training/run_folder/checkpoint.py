"""The state of a run that --resume needs: checkpoint/state.pt, and the files that follow from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minipeft.adapters.adapter import save_adapter
from minipeft.adapters.adapter_file import read_adapter
from minipeft.data.tasks.task import Task
from minipeft.data.tokens.examples import Encoded
from minipeft.errors import MinipeftError, WorkerError
from minipeft.files import make_folder, write_atomically, write_lines
from minipeft.model.classifier import SequenceClassifier
from minipeft.training.distributed import CONFIG_ONLY, NOTHING, SINGLE_PROCESS, Processes
from minipeft.training.progress import Progress, best_epoch


def state_file(folder: Path) -> Path:
    return folder / "checkpoint" / "state.pt"


def held_of(folder: Path) -> int:
    """Return what this machine holds of a run: NOTHING, CONFIG_ONLY, or the step of its checkpoint + 2."""
    if not state_file(folder).is_file():
        return CONFIG_ONLY if (folder / "config.json").is_file() else NOTHING
    try:
        return int(read_progress(folder)["step"]) + 2
    except MinipeftError:  # the process that resumes from it raises the error for all
        return CONFIG_ONLY


def save_checkpoint(
    folder: Path,
    model: SequenceClassifier,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    train: Encoded,
) -> None:
    """Write the trainable tensors, the optimizer's state, the progress and the examples' fingerprint."""
    state = {
        "trained": {name: tensor.detach() for name, tensor in _changing_tensors(model).items()},
        "optimizer": optimizer.state_dict(),
        "progress": vars(progress),
        "examples": train.fingerprint,
    }
    make_folder(folder / "checkpoint")

    def write(path: Path) -> None:
        with open(path, "wb") as file:  # torch.save's own file hides the reason why it cannot be written
            torch.save(state, file)

    write_atomically(state_file(folder), write)


def restore_checkpoint(
    folder: Path,
    model: SequenceClassifier,
    optimizer: torch.optim.Optimizer,
    train: Encoded,
    processes: Processes = SINGLE_PROCESS,
) -> Progress:
    """Load the last checkpoint into model and optimizer; without one, return a new Progress.

    Rank 0 reads the file and sends its content to the others.

    Raises:
        MinipeftError: for a damaged checkpoint, and for one of other training examples.
    """
    path = state_file(folder)
    try:
        state = processes.on_rank_zero(
            lambda: torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None
        )
        if state is None:
            return Progress()
        same = state["examples"] == train.fingerprint
        tensors = _changing_tensors(model)
        with torch.no_grad():
            for name, tensor in state["trained"].items():
                tensors[name].copy_(tensor)
        optimizer.load_state_dict(state["optimizer"])
        progress = Progress(**state["progress"])
    except WorkerError:
        raise
    except Exception as error:  # torch.load lets through the errors of zip, pickle and storage alike
        raise _unreadable(folder, error) from None
    if not same:
        raise MinipeftError(
            f"{folder}: the run has other training examples. Pass the same data, or choose another --output."
        )
    return progress


def _changing_tensors(model: SequenceClassifier) -> dict[str, Tensor]:
    """The tensors that a step changes: the trainable parameters, and a method's buffers."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {**parameters, **dict(model.named_buffers())}


def publish(folder: Path, model: SequenceClassifier, progress: Progress, task: Task, select_by: str) -> None:
    """Write metrics.jsonl after an evaluation and, if it is the best, adapter/."""
    if (best := best_epoch(progress.history, select_by)) is progress.history[-1]:
        details = {
            "task": task.name,
            "columns": list(task.columns),
            "metric": task.metrics[0],
            "score": best[task.metrics[0]],
        }
        details |= task.problem.details(best)
        save_adapter(model, folder / "adapter", **details, epoch=best["epoch"])
    write_lines(folder / "metrics.jsonl", progress.history)


def complete_epoch(folder: Path, model: SequenceClassifier, progress: Progress, task: Task, select_by: str) -> str:
    """Make adapter/ and metrics.jsonl those of the checkpoint, and describe where the run continues.

    A run may be killed between the checkpoint of an evaluation and the files that follow from it.
    """
    if not state_file(folder).is_file():
        return ""
    adapter = "no epoch is finished yet"
    if progress.history:
        epoch = best_epoch(progress.history, select_by)["epoch"]
        adapter = f"the adapter is epoch {epoch}'s"
        if progress.samples == 0:
            publish(folder, model, progress, task, select_by)
        if (found := read_adapter(folder / "adapter", model.config).details.get("epoch")) != epoch:
            raise MinipeftError(
                f"{folder / 'adapter'} is epoch {found}'s, but the best epoch of the checkpoint is {epoch}. "
                f"Restore that adapter, or remove {folder / 'checkpoint'} to start the run from scratch."
            )
    return f"resuming {folder} from step {progress.step} (epoch {_current_epoch(vars(progress))}); {adapter}"


def describe_checkpoint(folder: Path) -> str:
    """Describe the last checkpoint, for the message of a run that cannot continue."""
    if not state_file(folder).is_file():
        return "no epoch was finished, so there is no checkpoint"
    progress = read_progress(folder)
    return f"{folder} keeps the checkpoint of epoch {_current_epoch(progress)}, step {progress['step']}"


def read_progress(folder: Path) -> dict[str, Any]:
    """Return the fields of the last checkpoint's Progress."""
    try:
        progress: dict[str, Any] = torch.load(state_file(folder), map_location="cpu", weights_only=True)["progress"]
    except Exception as error:  # torch.load lets through the errors of zip, pickle and storage alike
        raise _unreadable(folder, error) from None
    return progress


def _unreadable(folder: Path, error: Exception) -> MinipeftError:
    return MinipeftError(
        f"{state_file(folder)}: the checkpoint cannot be read ({type(error).__name__}). "
        "Remove it to start the run from scratch."
    )


def _current_epoch(progress: dict[str, Any]) -> int:
    """The epoch of the last step, from 1."""
    return int(progress["epoch"]) + (progress["examples_done"] > 0)
