"""Small runs that the tests of training share, and what they leave."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ragged
from safetensors.torch import load_file

from minipeft import Result, SequenceClassifier, train
from minipeft.data.tasks.task import Split, get_task
from minipeft.data.tokens.examples import Encoded, Examples
from minipeft.data.tokens.token_table import TokenTable
from minipeft.training import loop
from minipeft.training.loop import RunFolder, train_loop
from minipeft.training.optimization.schedule import Schedule
from minipeft.training.progress import Progress
from minipeft.training.run_folder.checkpoint_files import list_checkpoints
from minipeft.training.run_folder.checkpoint_reader import read_last_checkpoint

SMALL = {
    "epochs": 2,
    "batch_size": 8,
    "grad_accum": 2,
    "train_limit": 48,
    "eval_limit": 16,
    "warmup_steps": 2,
    "device": "cpu",
    "precision": "fp32",
    "quiet": True,
}


COUNT, PER_STEP, EPOCHS, LR, WARMUP = 20, 8, 2, 1e-3, 2  # of run_loop; the last step of an epoch is a short one


def small_run(checkpoint: Path, data: Path, output: Path, **settings: Any) -> Result:
    return train(
        **{"task": "rte", "model": str(checkpoint), "data": str(data), "output": str(output), **SMALL, **settings}
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "samples_per_second")} for row in history
    ]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def state(folder: Path) -> dict[str, Any]:
    """The last complete checkpoint of a run: its JSON file, its weights and its optimizer's state."""
    content, weights, optimizer = read_last_checkpoint(folder)
    return content | {"weights": weights, "optimizer": optimizer}


def last_step(folder: Path) -> int:
    """The step of a run's last checkpoint, which may be writing another one; -1 without one."""
    return next((int(path.stem.removeprefix("step-")) for path in list_checkpoints(folder)), -1)


def encoded(count: int, seed: int = 0, flip: bool = False, task: str = "sst2") -> Encoded:
    """Random sequences of ragged lengths, each starting with <s>; the label can be learnt from the next token."""
    sequences = [[0, *row] for row in ragged([1 + (7 * number + seed) % 23 for number in range(count)], seed=seed)]
    labels = [int(row[1] % 2 == 0) ^ flip for row in sequences]
    return Encoded(Split(get_task(task), [""] * count, None, labels), TokenTable.from_sequences(sequences))


@contextmanager
def interrupted_at(step: int, number: int = signal.SIGINT) -> Iterator[None]:
    """Send a signal in a step of the training in this block, counted from 1 in this process."""
    steps = 0

    def clip(*arguments: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == step:
            signal.raise_signal(number)
        return torch.nn.utils.clip_grad_norm_(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "clip_grad_norm_", clip)
        yield


def run_loop(model: SequenceClassifier, train: Encoded, validation: Encoded, folder: Path, **changes: Any) -> Progress:
    folder.mkdir(exist_ok=True)
    metric = train.split.task.metrics[0]
    schedule = Schedule(EPOCHS, LR, WARMUP, 0.1, PER_STEP, max_tokens=64, seed=3, select_by=metric)
    minutes, graphs = changes.pop("checkpoint_minutes", 5.0), changes.pop("graphs", None)
    loss = changes.pop("loss", None)
    schedule, place = replace(schedule, **changes), RunFolder(folder, minutes, quiet=True)
    return train_loop(model, Examples(train, validation), schedule, place, graphs=graphs, loss=loss)
