"""What a run prints while it trains: one line per epoch, and warnings about runs that learn nothing."""

import logging
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from minipeft.data.tasks.task import Task
from minipeft.errors import printable
from minipeft.training.progress import best_epoch

logger = logging.getLogger("minipeft")

DIVERGED = 10.0  # a loss of so many times that of a constant prediction


def disable_bar(quiet: bool) -> bool | None:
    """Return tqdm's argument `disable`: a bar is shown on a terminal and in a notebook, whose stderr is no terminal."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return True if quiet else False if hasattr(shell, "kernel") else None


class EpochTable:
    """Prints one permanent line per epoch on standard error, above the progress bar where there is one."""

    def __init__(self, figures: Sequence[str], quiet: bool) -> None:
        self.figures, self.quiet = figures, quiet
        self.widths = [max(10, len(name)) for name in self.figures]

    def print_header(self) -> None:
        names = "".join(f"  {name:>{width}}" for name, width in zip(self.figures, self.widths, strict=True))
        self._print(f"epoch  train_loss{names}  samples/s  elapsed")

    def print_row(self, row: dict[str, Any], elapsed: float, best: bool) -> None:
        values = "".join(f"  {row[name]:>{width}.4f}" for name, width in zip(self.figures, self.widths, strict=True))
        minutes, seconds = divmod(round(elapsed), 60)
        self._print(
            f"{round(row['epoch'], 2):>5}  {row['train_loss']:>10.4f}{values}  {row['samples_per_second']:>9.1f}  "
            f"{minutes:>4}:{seconds:02}{'  best' if best else ''}"
        )

    def print_early_stop(self, history: list[dict[str, Any]], select_by: str) -> None:
        best, last = best_epoch(history, select_by), history[-1]
        self._print(
            f"stopped after epoch {last['epoch']:g}: the best {select_by}, {best[select_by]:.4f}, is epoch "
            f"{best['epoch']:g}'s (--patience)"
        )

    def _print(self, line: str) -> None:
        if not self.quiet:
            tqdm.write(line, file=sys.stderr)
            sys.stderr.flush()


def warn_about_predictions(
    logits: Tensor, row: dict[str, Any], targets: Sequence[Any], task: Task, weighted: bool = False
) -> None:
    """Warn where every prediction is the same, and where the loss is far above that of a constant prediction."""
    epoch, problem = row["epoch"], task.problem.with_details(row)
    if len(logits) > 1 and (constant := problem.describe_constant(logits)):
        logger.warning("epoch %g: every validation prediction is %s", epoch, printable(constant))
    loss, _ = problem.baseline(targets)
    if weighted:  # with balanced weights the best constant prediction is nearly that of equal classes
        loss = max(loss, problem.score(torch.zeros_like(logits), targets)["eval_loss"])
    largest = max(row["train_loss"], row["eval_loss"])
    if loss and largest > DIVERGED * loss:
        logger.warning(
            "epoch %g: the loss is %.4g, that of a constant prediction is %.4g: the training diverges. Lower --lr.",
            epoch,
            largest,
            loss,
        )
