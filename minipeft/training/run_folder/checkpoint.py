"""The checkpoints that a run writes, and the files that follow from them: metrics.jsonl and adapter/."""

from pathlib import Path
from typing import Any

import torch

from minipeft.adapters.save import save_adapter
from minipeft.data.tasks.task import Task
from minipeft.errors import MinipeftError
from minipeft.files import write_lines
from minipeft.model.classifier import SequenceClassifier
from minipeft.training.distributed import CONFIG_ONLY, NOTHING
from minipeft.training.progress import Progress, best_epoch
from minipeft.training.run_folder.checkpoint_files import has_checkpoint, write_checkpoint


def held_of(folder: Path) -> int:
    """Return what this machine holds of a run: NOTHING, CONFIG_ONLY, or the step of its checkpoint + 2."""
    if not has_checkpoint(folder):
        return CONFIG_ONLY if (folder / "config.json").is_file() else NOTHING
    from minipeft.training.run_folder.checkpoint_reader import read_progress

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


def publish(folder: Path, model: SequenceClassifier, progress: Progress, task: Task, select_by: str) -> None:
    """Write metrics.jsonl after an evaluation and, if it is the best, adapter/."""
    if (best := best_epoch(progress.history, select_by)) is progress.history[-1]:
        save_best_adapter(folder, model, best, task)
    write_lines(folder / "metrics.jsonl", progress.history)


def save_best_adapter(folder: Path, model: SequenceClassifier, best: dict[str, Any], task: Task) -> None:
    """Write adapter/ with the model's tensors, which are those of the evaluation `best`."""
    metric = task.metrics[0]
    details = {"task": task.name, "columns": list(task.columns), "metric": metric, "score": best[metric]}
    details |= task.problem.with_details(best).details()
    save_adapter(model, folder / "adapter", **details, epoch=best["epoch"])


def describe_checkpoint(folder: Path) -> str:
    """Describe the last checkpoint, for the message of a run that cannot continue."""
    if not has_checkpoint(folder):
        return "no epoch was finished, so there is no checkpoint"
    from minipeft.training.run_folder.checkpoint_reader import current_epoch, read_progress

    progress = read_progress(folder)
    return f"{folder} keeps the checkpoint of epoch {current_epoch(progress)}, step {progress['step']}"
