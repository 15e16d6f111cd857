"""The checkpoints that a run writes, and the files that follow from them: metrics.jsonl and adapter/."""

from pathlib import Path
from typing import Any

import torch

from minipeft.adapters.save import save_adapter
from minipeft.data.tasks.task import Task
from minipeft.files import write_lines
from minipeft.model.classifier import SequenceClassifier
from minipeft.training.progress import Progress, best_epoch
from minipeft.training.run_folder.checkpoint_files import write_checkpoint


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
