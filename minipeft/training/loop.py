"""The training loop, from top to bottom."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from minipeft.adapter import save_adapter
from minipeft.data.batching import epoch_order, split_by_tokens
from minipeft.errors import Interrupted, MinipeftError
from minipeft.files import write_atomically, write_lines
from minipeft.methods import METHODS, method_name
from minipeft.model.roberta import SequenceClassifier
from minipeft.training.interrupt import collect_signals
from minipeft.training.metrics import Encoded, evaluate, sequence_loss
from minipeft.training.optim import adamw, linear_schedule, set_learning_rate

MAX_GRAD_NORM = 1.0


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
    quiet: bool = False,
) -> Progress:
    """Train what `apply` left trainable, evaluate every epoch, and keep the best epoch's adapter in `folder`/adapter.

    A step takes `sequences_per_step` sequences in batches of at most `max_tokens` tokens, and its loss is their mean:
    how they are shared out changes nothing but the time. Raises MinipeftError when the loss is not finite, and
    Interrupted after a signal, with the state saved.
    """
    metric = train.split.task.metrics[0]
    method = METHODS[method_name(model.method)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = adamw(model, weight_decay)
    total_steps = epochs * math.ceil(len(train) / sequences_per_step)
    now = _restore(folder, model, optimizer, device)
    with collect_signals() as received, tqdm(total=total_steps, initial=now.step, unit="step", disable=quiet) as bar:
        while now.epoch < epochs:
            model.train()
            order = epoch_order(len(train), seed, now.epoch)
            while now.place < len(train):
                began = time.perf_counter()
                chosen = order[now.place : now.place + sequences_per_step]
                torch.manual_seed(seed * 1_000_003 + now.step)  # dropout is a function of the step: see --resume
                set_learning_rate(optimizer, lr * linear_schedule(now.step, warmup_steps, total_steps))
                step_loss = torch.zeros((), device=device)
                if method.penalty is not None:
                    method.penalty(model).backward()
                for indices in split_by_tokens(chosen, train.lengths, max_tokens):
                    batch = train.batch(indices, model.config).to(device)
                    assert batch.labels is not None
                    loss = sequence_loss(model(batch), batch.labels) / len(chosen)
                    loss.backward()
                    step_loss += loss.detach()
                norm = clip_grad_norm_(trained, MAX_GRAD_NORM)
                if not math.isfinite(step_loss.item()) or not math.isfinite(norm.item()):
                    raise MinipeftError(
                        f"step {now.step + 1}: loss {step_loss.item()}, gradient norm {norm.item()}; "
                        f"lower --lr ({_kept(folder, now)})"
                    )
                optimizer.step()
                if method.after_step is not None:
                    method.after_step(model, now.step, total_steps)
                optimizer.zero_grad()
                now.step += 1
                now.place += len(chosen)
                now.loss_sum += step_loss.item() * len(chosen)
                now.seconds += time.perf_counter() - began
                bar.update()
                if received:
                    _save(folder, model, optimizer, now)
                    raise Interrupted(received[0], f"interrupted in step {now.step}; go on with --resume")

            evaluated = evaluate(model, validation, max_tokens, device)
            if not math.isfinite(evaluated["eval_loss"]):
                raise MinipeftError(
                    f"step {now.step}: the validation loss is {evaluated['eval_loss']}; "
                    f"lower --lr ({_kept(folder, now)})"
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
            if all(row[metric] > earlier[metric] for earlier in now.history):
                save_adapter(
                    model,
                    folder / "adapter",
                    task=train.split.task.name,
                    metric=metric,
                    score=row[metric],
                    epoch=row["epoch"],
                )
            now = Progress(now.epoch + 1, 0, now.step, history=[*now.history, row])
            write_lines(folder / "metrics.jsonl", now.history)
            _save(folder, model, optimizer, now)
    return now


def _save(folder: Path, model: SequenceClassifier, optimizer: torch.optim.Optimizer, now: Progress) -> None:
    state = {
        "trained": {name: tensor.detach() for name, tensor in _trained(model).items()},
        "optimizer": optimizer.state_dict(),
        "progress": vars(now),
    }
    (folder / "checkpoint").mkdir(exist_ok=True)
    write_atomically(folder / "checkpoint" / "state.pt", lambda path: torch.save(state, path))


def _trained(model: SequenceClassifier) -> dict[str, Tensor]:
    """What a step moves: the trained parameters, and a method's buffers."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {**parameters, **dict(model.named_buffers())}


def _restore(folder: Path, model: SequenceClassifier, optimizer: torch.optim.Optimizer, device: str) -> Progress:
    """Put model and optimizer where the last checkpoint left them; a run without one starts."""
    path = folder / "checkpoint" / "state.pt"
    if not path.is_file():
        return Progress()
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        tensors = _trained(model)
        with torch.no_grad():
            for name, tensor in state["trained"].items():
                tensors[name].copy_(tensor)
        optimizer.load_state_dict(state["optimizer"])
        return Progress(**state["progress"])
    except Exception as error:  # torch.load lets through the errors of zip, pickle and storage alike
        raise MinipeftError(
            f"{path}: not readable as a checkpoint ({type(error).__name__}); remove it to start the run anew"
        ) from None


def _kept(folder: Path, now: Progress) -> str:
    if now.history:
        return f"{folder} keeps the checkpoint of epoch {now.history[-1]['epoch']}"
    return "no epoch was finished, so there is no checkpoint"
