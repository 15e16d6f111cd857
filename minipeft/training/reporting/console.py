"""What a run prints: its banner, one line per epoch, warnings about runs that learn nothing, and its last line."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from minipeft.data.tasks.task import Task
from minipeft.data.tokens.examples import Examples
from minipeft.errors import format_names, logger, printable
from minipeft.methods import changed_options, count_parameters
from minipeft.model.classifier import SequenceClassifier
from minipeft.training.progress import best_epoch
from minipeft.training.settings.job import Job

DIVERGED = 10.0  # a loss of so many times that of a constant prediction


def print_banner(job: Job, examples: Examples, model: SequenceClassifier) -> None:
    """Print what the run trains, on what, and how; a replacement of model or data is printed even if quiet."""
    task, schedule, settings, parameters = job.task, job.schedule, job.settings, count_parameters(model)
    steps = schedule.total_steps(len(examples.train))
    splits = {"training": examples.train, "validation": examples.validation, **examples.others}
    rows = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    baseline = task.problem.describe_baseline(examples.validation.split.labels)
    processes = f", {job.processes.size} processes" if job.processes.size > 1 else ""
    lines = [
        f"task    {task.name}: {job.data.columns} ({task.problem.describe(examples.train.split.labels)})",
        f"data    {job.data.description}",
        f"rows    {rows}{f' ({baseline})' if baseline else ''}",
        f"model   {job.model.description}",
        f"method  {describe_method(job.method)}: {parameters.method:,} trainable parameters, "
        f"{parameters.head:,} in the head",
        f"train   {'at most ' if schedule.patience else ''}{schedule.epochs} epoch{'s' * (schedule.epochs > 1)}, "
        f"{steps:,} step{'s' * (steps > 1)} of "
        f"{settings.batch_size} x {settings.grad_accum} sequences, lr {schedule.lr:g} "
        f"{'' if schedule.lr_schedule == 'linear' else f'({schedule.lr_schedule}) '}after "
        f"{schedule.warmup_steps} warmup steps, seed {schedule.seed}",
        f"device  {settings.device}, {settings.precision}{processes}",
    ]
    if loss := describe_loss(job, examples):
        lines.insert(-1, f"loss    {loss}")
    if settings.long_text == "window":
        windows = ", ".join(f"{len(split.sequences):,} {name}" for name, split in splits.items())
        lines.insert(3, f"windows {windows}, of at most {job.max_length} tokens")
    if settings.holdout:
        lines.insert(-1, f"best    the epoch with the best {schedule.select_by}: that of the held-out rows")
    elif settings.select_by == task.problem.unbalanced_metric:
        lines.insert(-1, f"best    the epoch with the highest {schedule.select_by} (--select-by names another metric)")
    if not settings.quiet:
        print("\n".join(map(printable, lines)), file=sys.stderr)
    replaced = {"the model": "roberta-base"} if "stand-in" in job.model.description else {}
    if job.data.source == "standin":
        replaced["the data"] = task.name
    if replaced:
        print(
            f"*** STAND-IN for {' and '.join(replaced)}: this run shows that the installation works; "
            f"its figures say nothing about {' or '.join(replaced.values())}. ***",
            file=sys.stderr,
        )
    if schedule.warmup_steps >= steps and schedule.warmup_steps:
        logger.warning(
            "--warmup-steps %d is not below the run's %d steps: the learning rate does not reach %g. Choose fewer.",
            schedule.warmup_steps,
            steps,
            schedule.lr,
        )
    for warning in (*job.data.warnings, *examples.warnings):
        logger.warning("%s", warning)


def describe_loss(job: Job, examples: Examples) -> str:
    """Return the class weights, the label smoothing and the column of row weights; "" where there are none."""
    weights = job.loss.weights(examples.train.split.labels, job.task.problem)
    named = [f"{name} {weight:.4g}" for name, weight in zip(job.task.labels, weights, strict=False)]
    parts = [f"class weights {format_names(named)}"] if named else []
    if smoothing := job.loss.label_smoothing:
        parts.append(f"label smoothing {smoothing:g}")
    parts += [] if examples.train.weights is None else [f"rows weighted by {job.settings.weight_column}"]
    return "; ".join(parts)


def describe_method(method: Any) -> str:
    """Return a method's constructor with the settings that are not its defaults."""
    given = ", ".join(f"{name}={value!r}" for name, value in changed_options(method).items())
    return f"{type(method).__name__}({given})"


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


def warn_about_predictions(logits: Tensor, row: dict[str, Any], targets: Sequence[Any], task: Task) -> None:
    """Warn where every prediction is the same, and where the loss is far above those of constant predictions."""
    epoch, problem = row["epoch"], task.problem.with_details(row)
    if len(logits) > 1 and (constant := problem.describe_constant(logits)):
        logger.warning("epoch %g: every validation prediction is %s", epoch, printable(constant))
    loss, _ = problem.baseline(targets)
    largest = max(row["train_loss"], row["eval_loss"])
    if loss and largest > DIVERGED * loss:  # then compare it with that of a new head, too
        new = logits.masked_fill(~logits.isneginf(), problem.initial_bias(targets))
        loss = max(loss, problem.score(new, targets)["eval_loss"])
    if loss and largest > DIVERGED * loss:
        logger.warning(
            "epoch %g: the loss is %.4g, that of a constant prediction is %.4g: the training diverges. Lower --lr.",
            epoch,
            largest,
            loss,
        )


def print_result(content: dict[str, Any], folder: Path) -> None:
    """Print the last line of a run."""
    best, last, metric = content["best"], content["last"], content["metric"]
    macro = f" (macro F1 {content['macro_f1']['best']:.4f})" if "macro_f1" in content else ""
    print(
        f"best {metric} {best['value']:.4f}{macro} (epoch {best['epoch']}), last {last['value']:.4f}; "
        f"{content['train_seconds']:.0f} s, {content['samples_per_second']:.1f} samples/s -> {printable(str(folder))}"
    )
