"""The training loop: forward, backward, clip, optimizer step, evaluation, checkpoint, as plain statements.

There is no Trainer and no callback: what happens in a step happens in the order of these lines. Left out, and why:

  - Accumulation over a fixed number of padded batches. A step's examples are packed into as many batches as
    `max_tokens` needs, and every batch's loss is divided by the weight of the whole step.
  - Gradient scaling. Frozen weights may be bf16, which has float32's range; trainable parameters are float32.
  - DistributedDataParallel. The gradients of an adapter are small: one all-reduce per step sums them.
  - A DataLoader. The token ids are in memory, and packing a batch takes less time than passing it between processes.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm.auto import tqdm

from minipeft.data.batches.buckets import pad_to_bucket
from minipeft.data.batches.sampling import epoch_order, pack_examples, split_by_tokens
from minipeft.data.tokens.examples import Examples
from minipeft.errors import Interrupted, MinipeftError
from minipeft.methods import METHODS, method_name
from minipeft.model.classifier import SequenceClassifier
from minipeft.progress_bar import READ_BARS, disable_bar
from minipeft.training.distributed import SINGLE_PROCESS, Processes
from minipeft.training.evaluate import HostCopy, evaluate_all
from minipeft.training.optimization.loss import Loss
from minipeft.training.optimization.optimizer import adamw, set_learning_rate
from minipeft.training.optimization.schedule import Schedule
from minipeft.training.progress import Progress, best_epoch
from minipeft.training.reporting.console import EpochTable, warn_about_predictions
from minipeft.training.reporting.trackers import Events
from minipeft.training.run_folder.checkpoint import publish, save_checkpoint
from minipeft.training.run_folder.checkpoint_files import has_checkpoint
from minipeft.training.run_folder.signals import collect_signals
from minipeft.training.settings.recipes import CHECKPOINT_MINUTES
from minipeft.training.threads import CpuMonitor

if TYPE_CHECKING:
    from minipeft.training.optimization.cuda_graphs import StepGraphs

DEFERRED_READS = ("cuda",)  # devices that compute asynchronously: a step's scalars are read during the next step
# TensorBoard has the learning rate of every step; thresholds are a list.
NOT_IN_EPOCH_EVENTS = ("epoch", "step", "learning_rate", "thresholds")


@dataclass(frozen=True)
class RunFolder:
    """Where a training writes, and how often.

    Attributes:
        path: the run's folder.
        checkpoint_minutes: minutes between checkpoints; every evaluation is followed by one as well.
        quiet: print nothing.
        report_to: experiment trackers; None for TensorBoard where it is installed.
        checkpoint_copy: address to which each checkpoint is copied.
    """

    path: Path
    checkpoint_minutes: float = CHECKPOINT_MINUTES
    quiet: bool = False
    report_to: Sequence[str] | None = None
    checkpoint_copy: str | None = None


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

    The loss of a step is the mean over its examples (see `Loss`). How the examples are divided into batches and among
    processes, and whether `graphs` computes them, changes only the time. A checkpoint is saved after every evaluation,
    and between two when `checkpoint_minutes` have passed. If the folder holds a checkpoint, training continues from it.

    Raises:
        MinipeftError: when the loss is not finite.
        Interrupted: after a signal, with the checkpoint saved.
    """
    folder, train, task = run_folder.path, examples.train, examples.train.split.task
    device = next(model.parameters()).device
    # A caller outside `train`, such as a walkthrough, may leave out the loss: it is then the plain one.
    loss_function = loss or Loss(task.problem)
    method = METHODS[method_name(model.method)]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = adamw(model, schedule.weight_decay, schedule.betas, schedule.epsilon)
    total_steps = schedule.total_steps(len(train))

    # Only rank 0 prints.
    quiet = run_folder.quiet or not processes.is_main_process
    # A new run starts from an empty Progress, a resumed one from the checkpoint's. The code below is the same for both.
    progress = Progress()
    if processes.on_rank_zero(lambda: has_checkpoint(folder)):
        from minipeft.training.run_folder.checkpoint_reader import complete_epoch, restore_checkpoint

        progress = restore_checkpoint(folder, model, optimizer, processes)
        message = processes.on_rank_zero(partial(complete_epoch, folder, model, progress, task, schedule.select_by))
        if not quiet:
            print(message, file=sys.stderr)
    progress.seconds += examples.cache_seconds
    save = partial(save_checkpoint, folder, model, optimizer, progress, schedule.select_by, run_folder.checkpoint_copy)
    publish_epoch = partial(publish, folder, model, progress, task, schedule.select_by)

    # With several processes the launcher's command is unknown here, so the message names the flag alone.
    command = f"minipeft train --resume --output {quote(str(folder))}" if processes.size == 1 else "--resume"
    resume = f"continue with {command}"
    table = EpochTable(evaluation_metrics(examples, schedule.select_by), quiet)
    trackers = Events(folder, run_folder.report_to, progress.step + 1, processes.is_main_process)
    no_bar = READ_BARS not in os.environ and disable_bar(quiet)
    bar_settings = {"total": total_steps, "initial": progress.step, "unit": "step", "disable": no_bar}
    saved_at, cpu = time.monotonic(), CpuMonitor()
    with collect_signals() as received, trackers as events, tqdm(**bar_settings) as bar:
        if progress.step < total_steps:
            table.print_header()
        while progress.step < total_steps and not schedule.out_of_patience(progress.history, len(train)):
            model.train()  # `load_pretrained` returns it in evaluation mode
            order = epoch_order(len(train), schedule.seed, progress.epoch)
            next_evaluation = schedule.next_evaluation(progress.step, progress.epoch, len(train))
            prev: StepScalars | None = None  # the previous step's, which the host has not read yet
            while progress.step < next_evaluation:
                start_time = time.perf_counter()
                step_examples = order[progress.examples_done : progress.examples_done + schedule.sequences_per_step]
                # Dropout is a pure function of step and rank: a resumed run repeats it, and no two ranks share it.
                torch.manual_seed(schedule.seed * 1_000_003 + progress.step + (processes.rank << 53))
                learning_rate = schedule.learning_rate(progress.step, total_steps)
                set_learning_rate(optimizer, learning_rate)

                # Forward and backward: gradients add up over the batches of this process.
                step_loss = torch.zeros((), device=device)  # (): a sum on the device, which the host does not wait for
                weights = None if train.weights is None else train.weights[step_examples].tolist()
                step_weight = loss_function.total_weight([train.split.labels[at] for at in step_examples], weights)
                if method.penalty is not None and processes.is_main_process:  # once, as gradients are summed over ranks
                    method.penalty(model).backward()
                sequences = processes.share(train.sequences_of(step_examples), train.lengths)
                for indices in split_by_tokens(sequences, train.lengths, schedule.max_tokens):
                    batch = pack_examples(train, indices, model.config)
                    if graphs is not None:
                        step_loss += graphs.add_gradients(batch, step_weight)
                    else:
                        batch = pad_to_bucket(batch, model.config).to(device)
                        logits = model(batch)  # (num_sequences, num_labels)
                        batch_loss = loss_function(logits, batch) / step_weight
                        batch_loss.backward()
                        step_loss += batch_loss.detach()
                # Each rank has divided by the weight of the whole step, so the sum is the gradient of the step's loss.
                processes.sum_gradients(trainable, step_loss)
                norm = clip_grad_norm_(trainable, schedule.max_grad_norm or math.inf)
                # Loss and norm stay on the device; the host reads them one step later, when they have arrived.
                scalars = StepScalars(progress.step + 1, learning_rate, step_weight, step_loss, norm)
                _add_step(prev, progress, events, folder)

                # The clocks of the ranks differ, and a signal may reach one rank only: they agree on a checkpoint here.
                due = time.monotonic() - saved_at >= 60 * run_folder.checkpoint_minutes
                # 0: no checkpoint; 1: one is due; above: the number of a signal, plus 1.
                reason = processes.all_reduce_max(received[0] + 1 if received else int(due))
                if reason or device.type not in DEFERRED_READS:
                    _finite_loss(scalars, folder)
                if reason:
                    # Before the optimizer changes anything: this step is repeated by the run that resumes.
                    save_start = time.perf_counter()
                    processes.on_rank_zero(save)
                    saved_at = time.monotonic()
                    if reason > 1:
                        raise Interrupted(reason - 1, f"interrupted in step {progress.step + 1}; {resume}")
                    start_time += time.perf_counter() - save_start  # not a part of samples_per_second

                optimizer.step()
                if method.after_step is not None:
                    method.after_step(model, progress.step, total_steps)
                optimizer.zero_grad(set_to_none=graphs is None)  # a graph adds to the tensors that it was recorded with
                progress.finish_step(len(step_examples), time.perf_counter() - start_time)
                prev = scalars
                bar.update()

            start_time = time.perf_counter()
            _add_step(prev, progress, events, folder)  # waits for the device, which is training time
            progress.seconds += time.perf_counter() - start_time

            # Every rank evaluates a share of the examples, and all of them get the metrics.
            logits, metrics = evaluate_all(model, examples, schedule.max_tokens, processes, schedule.select_by, quiet)
            if not math.isfinite(metrics["eval_loss"]):
                raise _diverged(f"step {progress.step}: the validation loss is {metrics['eval_loss']}", folder)
            # With --eval-every an evaluation may fall within an epoch, which is then a fraction: 1.25.
            epoch_ended = progress.examples_done == len(train)
            fraction = progress.examples_done / len(train)
            row = {
                "epoch": progress.epoch + 1 if epoch_ended else round(progress.epoch + fraction, 6),
                "step": progress.step,
                "train_loss": progress.loss_sum / progress.loss_weight,
                **metrics,
                "learning_rate": schedule.learning_rate(progress.step - 1, total_steps),
                "seconds": progress.seconds,
                "samples_per_second": progress.samples / progress.seconds,
            }
            progress.finish_evaluation(row, epoch_ended)
            events.add(progress.step, {name: row[name] for name in row if name not in NOT_IN_EPOCH_EVENTS})
            # The checkpoint comes first: a run that is killed after it derives adapter/ and metrics.jsonl from it.
            processes.on_rank_zero(save)
            processes.on_rank_zero(publish_epoch)
            saved_at = time.monotonic()
            best = best_epoch(progress.history, schedule.select_by) is row
            table.print_row(row, sum(past["seconds"] for past in progress.history), best)
            if processes.is_main_process:  # warnings once, not once per rank
                labels = examples.validation.split.labels
                cpu.check()
                warn_about_predictions(logits, row, labels, task)
            # A signal that came during the evaluation: the checkpoint above is complete, so the run may end here.
            if reason := processes.all_reduce_max(received[0] if received else 0):
                raise Interrupted(reason, f"interrupted after epoch {row['epoch']}; {resume}")
        if progress.step < total_steps:
            table.print_early_stop(progress.history, schedule.select_by)
    return progress


class StepScalars:
    """The loss and the gradient norm of a step, copied to the host asynchronously.

    Args:
        step: the step's number, from 1.
        learning_rate: the step's learning rate.
        weight: the sum of the weights of the step's examples in the loss.
        loss: (), the mean loss of the step's examples, on the device.
        norm: (), the gradient norm before clipping, on the device.
    """

    def __init__(self, step: int, learning_rate: float, weight: float, loss: Tensor, norm: Tensor) -> None:
        self.step, self.learning_rate, self.weight = step, learning_rate, weight
        self.scalars = HostCopy(torch.stack([loss.detach(), norm.detach()]))  # (2,): one copy for both

    def read(self) -> tuple[float, float]:
        """Return loss and norm; waits for this step, but not for work that was queued on the device after it."""
        loss, norm = self.scalars.read().tolist()
        return loss, norm


def evaluation_metrics(examples: Examples, select_by: str) -> list[str]:
    """Return the figures of the epoch table: those of validation, and one of each other split (metrics.jsonl: all)."""
    metrics = examples.train.split.task.metrics
    others = [select_by if select_by.startswith(f"{name}_") else f"{name}_{metrics[0]}" for name in examples.others]
    return ["eval_loss", *metrics, *others]


def _add_step(scalars: StepScalars | None, progress: Progress, events: Events, folder: Path) -> None:
    """Add a step's loss to the epoch's; the first step of an epoch has no previous one."""
    if scalars is not None:
        loss = _finite_loss(scalars, folder)
        progress.add_loss(loss, scalars.weight)
        events.add(scalars.step, {"step_loss": loss, "learning_rate": scalars.learning_rate})


def _finite_loss(scalars: StepScalars, folder: Path) -> float:
    """Return the loss of a step; raise where it or the gradient norm is not finite."""
    loss, norm = scalars.read()
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise _diverged(f"step {scalars.step}: the loss is {loss}, the gradient norm {norm}", folder)
    return loss


def _diverged(what: str, folder: Path) -> MinipeftError:
    """Return the error for a loss that is not finite."""
    from minipeft.training.run_folder.checkpoint_reader import describe_checkpoint

    return MinipeftError(f"{what}. Lower --lr ({describe_checkpoint(folder)}).")
