"""The training loop, from top to bottom."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm.auto import tqdm

from minipeft.data.batches.buckets import pad_to_bucket
from minipeft.data.batches.sampling import epoch_order, split_by_tokens
from minipeft.data.tokens.examples import Examples
from minipeft.errors import Interrupted, MinipeftError
from minipeft.methods import METHODS, method_name
from minipeft.model.classifier import SequenceClassifier
from minipeft.training.distributed import SINGLE_PROCESS, Processes
from minipeft.training.evaluate import evaluate_all
from minipeft.training.optimization.async_scalars import DEFERRED_READS, StepScalars
from minipeft.training.optimization.cuda_graphs import StepGraphs
from minipeft.training.optimization.loss import Loss
from minipeft.training.optimization.optimizer import adamw, set_learning_rate
from minipeft.training.optimization.schedule import Schedule
from minipeft.training.progress import Progress, best_epoch
from minipeft.training.reporting.epoch_table import EpochTable, disable_bar, warn_about_predictions
from minipeft.training.reporting.trackers import Events
from minipeft.training.run_folder.checkpoint import (
    complete_epoch,
    describe_checkpoint,
    publish,
    restore_checkpoint,
    save_checkpoint,
)
from minipeft.training.run_folder.signals import collect_signals
from minipeft.training.settings.recipes import CHECKPOINT_MINUTES

NOT_IN_EPOCH_EVENTS = ("epoch", "step", "learning_rate")  # TensorBoard has the learning rate of every step
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class RunFolder:
    """Where a training writes, and how often.

    Attributes:
        path: the run's folder.
        checkpoint_minutes: minutes between checkpoints; every epoch ends with one as well.
        quiet: print nothing.
        report_to: experiment trackers; None for TensorBoard where it is installed.
    """

    path: Path
    checkpoint_minutes: float = CHECKPOINT_MINUTES
    quiet: bool = False
    report_to: Sequence[str] | None = None


def train_loop(
    model: SequenceClassifier,
    examples: Examples,
    schedule: Schedule,
    run_folder: RunFolder,
    processes: Processes = SINGLE_PROCESS,
    graphs: StepGraphs | None = None,
    loss: Loss | None = None,
) -> Progress:
    """Train the trainable parameters, evaluate every epoch, and keep the best evaluation's adapter in the run's folder.

    The loss of a step is the mean over its examples (see `Loss`); how they are divided into batches and among
    processes, and whether `graphs` computes them, changes only the time. The state is saved after every evaluation, and
    between two when `checkpoint_minutes` have passed.

    Raises:
        MinipeftError: when the loss is not finite.
        Interrupted: after a signal, with the state saved.
    """
    folder, train, validation = run_folder.path, examples.train, examples.validation
    task, device = train.split.task, next(model.parameters()).device.type
    loss_of = loss or Loss()
    method = METHODS[method_name(model.method)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = adamw(model, schedule.weight_decay, schedule.betas, schedule.epsilon)
    total_steps = schedule.total_steps(len(train))
    quiet = run_folder.quiet or not processes.is_main_process
    now = restore_checkpoint(folder, model, optimizer, train, processes)
    resumed = processes.on_rank_zero(partial(complete_epoch, folder, model, now, task, schedule.select_by))
    if resumed and not quiet:
        print(resumed, file=sys.stderr)

    def save() -> None:
        save_checkpoint(folder, model, optimizer, now, train)

    def publish_epoch() -> None:
        publish(folder, model, now, task, schedule.select_by)

    saved_at = time.monotonic()
    report = Events(folder, run_folder.report_to, now.step + 1, processes.is_main_process)
    table = EpochTable(evaluation_metrics(examples), quiet)
    bar_settings = {"total": total_steps, "initial": now.step, "unit": "step", "disable": disable_bar(quiet)}
    with collect_signals() as received, report as events, tqdm(**bar_settings) as bar:
        if now.step < total_steps:
            table.print_header()
        while now.step < total_steps and not schedule.out_of_patience(now.history, len(train)):
            model.train()
            order = epoch_order(len(train), schedule.seed, now.epoch)
            before: StepScalars | None = None  # the last step's, not read yet
            next_evaluation = schedule.next_evaluation(now.step, now.epoch, len(train))
            while now.step < next_evaluation:
                began = time.perf_counter()
                chosen = order[now.place : now.place + schedule.sequences_per_step]
                # Dropout is a function of the step, for --resume, and of the rank.
                torch.manual_seed(schedule.seed * 1_000_003 + now.step + (processes.rank << 53))
                learning_rate = schedule.learning_rate(now.step, total_steps)
                set_learning_rate(optimizer, learning_rate)
                step_loss = torch.zeros((), device=device)
                weight = loss_of.total_weight([train.split.labels[index] for index in chosen])
                if method.penalty is not None and processes.is_main_process:
                    method.penalty(model).backward()
                mine = processes.share(train.sequences_of(chosen), train.lengths)
                for indices in split_by_tokens(mine, train.lengths, schedule.max_tokens):
                    batch = train.batch(indices, model.config)
                    if graphs is not None:
                        step_loss += graphs.add_gradients(batch, weight)
                        continue
                    batch = pad_to_bucket(batch, model.config).to(device)
                    batch_loss = loss_of(model(batch), batch) / weight
                    batch_loss.backward()
                    step_loss += batch_loss.detach()
                processes.all_reduce_gradients(trained, step_loss)
                norm = clip_grad_norm_(trained, schedule.max_grad_norm or math.inf)
                scalars = StepScalars(now.step + 1, learning_rate, weight, step_loss, norm)
                _add_step(before, now, events, folder)
                due = time.monotonic() - saved_at >= 60 * run_folder.checkpoint_minutes
                reason = processes.all_reduce_max(received[0] if received else int(due))
                if reason or device not in DEFERRED_READS:
                    _finite_loss(scalars, folder)
                # The state is saved before the step changes it: its loss and gradient are known to be finite here.
                if reason:
                    processes.on_rank_zero(save)
                    saved_at = time.monotonic()
                    if reason in STOP_SIGNALS:
                        raise Interrupted(reason, f"interrupted in step {now.step + 1}; continue with --resume")
                optimizer.step()
                if method.after_step is not None:
                    method.after_step(model, now.step, total_steps)
                optimizer.zero_grad(set_to_none=graphs is None)
                before = scalars
                now.step += 1
                now.place += len(chosen)
                now.samples += len(chosen)
                now.seconds += time.perf_counter() - began
                bar.update()

            began = time.perf_counter()
            _add_step(before, now, events, folder)
            now.seconds += time.perf_counter() - began
            logits, evaluated = evaluate_all(model, examples, schedule.max_tokens, device, processes)
            if not math.isfinite(evaluated["eval_loss"]):
                raise MinipeftError(
                    f"step {now.step}: the validation loss is {evaluated['eval_loss']}. Lower --lr "
                    f"({describe_checkpoint(folder)})."
                )
            ended = now.place == len(train)
            row = {
                "epoch": now.epoch + 1 if ended else round(now.epoch + now.place / len(train), 6),
                "step": now.step,
                "train_loss": now.loss_sum / now.weight,
                **evaluated,
                "learning_rate": schedule.learning_rate(now.step - 1, total_steps),
                "seconds": now.seconds,
                "samples_per_second": now.samples / now.seconds,
            }
            history = [*now.history, row]
            now = Progress(now.epoch + ended, 0 if ended else now.place, now.step, history=history)
            events.add(now.step, {name: value for name, value in row.items() if name not in NOT_IN_EPOCH_EVENTS})
            # The checkpoint comes first: a run that is killed from here on makes adapter/ and metrics.jsonl from it.
            processes.on_rank_zero(save)
            processes.on_rank_zero(publish_epoch)
            saved_at = time.monotonic()
            best = best_epoch(now.history, schedule.select_by) is row
            table.print_row(row, sum(past["seconds"] for past in now.history), best)
            if processes.is_main_process:
                warn_about_predictions(logits, row, validation.split.labels, task, bool(loss_of.class_weights))
            if reason := processes.all_reduce_max(received[0] if received else 0):
                raise Interrupted(reason, f"interrupted after epoch {row['epoch']}; continue with --resume")
        if now.step < total_steps:
            table.print_early_stop(now.history, schedule.select_by)
    return now


def evaluation_metrics(examples: Examples) -> list[str]:
    """The names of the figures of an evaluation, as metrics.jsonl has them."""
    names = ["eval_loss", *examples.train.split.task.metrics]
    return names + [f"{other}_{name}" for other in examples.others for name in names]


def _add_step(scalars: StepScalars | None, now: Progress, events: Events, folder: Path) -> None:
    """Add a step's loss to the epoch's; before the first step of an epoch there is none."""
    if scalars is not None:
        loss = _finite_loss(scalars, folder)
        now.loss_sum += loss * scalars.weight
        now.weight += scalars.weight
        events.add(scalars.step, {"step_loss": loss, "learning_rate": scalars.learning_rate})


def _finite_loss(scalars: StepScalars, folder: Path) -> float:
    """Return the loss of a step; raise where it or the gradient norm is not finite."""
    loss, norm = scalars.read()
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise MinipeftError(
            f"step {scalars.step}: the loss is {loss}, the gradient norm {norm}. Lower --lr "
            f"({describe_checkpoint(folder)})."
        )
    return loss
