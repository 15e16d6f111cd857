"""The training loop, from top to bottom."""

from __future__ import annotations

import hashlib
import math
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from minipeft.adapters.adapter import save_adapter
from minipeft.adapters.adapter_file import read_adapter
from minipeft.data.batching import epoch_order, split_by_tokens
from minipeft.data.buckets import pad_to_bucket
from minipeft.data.tasks import Task
from minipeft.errors import Interrupted, MinipeftError
from minipeft.files import make_folder, write_atomically, write_lines
from minipeft.methods import METHODS, method_name
from minipeft.model.classifier import SequenceClassifier
from minipeft.training.async_scalars import READ_LATE, StepNumbers
from minipeft.training.distributed import ALONE, Workers
from minipeft.training.events import Events
from minipeft.training.graphs import StepGraphs
from minipeft.training.interrupt import collect_signals
from minipeft.training.metrics import Encoded, evaluate, sequence_loss
from minipeft.training.optim import adamw, linear_schedule, set_learning_rate
from minipeft.training.recipes import CHECKPOINT_MINUTES

MAX_GRAD_NORM = 1.0
HOLDOUT = "holdout"
EACH_STEP = ("epoch", "step", "learning_rate")  # what TensorBoard has with every step
STOPPING = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Progress:
    """Where a run stands; with the trained tensors and the optimizer's state, all that --resume needs.

    epoch, place     the epoch under way, and how many of its examples are done
    step             optimizer steps done
    loss_sum         over the sequences of this epoch so far; seconds counts its training time
    history          one row an evaluation: what metrics.jsonl holds
    """

    epoch: int = 0
    place: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def train_loop(
    model: SequenceClassifier,
    train: Encoded,
    validation: Encoded,
    folder: Path,
    *,
    epochs: int,
    lr: float,
    sequences_per_step: int,
    warmup_steps: int,
    weight_decay: float,
    max_tokens: int,
    seed: int,
    device: str,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    beside: Mapping[str, Encoded] | None = None,
    workers: Workers = ALONE,
    graphs: StepGraphs | None = None,
    quiet: bool = False,
) -> Progress:
    """Train what `apply` left trainable, evaluate every epoch, and keep the best epoch's adapter in `folder`/adapter.

    A step takes `sequences_per_step` sequences in batches of at most `max_tokens` tokens, and its loss is their mean:
    how they are shared out, also among workers, and whether `graphs` computes them, changes nothing but the time. The
    state is saved after each epoch, and within one when `checkpoint_minutes` have passed since. `beside` holds others
    to evaluate, each under what its figures' names begin with; HOLDOUT's choose the best epoch, not the validation's.
    Raises MinipeftError when the loss is not finite, and Interrupted after a signal, with the state saved.
    """
    metric = train.split.task.metrics[0]
    method = METHODS[method_name(model.method)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = adamw(model, weight_decay)
    total_steps = epochs * math.ceil(len(train) / sequences_per_step)
    quiet = quiet or not workers.first
    now = _restore(folder, model, optimizer, device, train)
    workers.first_does(partial(_keep_up, folder, model, now, train.split.task, quiet))
    saved_at = time.monotonic()
    events = Events(folder / "tensorboard", now.step + 1, workers.first)
    with collect_signals() as received, tqdm(total=total_steps, initial=now.step, unit="step", disable=quiet) as bar:
        while now.epoch < epochs:
            model.train()
            order = epoch_order(len(train), seed, now.epoch)
            before: StepNumbers | None = None  # the last step's, not read yet
            while now.place < len(train):
                began = time.perf_counter()
                chosen = order[now.place : now.place + sequences_per_step]
                # Dropout is a function of the step, see --resume, and of the worker.
                torch.manual_seed(seed * 1_000_003 + now.step + (workers.rank << 53))
                learning_rate = lr * linear_schedule(now.step, warmup_steps, total_steps)
                set_learning_rate(optimizer, learning_rate)
                step_loss = torch.zeros((), device=device)
                if method.penalty is not None and workers.first:
                    method.penalty(model).backward()
                for indices in split_by_tokens(workers.share(chosen, train.lengths), train.lengths, max_tokens):
                    batch = train.batch(indices, model.config)
                    if graphs is not None:
                        step_loss += graphs.add_gradients(batch, len(chosen))
                        continue
                    batch = pad_to_bucket(batch, model.config).to(device)
                    assert batch.labels is not None
                    loss = sequence_loss(model(batch), batch.labels) / len(chosen)
                    loss.backward()
                    step_loss += loss.detach()
                workers.sum_gradients(trained, step_loss)
                norm = clip_grad_norm_(trained, MAX_GRAD_NORM)
                numbers = StepNumbers(now.step + 1, learning_rate, len(chosen), step_loss, norm)
                _count(before, now, events, folder)
                due = time.monotonic() - saved_at >= 60 * checkpoint_minutes
                reason = workers.largest(received[0] if received else int(due))
                if reason or device not in READ_LATE:
                    _check(numbers, folder)
                # The state is saved before the step changes it: by now its loss and gradient are known to be finite.
                if reason:
                    workers.first_does(partial(_save, folder, model, optimizer, now, train))
                    saved_at = time.monotonic()
                    if reason in STOPPING:
                        raise Interrupted(reason, f"interrupted in step {now.step + 1}; go on with --resume")
                optimizer.step()
                if method.after_step is not None:
                    method.after_step(model, now.step, total_steps)
                optimizer.zero_grad(set_to_none=graphs is None)
                before = numbers
                now.step += 1
                now.place += len(chosen)
                now.seconds += time.perf_counter() - began
                bar.update()

            began = time.perf_counter()
            _count(before, now, events, folder)
            now.seconds += time.perf_counter() - began
            evaluated = evaluate(model, validation, max_tokens, device, workers)
            for name, examples in (beside or {}).items():
                figures = evaluate(model, examples, max_tokens, device, workers)
                evaluated |= {f"{name}_{figure}": value for figure, value in figures.items()}
            if not math.isfinite(evaluated["eval_loss"]):
                raise MinipeftError(
                    f"step {now.step}: the validation loss is {evaluated['eval_loss']}; lower --lr ({_kept(folder)})"
                )
            row = {
                "epoch": now.epoch + 1,
                "step": now.step,
                "train_loss": now.loss_sum / len(train),
                **evaluated,
                "learning_rate": lr * linear_schedule(now.step - 1, warmup_steps, total_steps),
                "seconds": now.seconds,
                "samples_per_second": len(train) / now.seconds,
            }
            bar.set_postfix(epoch=row["epoch"], loss=f"{row['train_loss']:.3f}", **{metric: f"{row[metric]:.4f}"})
            now = Progress(now.epoch + 1, 0, now.step, history=[*now.history, row])
            events.add(now.step, {name: value for name, value in row.items() if name not in EACH_STEP})
            # The checkpoint comes first: a run that is killed from here on makes adapter/ and metrics.jsonl from it.
            workers.first_does(partial(_save, folder, model, optimizer, now, train))
            workers.first_does(partial(_publish, folder, model, now, train.split.task))
            saved_at = time.monotonic()
            if reason := workers.largest(received[0] if received else 0):
                raise Interrupted(reason, f"interrupted after epoch {now.epoch}; go on with --resume")
    return now


def _count(numbers: StepNumbers | None, now: Progress, events: Events, folder: Path) -> None:
    """Take a step's numbers into the epoch's; before its first step there are none."""
    if numbers is not None:
        loss = _check(numbers, folder)
        now.loss_sum += loss * numbers.sequences
        events.add(numbers.step, {"step_loss": loss, "learning_rate": numbers.learning_rate})


def _check(numbers: StepNumbers, folder: Path) -> float:
    """The loss of a step; it or a gradient norm that is not finite raises."""
    loss, norm = numbers.read()
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise MinipeftError(f"step {numbers.step}: loss {loss}, gradient norm {norm}; lower --lr ({_kept(folder)})")
    return loss


def _save(
    folder: Path, model: SequenceClassifier, optimizer: torch.optim.Optimizer, now: Progress, train: Encoded
) -> None:
    trained = {name: tensor.detach() for name, tensor in _trained(model).items()}
    state = {
        "trained": trained,
        "optimizer": optimizer.state_dict(),
        "progress": vars(now),
        "examples": _fingerprint(train),
    }
    make_folder(folder / "checkpoint")

    def write(path: Path) -> None:
        with open(path, "wb") as file:  # torch.save's own file hides the reason why it cannot be written
            torch.save(state, file)

    write_atomically(folder / "checkpoint" / "state.pt", write)


def _trained(model: SequenceClassifier) -> dict[str, Tensor]:
    """What a step moves: the trained parameters, and a method's buffers."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {**parameters, **dict(model.named_buffers())}


def _publish(folder: Path, model: SequenceClassifier, now: Progress, task: Task) -> None:
    """metrics.jsonl of an epoch that has just ended and, where it is the best, adapter/."""
    if (best := best_epoch(now.history, task)) is now.history[-1]:
        details = {"task": task.name, "metric": task.metrics[0], "score": best[task.metrics[0]]}
        save_adapter(model, folder / "adapter", **details, epoch=best["epoch"])
    write_lines(folder / "metrics.jsonl", now.history)


def best_epoch(history: list[dict[str, Any]], task: Task) -> dict[str, Any]:
    """The row of the first epoch with the best value of the task's metric: on the holdout, where there is one."""
    held_out = f"{HOLDOUT}_{task.metrics[0]}"
    return max(history, key=lambda row: row.get(held_out, row[task.metrics[0]]))


def _keep_up(folder: Path, model: SequenceClassifier, now: Progress, task: Task, quiet: bool) -> None:
    """Say where the run goes on, with adapter/ and metrics.jsonl as the checkpoint wants them."""
    if not (folder / "checkpoint" / "state.pt").is_file():
        return
    adapter = "no epoch is finished yet"
    if now.history:
        epoch = best_epoch(now.history, task)["epoch"]
        adapter = f"the adapter is epoch {epoch}'s"
        if now.place == 0:
            _publish(folder, model, now, task)
        if (found := read_adapter(folder / "adapter", model.config).details.get("epoch")) != epoch:
            raise MinipeftError(
                f"{folder / 'adapter'} is epoch {found}'s, but the checkpoint's best is epoch {epoch}; "
                f"put that adapter back, or remove {folder / 'checkpoint'} to start the run anew"
            )
    if not quiet:
        print(f"resuming {folder} from step {now.step} (epoch {_epoch(vars(now))}); {adapter}", file=sys.stderr)


def _restore(
    folder: Path, model: SequenceClassifier, optimizer: torch.optim.Optimizer, device: str, train: Encoded
) -> Progress:
    """Put model and optimizer where the last checkpoint left them; a run without one starts."""
    path = folder / "checkpoint" / "state.pt"
    if not path.is_file():
        return Progress()
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        same = state["examples"] == _fingerprint(train)
        tensors = _trained(model)
        with torch.no_grad():
            for name, tensor in state["trained"].items():
                tensors[name].copy_(tensor)
        optimizer.load_state_dict(state["optimizer"])
        now = Progress(**state["progress"])
    except Exception as error:  # torch.load lets through the errors of zip, pickle and storage alike
        raise MinipeftError(
            f"{path}: not readable as a checkpoint ({type(error).__name__}); remove it to start the run anew"
        ) from None
    if not same:
        raise MinipeftError(
            f"{folder} was begun with other training examples; give it the same data, or choose another --output"
        )
    return now


def _fingerprint(train: Encoded) -> str:
    """What shows that the training examples are the same, in the same order: a hash of their lengths and labels."""
    lengths, labels = np.asarray(train.lengths, dtype=np.int64), np.asarray(train.split.labels, dtype=np.float64)
    return hashlib.sha256(lengths.tobytes() + labels.tobytes()).hexdigest()


def _kept(folder: Path) -> str:
    """The last good checkpoint, in words."""
    path = folder / "checkpoint" / "state.pt"
    if not path.is_file():
        return "no epoch was finished, so there is no checkpoint"
    progress = torch.load(path, map_location="cpu", weights_only=True)["progress"]
    return f"{folder} keeps the checkpoint of epoch {_epoch(progress)}, step {progress['step']}"


def _epoch(progress: dict[str, Any]) -> int:
    """The epoch, counted from 1, that the last step belongs to."""
    return int(progress["epoch"]) + (progress["place"] > 0)
