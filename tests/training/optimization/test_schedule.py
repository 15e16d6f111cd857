"""Learning-rate schedules against torch's; steps, evaluations within an epoch, early stopping, more epochs."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import (
    COUNT,
    LR,
    adapter,
    encoded,
    interrupted_at,
    rows,
    run_loop,
    same_tensors,
    small_run,
    state,
    without_times,
)
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, SequentialLR
from transformers import get_scheduler

from minipeft import LoRA, MinipeftError, apply, load_pretrained
from minipeft.cli.cli import main_train
from minipeft.errors import Interrupted
from minipeft.training.optimization.schedule import LR_SCHEDULES, Schedule


def torch_scheduler(kind: str, optimizer: torch.optim.Optimizer, warmup: int, total: int) -> LRScheduler:
    """The schedule as torch's schedulers in sequence; total is more than warmup."""
    after: LRScheduler = {
        "linear": lambda: LinearLR(optimizer, 1.0, 0.0, total - warmup),
        "cosine": lambda: CosineAnnealingLR(optimizer, total - warmup),
        "constant": lambda: ConstantLR(optimizer, 1.0),
    }[kind]()
    if not warmup:
        return after
    return SequentialLR(optimizer, [LambdaLR(optimizer, lambda step: step / warmup), after], [warmup])


@pytest.mark.filterwarnings("ignore:The epoch parameter in")  # torch's own SequentialLR uses it
@settings(deadline=None)
@given(st.sampled_from(sorted(LR_SCHEDULES)), st.integers(0, 30), st.integers(1, 40))
def test_the_schedules_are_torch_s_and_transformers_s(kind: str, warmup: int, after: int) -> None:
    schedule = Schedule(1, LR, warmup, 0.0, 8, 64, 0, "accuracy", lr_schedule=kind)
    total = warmup + after
    optimizers = [torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR) for _ in range(2)]
    theirs = {"constant": "constant_with_warmup"}.get(kind, kind)
    schedulers = [
        torch_scheduler(kind, optimizers[0], warmup, total),
        get_scheduler(theirs, optimizers[1], warmup, total),
    ]
    for step in range(total):
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            assert schedule.learning_rate(step, total) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
            optimizer.step()
            scheduler.step()
    end = {"constant": LR}.get(kind, 0.0)
    assert schedule.learning_rate(total, total) == pytest.approx(end, abs=1e-12)


VARIANTS: list[dict[str, Any]] = [
    {"lr_schedule": "linear", "eval_every": 2},
    {"lr_schedule": "cosine", "steps": 8},
    {"lr_schedule": "constant", "patience": 2, "select_by": "eval_loss"},
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: options["lr_schedule"])
def test_a_run_interrupted_within_epochs_resumes_to_the_same_bits(
    options: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    """SIGINT in the second step, resumed, in the third step from there, and so on; dropout is on."""
    train, validation = encoded(COUNT), encoded(6, seed=1)
    options = options | {"epochs": 3}

    def model() -> Any:
        torch.manual_seed(0)
        return apply(load_pretrained(checkpoint), LoRA(rank=2, dropout=0.2))

    unbroken = model()
    expected = run_loop(unbroken, train, validation, tmp_path / "unbroken", **options)
    places = []
    while len(places) < 9:
        broken = model()
        try:
            with interrupted_at(2 + len(places)):
                done = run_loop(broken, train, validation, tmp_path / "broken", **options)
            break
        except Interrupted:
            places.append(state(tmp_path / "broken")["progress"]["examples_done"])
    assert any(0 < place < COUNT for place in places) and len(places) >= 2
    assert without_times(done.history) == without_times(expected.history)
    assert same_tensors(dict(broken.named_parameters()), dict(unbroken.named_parameters()))
    assert rows(tmp_path / "broken") == done.history
    assert same_tensors(adapter(tmp_path / "broken"), adapter(tmp_path / "unbroken"))


def test_evaluations_within_an_epoch_have_its_fraction_and_their_own_training_loss(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Three steps an epoch, of 8, 8 and 4 examples; the figures at the end of an epoch are those of a run without."""
    train, validation = encoded(COUNT), encoded(6, seed=1)
    histories = {}
    for every in (0, 2):
        torch.manual_seed(0)
        model = apply(load_pretrained(checkpoint), LoRA(rank=2))
        folder = tmp_path / f"every-{every}"
        histories[every] = run_loop(model, train, validation, folder, epochs=2, eval_every=every).history
    within, ends = histories[2], histories[0]
    assert [(row["epoch"], row["step"]) for row in within] == [(0.8, 2), (1, 3), (1.4, 4), (2, 6)]
    by_epoch = {row["epoch"]: row for row in within}
    for row in ends:
        same = by_epoch[row["epoch"]]
        assert (same["eval_loss"], same["accuracy"]) == (row["eval_loss"], row["accuracy"])
    for row, (parts, sizes) in zip(ends, (((0.8, 1), (16, 4)), ((1.4, 2), (8, 12))), strict=True):
        total = sum(by_epoch[epoch]["train_loss"] * size for epoch, size in zip(parts, sizes, strict=True))
        assert row["train_loss"] == pytest.approx(total / COUNT, abs=1e-6)


def test_the_best_evaluation_may_be_within_an_epoch(checkpoint: Path, tmp_path: Path) -> None:
    """Validation is the training data with the labels exchanged, so the loss rises from the first evaluation on."""
    train, validation = encoded(COUNT), encoded(COUNT, flip=True)
    model = apply(load_pretrained(checkpoint), LoRA(rank=8))
    options = {"epochs": 6, "lr": 3e-3, "warmup_steps": 0, "select_by": "eval_loss", "eval_every": 1}
    done = run_loop(model, train, validation, tmp_path / "run", **options)
    several = [row for row in done.history if "constant_prediction" not in row]  # an epoch of one class is not chosen
    best = min(several, key=lambda row: row["eval_loss"])
    assert best["epoch"] % 1 > 0
    from conftest import details_of

    assert details_of(tmp_path / "run" / "adapter")["epoch"] == best["epoch"]


def test_training_stops_when_patience_ends(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best epoch is the first; a second call trains nothing more."""
    train, validation = encoded(COUNT), encoded(COUNT, flip=True)
    options = {"epochs": 9, "lr": 2e-2, "warmup_steps": 0, "select_by": "eval_loss", "patience": 2}
    for _ in range(2):
        model = apply(load_pretrained(checkpoint), LoRA(rank=8))
        done = run_loop(model, train, validation, tmp_path / "run", **options)
        losses = [row["eval_loss"] for row in done.history]
        best = losses.index(min(losses))
        assert len(losses) == best + 1 + 2 < 9


def test_steps_end_a_run_within_an_epoch(tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> None:
    """48 examples, 16 a step: 4 steps are an epoch and a third, and the first are those of a longer constant run."""
    options = {"epochs": None, "lr_schedule": "constant", "warmup_ratio": 0.3, "warmup_steps": None}
    result = small_run(tiny_checkpoint, small_data, tmp_path / "run", **options, steps=4)
    history = rows(tmp_path / "run")
    assert [(row["epoch"], row["step"]) for row in history] == [(1, 3), (1.333333, 4)]
    assert set(result.content["best"]) == set(result.content["last"]) == {"epoch", "value"}
    assert result.content["last"]["epoch"] == 1.333333
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["epochs"], config["steps"], config["warmup_steps"]) == (2, 4, math.ceil(0.3 * 4))
    longer = {**options, "epochs": 3, "warmup_ratio": None, "warmup_steps": 2}
    small_run(tiny_checkpoint, small_data, tmp_path / "longer", **longer)
    assert without_times(rows(tmp_path / "longer"))[0] == without_times(history)[0]
    seconds = sum(row["seconds"] for row in history)
    assert result.content["samples_per_second"] == pytest.approx(4 * 16 / seconds)


def test_a_finished_run_with_a_constant_learning_rate_continues_as_one_with_more_epochs(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"lr_schedule": "constant", "lr": 5e-4, "dropout": 0.1}
    expected = small_run(tiny_checkpoint, small_data, tmp_path / "whole", epochs=3, **options)
    small_run(tiny_checkpoint, small_data, tmp_path / "run", epochs=1, **options)
    capsys.readouterr()
    done = small_run(tiny_checkpoint, small_data, tmp_path / "run", epochs=3, resume=True, **options | {"quiet": False})
    said = [line for line in capsys.readouterr().err.splitlines() if "continues from" in line]
    assert said == [f"{tmp_path / 'run'} continues from 1 to 3 epochs: the constant learning rate stays 0.0005"]
    assert without_times(rows(tmp_path / "run")) == without_times(rows(tmp_path / "whole"))
    assert same_tensors(*(state(tmp_path / name)["weights"] for name in ("run", "whole")))
    assert done.content["best"] == expected.content["best"] and done.content["last"] == expected.content["last"]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == done.content
    assert json.loads((tmp_path / "run" / "config.json").read_text())["epochs"] == 3


def test_a_linear_run_continues_on_the_line_of_a_longer_one_and_other_runs_are_refused(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_run(tiny_checkpoint, small_data, tmp_path / "run", epochs=1, lr=5e-4)
    refused = shutil.copytree(tmp_path / "run", tmp_path / "refused")
    small_run(tiny_checkpoint, small_data, tmp_path / "run", epochs=2, resume=True, quiet=False)
    # 3 steps an epoch after 2 of warmup: the fourth step has (6 - 3) / (6 - 2) of the learning rate
    assert f"the linear learning rate starts again at {0.75 * 5e-4:g} and decays to 0" in capsys.readouterr().err
    assert rows(tmp_path / "run")[1]["learning_rate"] == pytest.approx(0.25 * 5e-4)
    config = json.loads((refused / "config.json").read_text())
    (refused / "config.json").write_text(json.dumps(config | {"lr_schedule": "cosine"}))
    with pytest.raises(
        MinipeftError, match=r"the cosine learning rate has reached 0, .* 1 epochs cannot become 2\. Start"
    ):
        small_run(tiny_checkpoint, small_data, refused, epochs=2, resume=True, lr_schedule="cosine")
    # a run that was interrupted keeps the epochs that it was started with
    (refused / "config.json").write_text(json.dumps(config | {"epochs": 2}))
    with pytest.raises(MinipeftError, match=r"the run has epochs 2, not 3\. Resume it with the same settings"):
        small_run(tiny_checkpoint, small_data, refused, epochs=3, resume=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr-schedule", "step"], "--lr-schedule 'step'; one of linear, cosine, constant"),
        (["--warmup-ratio", "1"], "--warmup-ratio 1.0 is not a number from 0 to below 1"),
        (
            ["--warmup-ratio", "0.1", "--warmup-steps", "3"],
            "--warmup-steps 3 and --warmup-ratio 0.1 exclude each other",
        ),
        (["--epochs", "2", "--steps", "3"], "--epochs 2 and --steps 3 exclude each other"),
        (["--steps", "0"], "--steps 0 is not a whole number of 1 or more"),
        (["--patience", "0"], "--patience 0 is not a whole number of 1 or more"),
        (["--eval-every", "-1"], "--eval-every -1 is not a whole number of 1 or more"),
        (["--beta1", "1"], "--beta1 1.0 is not a number from 0 to below 1"),
        (["--epsilon", "0"], "--epsilon 0.0 is not above 0"),
        (["--max-grad-norm", "-1"], "--max-grad-norm -1.0 is not a finite number of 0 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_train(["--output", str(tmp_path / "run"), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()
