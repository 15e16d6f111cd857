"""The checkpoint of a run, from which --resume continues, and the files that follow from it."""

from pathlib import Path
from typing import Any

import torch

from minipeft.adapters.save import save_adapter
from minipeft.data.tasks.task import Task
from minipeft.errors import MinipeftError
from minipeft.files import write_lines
from minipeft.model.classifier import SequenceClassifier
from minipeft.training.distributed import CONFIG_ONLY, NOTHING, SINGLE_PROCESS, Processes
from minipeft.training.progress import Progress, best_epoch
from minipeft.training.run_folder.checkpoint_files import (
    changing_tensors,
    has_checkpoint,
    load_state,
    load_weights,
    read_content,
    read_last_checkpoint,
    read_tensors,
    write_checkpoint,
)


def held_of(folder: Path) -> int:
    """Return what this machine holds of a run: NOTHING, CONFIG_ONLY, or the step of its checkpoint + 2."""
    if not has_checkpoint(folder):
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
    select_by: str,
    copy_to: str | None = None,
) -> None:
    """Write the trained tensors, the optimizer's state and the progress; `copy_to` is the address of a copy.

    The weights of the best evaluation so far stay, from which adapter/ can be written again.
    """
    content = {"step": progress.step, "progress": vars(progress)}
    best_step = best_epoch(progress.history, select_by)["step"] if progress.history else -1
    write_checkpoint(folder, content, model, optimizer, best_step)
    if copy_to is not None:
        from minipeft.training.run_folder.checkpoint_copy import copy_checkpoint

        copy_checkpoint(folder, copy_to)


def restore_checkpoint(
    folder: Path,
    model: SequenceClassifier,
    optimizer: torch.optim.Optimizer,
    processes: Processes = SINGLE_PROCESS,
) -> Progress:
    """Load the last complete checkpoint into model and optimizer; without one, return a new Progress.

    Rank 0 reads the files and sends their content to the others.

    Raises:
        MinipeftError: where no checkpoint is complete.
    """
    found = processes.on_rank_zero(lambda: read_last_checkpoint(folder) if has_checkpoint(folder) else None)
    if found is None:
        return Progress()
    content, weights, state = found
    load_state(folder, model, optimizer, weights, state)
    return Progress(**content["progress"])


def publish(folder: Path, model: SequenceClassifier, progress: Progress, task: Task, select_by: str) -> None:
    """Write metrics.jsonl after an evaluation and, if it is the best, adapter/."""
    if (best := best_epoch(progress.history, select_by)) is progress.history[-1]:
        _save_adapter(folder, model, best, task)
    write_lines(folder / "metrics.jsonl", progress.history)


def _save_adapter(folder: Path, model: SequenceClassifier, best: dict[str, Any], task: Task) -> None:
    metric = task.metrics[0]
    details = {"task": task.name, "columns": list(task.columns), "metric": metric, "score": best[metric]}
    details |= task.problem.with_details(best).details()
    save_adapter(model, folder / "adapter", **details, epoch=best["epoch"])


def complete_epoch(folder: Path, model: SequenceClassifier, progress: Progress, task: Task, select_by: str) -> str:
    """Make adapter/ and metrics.jsonl those of the checkpoint, and describe where the run continues.

    A run may be killed between the checkpoint of an evaluation and the files that follow from it, and adapter/ may be
    missing or damaged.
    """
    if not has_checkpoint(folder):
        return ""
    adapter = "no epoch is finished yet"
    if progress.history:
        best = best_epoch(progress.history, select_by)
        adapter = f"the adapter is epoch {best['epoch']}'s"
        if _adapter_epoch(folder / "adapter", model) != best["epoch"]:
            current = {name: tensor.clone() for name, tensor in changing_tensors(model).items()}
            load_weights(model, read_tensors(folder, read_content(folder), "weights", best["step"]))
            _save_adapter(folder, model, best, task)
            load_weights(model, current)
        write_lines(folder / "metrics.jsonl", progress.history)
    return f"resuming {folder} from step {progress.step} (epoch {_current_epoch(vars(progress))}); {adapter}"


def _adapter_epoch(folder: Path, model: SequenceClassifier) -> Any:
    """The epoch of an adapter, from 1; None where it cannot be read."""
    from minipeft.adapters.adapter_file import read_adapter

    try:
        return read_adapter(folder, model.config).details.get("epoch")
    except MinipeftError:
        return None


def describe_checkpoint(folder: Path) -> str:
    """Describe the last checkpoint, for the message of a run that cannot continue."""
    if not has_checkpoint(folder):
        return "no epoch was finished, so there is no checkpoint"
    progress = read_progress(folder)
    return f"{folder} keeps the checkpoint of epoch {_current_epoch(progress)}, step {progress['step']}"


def read_progress(folder: Path) -> dict[str, Any]:
    """Return the fields of the last readable checkpoint's Progress."""
    return dict(read_content(folder)["progress"])


def _current_epoch(progress: dict[str, Any]) -> int:
    """The epoch of the last step, from 1."""
    return int(progress["epoch"]) + (progress["examples_done"] > 0)
