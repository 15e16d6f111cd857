"""Small runs that the tests of training share, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from minipeft import (
    Result,
    train,
)

SMALL = {
    "epochs": 2,
    "batch_size": 8,
    "grad_accum": 2,
    "train_limit": 48,
    "eval_limit": 16,
    "warmup_steps": 2,
    "device": "cpu",
    "quiet": True,
}


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
