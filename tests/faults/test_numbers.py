"""Losses that are not finite stop a run and spoil nothing that is good; finite ones, however large, stop nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import details_of
from runs import history, state

from minipeft import MinipeftError, load_run, train

SETTINGS: dict[str, Any] = {
    "task": "rte",
    "epochs": 4,
    "batch_size": 16,
    "grad_accum": 1,
    "train_limit": 48,
    "device": "cpu",
    "quiet": True,
}


@pytest.mark.parametrize("minutes", [5, 0], ids=["a checkpoint an epoch", "a checkpoint a step"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_is_not_finite_leaves_the_last_state_that_had_a_finite_one(
    precision: str, minutes: float, tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    """The first step has learning rate 0, the second an absurd one, and the third sees what came of it."""
    folder = tmp_path / "run"
    settings = {**SETTINGS, "model": str(tiny_checkpoint), "data": str(small_data), "output": str(folder)}
    settings |= {"lr": 1e37, "warmup_steps": 4, "precision": precision, "checkpoint_minutes": minutes}
    with pytest.raises(MinipeftError) as caught:
        train(**settings)
    good = state(folder) if minutes == 0 else None
    words = "keeps the checkpoint of epoch 1, step 1" if good else "no epoch was finished, so there is no checkpoint"
    assert "Lower --lr (" in str(caught.value) and words in str(caught.value)
    if good:
        assert all(tensor.isfinite().all() for tensor in good["weights"].values())
        with pytest.raises(MinipeftError) as again:  # the same step with the same figures: nothing was lost
            train(**settings, resume=True)
        assert str(again.value) == str(caught.value)
    assert not (folder / "adapter").exists() and not (folder / "result.json").exists()


def test_a_spike_of_the_loss_does_not_end_a_run(tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> None:
    """A learning rate at which the loss of an epoch is many times that of another; the best epoch is kept."""
    settings = {**SETTINGS, "model": str(tiny_checkpoint), "data": str(small_data), "method": "full", "epochs": 6}
    content = train(**settings, output=str(tmp_path / "run"), lr=1.0, warmup_steps=10).content
    losses = [row["train_loss"] for row in history(tmp_path / "run")]
    assert len(losses) == 6 and max(losses) > 3 * min(losses), f"no spike in {losses}"
    assert details_of(tmp_path / "run" / "adapter")["epoch"] == content["best"]["epoch"]
    assert load_run(tmp_path / "run").evaluate()["accuracy"] == content["best"]["value"]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["last"]["epoch"] == 6
