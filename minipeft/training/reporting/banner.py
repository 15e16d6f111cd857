"""What a run prints before and after training: its banner and its last line."""

import logging
import sys
from pathlib import Path
from typing import Any

from minipeft.data.tasks.task import Task
from minipeft.data.tokens.examples import Examples
from minipeft.errors import format_names, printable
from minipeft.methods import changed_options, count_parameters
from minipeft.model.classifier import SequenceClassifier
from minipeft.training.settings.job import Job

logger = logging.getLogger("minipeft")


def print_banner(job: Job, examples: Examples, model: SequenceClassifier) -> None:
    """Print what the run trains, on what, and how; a replacement of model or data is printed even if quiet."""
    task, schedule, settings, parameters = job.task, job.schedule, job.settings, count_parameters(model)
    steps = schedule.total_steps(len(examples.train))
    splits = {"training": examples.train, "validation": examples.validation, **examples.others}
    rows = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    processes = f", {job.processes.size} processes" if job.processes.size > 1 else ""
    lines = [
        f"task    {task.name}: {job.data.columns} ({task.problem.describe(examples.train.split.labels)})",
        f"data    {job.data.description}",
        f"rows    {rows}{_majority(examples, task)}",
        f"model   {job.model.description}",
        f"method  {describe_method(job.method)}: {parameters.method:,} trainable parameters, "
        f"{parameters.head:,} in the head",
        f"train   {'at most ' if schedule.patience else ''}{schedule.epochs} epochs, {steps:,} steps of "
        f"{settings.batch_size} x {settings.grad_accum} sequences, lr {schedule.lr:g} "
        f"{'' if schedule.lr_schedule == 'linear' else f'({schedule.lr_schedule}) '}after "
        f"{schedule.warmup_steps} warmup steps, seed {schedule.seed}",
        f"device  {settings.device}, {settings.precision}{processes}",
    ]
    if loss := describe_loss(job, examples):
        lines.insert(-1, f"loss    {loss}")
    if not settings.quiet:
        print("\n".join(map(printable, lines)), file=sys.stderr)
    replaced = {"the model": "stand-in" in job.model.description, "the data": job.data.source == "standin"}
    if names := [name for name, is_replaced in replaced.items() if is_replaced]:
        about = {"the model": "roberta-base", "the data": task.name}
        print(
            f"*** STAND-IN for {' and '.join(names)}: this run shows that the installation works; "
            f"its figures say nothing about {' or '.join(about[name] for name in names)}. ***",
            file=sys.stderr,
        )
    if schedule.warmup_steps >= steps and schedule.warmup_steps:
        logger.warning(
            "--warmup-steps %d is not below the run's %d steps: the learning rate does not reach %g. Choose fewer.",
            schedule.warmup_steps,
            steps,
            schedule.lr,
        )
    for warning in job.data.warnings:
        logger.warning("%s", warning)
    sys.stderr.flush()


def _majority(examples: Examples, task: Task) -> str:
    _, accuracy = task.problem.baseline(examples.validation.split.labels)
    return "" if accuracy is None else f" (the majority class alone has accuracy {accuracy:.4f})"


def describe_loss(job: Job, examples: Examples) -> str:
    """Return the class weights and the label smoothing; "" where there are none."""
    weights = job.loss.weights(examples.train.split.labels, job.task.problem)
    named = [f"{name} {weight:.4g}" for name, weight in zip(job.task.labels, weights, strict=False)]
    smoothing = job.loss.label_smoothing
    return "; ".join(
        ([f"class weights {format_names(named)}"] if named else [])
        + ([f"label smoothing {smoothing:g}"] if smoothing else [])
    )


def describe_method(method: Any) -> str:
    """Return a method's constructor with the settings that are not its defaults."""
    given = ", ".join(f"{name}={value!r}" for name, value in changed_options(method).items())
    return f"{type(method).__name__}({given})"


def print_result(content: dict[str, Any], folder: Path) -> None:
    """Print the last line of a run."""
    best, last, metric = content["best"], content["last"], content["metric"]
    macro = f" (macro F1 {content['macro_f1']['best']:.4f})" if "macro_f1" in content else ""
    print(
        f"best {metric} {best['value']:.4f}{macro} (epoch {best['epoch']}), last {last['value']:.4f}; "
        f"{content['train_seconds']:.0f} s, {content['samples_per_second']:.1f} samples/s -> {printable(str(folder))}"
    )
