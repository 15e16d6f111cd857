"""The training loop against one written with transformers' model and torch's optimizer; what it keeps and changes."""

from __future__ import annotations

import itertools
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import evaluate, padded, reference_model
from safetensors import safe_open
from small_runs import COUNT, EPOCHS, LR, PER_STEP, WARMUP, encoded, interrupted_at, last_step
from small_runs import run_loop as run
from torch.nn.utils import clip_grad_norm_
from transformers import get_scheduler

from minipeft import (
    IA3,
    BitFit,
    Full,
    Head,
    LayerNormTuning,
    LoRA,
    MinipeftError,
    VeRA,
    apply,
    load_adapter,
    load_pretrained,
)
from minipeft.data.batches.sampling import epoch_order
from minipeft.errors import Interrupted
from minipeft.model.pretrained import tensor_names
from minipeft.training import loop
from minipeft.training.optimization.schedule import Schedule
from minipeft.training.progress import CONSTANT
from minipeft.training.run_folder.signals import collect_signals

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
METHODS = [
    Full(),
    Head(),
    BitFit(),
    LoRA(rank=2, alpha=8),
    LoRA(rank=2, targets=("key", "output", "ffn_output")),
    IA3(),
    LayerNormTuning(),
    VeRA(rank=6),
]


OPTIONS = {"lr_schedule": "cosine", "betas": (0.7, 0.9), "epsilon": 1e-3, "max_grad_norm": 0.5}


@pytest.mark.parametrize("options", [{}, OPTIONS, {"lr_schedule": "constant", "max_grad_norm": 0.0}], ids=len)
def test_full_fine_tuning_is_that_of_transformers_in_padded_batches(options: dict[str, Any], tmp_path: Path) -> None:
    """One large padded batch a step, against packed batches of at most 64 tokens; losses 1e-5, weights 1e-4."""
    reference = reference_model(**NO_DROPOUT)
    reference.save_pretrained(tmp_path / "checkpoint")
    model = apply(load_pretrained(tmp_path / "checkpoint"), Full())
    train, validation = encoded(COUNT), encoded(6, seed=1)
    done = run(model, train, validation, tmp_path / "run", **options)
    schedule = Schedule(EPOCHS, LR, WARMUP, 0.1, PER_STEP, 64, 3, "accuracy", **options)

    decayed = [p for n, p in reference.named_parameters() if not n.endswith("bias") and "LayerNorm" not in n]
    others = [p for n, p in reference.named_parameters() if n.endswith("bias") or "LayerNorm" in n]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=LR,
        betas=schedule.betas,
        eps=schedule.epsilon,
    )
    kind = "constant_with_warmup" if schedule.lr_schedule == "constant" else schedule.lr_schedule
    scheduler = get_scheduler(kind, optimizer, WARMUP, 3 * EPOCHS)
    reference.train()
    norms = []
    for epoch in range(EPOCHS):
        order, losses = epoch_order(COUNT, 3, epoch), []
        for start in range(0, COUNT, PER_STEP):
            chosen = order[start : start + PER_STEP]
            labels = torch.tensor([train.split.labels[index] for index in chosen])
            loss = reference(**padded([train.sequences[index] for index in chosen]), labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            if schedule.max_grad_norm:
                norms.append(clip_grad_norm_(reference.parameters(), schedule.max_grad_norm).item())
            learning_rate = scheduler.get_last_lr()[0]
            optimizer.step()
            scheduler.step()
            losses.append(loss.item() * len(chosen))
        row = done.history[epoch]
        assert row["train_loss"] == pytest.approx(sum(losses) / COUNT, abs=1e-5)
        assert row["learning_rate"] == pytest.approx(learning_rate, rel=1e-9)
        assert (row["epoch"], row["step"]) == (epoch + 1, 3 * (epoch + 1))
    assert not norms or max(norms) > schedule.max_grad_norm, "no step was clipped, so this test would not see clipping"
    with torch.no_grad():
        logits = reference.eval()(**padded(validation.sequences)).logits
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(validation.split.labels)).item()
    assert done.history[-1]["eval_loss"] == pytest.approx(expected, abs=1e-4)
    theirs = dict(reference.named_parameters())
    names = tensor_names(model, model.config)
    for name, parameter in model.named_parameters():
        if not name.endswith("key.bias"):  # its gradient is rounding noise, which AdamW scales up
            torch.testing.assert_close(parameter, theirs[names[name]], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_size_of_the_batches_changes_nothing(method: Any, tmp_path: Path) -> None:
    reference_model(**NO_DROPOUT).save_pretrained(tmp_path / "checkpoint")
    train, validation = encoded(COUNT), encoded(6, seed=1)
    results = []
    for max_tokens in (10_000, 64, 1):  # all at once; a few at a time; one at a time
        torch.manual_seed(0)
        model = apply(load_pretrained(tmp_path / "checkpoint"), method)
        done = run(model, train, validation, tmp_path / f"run-{max_tokens}", max_tokens=max_tokens)
        trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        results.append((done.history, trained))
    history, trained = results[0]
    for other_history, other_trained in results[1:]:
        for row, other in zip(history, other_history, strict=True):
            assert other["train_loss"] == pytest.approx(row["train_loss"], abs=1e-5)
            assert other["eval_loss"] == pytest.approx(row["eval_loss"], abs=1e-5)
        for name, tensor in trained.items():
            if not name.endswith("key.bias"):
                torch.testing.assert_close(other_trained[name], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_only_what_the_method_trains_changes(method: Any, checkpoint: Path, tmp_path: Path) -> None:
    model = apply(load_pretrained(checkpoint), method)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    run(model, encoded(COUNT), encoded(6, seed=1), tmp_path / "run", warmup_steps=0)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert changed == trained and {name for name in trained if name.startswith("head.")}
    if not isinstance(method, Full):
        assert len(trained) < len(before)


def test_the_best_epoch_is_kept_although_later_ones_are_worse(checkpoint: Path, tmp_path: Path) -> None:
    """Validation is the training data with the labels exchanged: the better the training, the worse the metric."""
    train, validation = encoded(COUNT), encoded(COUNT, flip=True)
    model = apply(load_pretrained(checkpoint), Full())
    done = run(model, train, validation, tmp_path / "run", epochs=12, warmup_steps=0)
    scores = [row["accuracy"] for row in done.history]
    several = [score for row, score in zip(done.history, scores, strict=True) if CONSTANT not in row]
    best = scores.index(max(several))  # an epoch that predicts one class only is not the best
    assert scores[-1] < scores[best]
    with safe_open(tmp_path / "run" / "adapter" / "adapter_model.safetensors", framework="pt") as file:
        details = json.loads(file.metadata()["minipeft"])
    assert (details["score"], details["epoch"]) == (scores[best], best + 1)
    assert (details["task"], details["metric"]) == ("sst2", "accuracy")
    restored = load_adapter(load_pretrained(checkpoint), tmp_path / "run" / "adapter")
    assert evaluate(restored, validation, 64) == {name: done.history[best][name] for name in ("eval_loss", "accuracy")}
    last = evaluate(model, validation, 64)
    assert last == {name: done.history[-1][name] for name in ("eval_loss", "accuracy")}


def test_training_learns(checkpoint: Path, tmp_path: Path) -> None:
    train = encoded(COUNT)
    done = run(
        apply(load_pretrained(checkpoint), LoRA(rank=8)),
        train,
        train,
        tmp_path / "run",
        epochs=25,
        warmup_steps=0,
        lr=5e-3,
    )
    assert done.history[-1]["eval_loss"] < 0.5 * done.history[0]["train_loss"]
    assert done.history[-1]["accuracy"] == 1.0


def test_metrics_jsonl_holds_the_history(checkpoint: Path, tmp_path: Path) -> None:
    done = run(
        apply(load_pretrained(checkpoint), Head()),
        encoded(COUNT, task="mrpc"),
        encoded(6, 1, task="mrpc"),
        tmp_path / "run",
    )
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == done.history
    for row in done.history:
        assert [name for name in row if name != CONSTANT] == [
            "epoch",
            "step",
            "train_loss",
            "eval_loss",
            "accuracy",
            "f1",
            "learning_rate",
            "seconds",
            "samples_per_second",
        ]
        assert row["samples_per_second"] == pytest.approx(COUNT / row["seconds"])


def test_the_time_of_writing_checkpoints_is_not_training_time(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint in every step, each of which takes an hour by the clock of the loop."""
    clock, save = [0.0], loop.save_checkpoint

    def slow_save(*given: Any) -> None:
        save(*given)
        clock[0] += 3600.0

    monkeypatch.setattr(loop, "save_checkpoint", slow_save)
    perf_counter = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: perf_counter() + clock[0])
    model = apply(load_pretrained(checkpoint), Head())
    done = run(model, encoded(COUNT), encoded(6, seed=1), tmp_path / "run", checkpoint_minutes=0)
    assert clock[0] >= 3600.0 * done.step
    assert all(row["seconds"] < 3600.0 for row in done.history)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_run_after_its_step_is_saved(name: str, checkpoint: Path, tmp_path: Path) -> None:
    if (number := getattr(signal, name, None)) is None:
        pytest.skip(f"this system has no {name}")
    model = apply(load_pretrained(checkpoint), Head())
    with pytest.raises(Interrupted, match="interrupted in step 2; continue with") as caught, interrupted_at(2, number):
        run(model, encoded(COUNT), encoded(6, seed=1), tmp_path / "run")
    assert caught.value.signal_number == number and last_step(tmp_path / "run") == 1


def test_signals_that_come_twice_save_as_well_and_a_second_interrupt_ends_at_once() -> None:
    """torchrun, a closed terminal and a process manager send a signal again, or another one, while a step is saved."""
    before = signal.getsignal(signal.SIGTERM)  # Ray's, where its tests ran before in this process
    for numbers in itertools.product((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), (signal.SIGTERM, signal.SIGHUP)):
        with collect_signals() as received:
            for number in numbers:
                signal.raise_signal(number)
        assert received == [*numbers]
    with pytest.raises(KeyboardInterrupt), collect_signals():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_loss_that_is_not_finite_stops_the_step_and_keeps_nothing_of_it(checkpoint: Path, tmp_path: Path) -> None:
    model = apply(load_pretrained(checkpoint), Full())
    with pytest.raises(MinipeftError, match=r"step 2: the loss is (nan|inf).*Lower --lr .*no epoch was finished"):
        run(model, encoded(COUNT), encoded(6, seed=1), tmp_path / "run", lr=1e36, warmup_steps=0)
    kept = [path for path in (tmp_path / "run").rglob("*.*") if path.parent.name != "tensorboard"]  # the first step's
    assert not kept


def test_a_second_call_in_the_same_folder_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    """Of a finished run nothing trains, the history is there, and the weights are the last epoch's."""
    train, validation = encoded(COUNT), encoded(6, seed=1)
    model = apply(load_pretrained(checkpoint), Full())
    done = run(model, train, validation, tmp_path / "run")
    again = apply(load_pretrained(checkpoint), Full())
    assert run(again, train, validation, tmp_path / "run") == done
    for (name, one), (_, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name
