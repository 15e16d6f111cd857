"""The training loss against torch's and transformers'; its normalization in runs with any batches and processes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import padded, reference_model
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from small_runs import COUNT, encoded, rows, run_loop, small_run
from transformers.trainer_pt_utils import LabelSmoother

from minipeft import Full, MinipeftError, apply, load_pretrained
from minipeft.cli.cli import main_train
from minipeft.data.tasks.task import get_task
from minipeft.problems.multi_label import MultiLabel
from minipeft.problems.single_label import SingleLabel
from minipeft.training.optimization.loss import Loss, LossSettings
from minipeft.training.optimization.schedule import Schedule

TOPICS = MultiLabel(("art", "news", "sport"))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(2, 5), st.floats(0, 0.9), st.booleans())
def test_the_loss_is_torch_s_weighted_smoothed_mean(
    seed: int, count: int, classes: int, smoothing: float, weighted: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    weights = torch.rand(classes, generator=generator) + 0.1 if weighted else None
    expected = torch.nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing)(logits, labels)
    loss = Loss(SingleLabel(), tuple(weights.tolist()) if weights is not None else (), smoothing, weights)
    batch: Any = SimpleNamespace(labels=labels, weights=None)
    assert loss(logits, batch).item() / loss.total_weight(labels.tolist()) == pytest.approx(expected.item(), abs=1e-5)
    if weights is None and smoothing:
        theirs = LabelSmoother(epsilon=smoothing)({"logits": logits}, labels)
        assert expected.item() == pytest.approx(theirs.item(), abs=1e-5)
    doubled: Any = SimpleNamespace(labels=labels, weights=torch.full((count,), 2.0))
    torch.testing.assert_close(loss(logits, doubled), 2 * loss(logits, batch))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.integers(1, 30), st.integers(2, 5), st.booleans())
def test_the_multi_label_loss_is_torch_s_mean(seed: int, count: int, num_labels: int, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, num_labels, generator=generator)
    labels = torch.randint(0, 2, (count, num_labels), generator=generator).float()
    weights = 4 * torch.rand(num_labels, generator=generator) if weighted else None
    expected = torch.nn.BCEWithLogitsLoss(pos_weight=weights)(logits, labels)
    assert TOPICS.losses(logits, labels, weights).mean().item() == pytest.approx(expected.item(), abs=1e-5)
    dummies = torch.full((2, num_labels), torch.nan)
    longer = TOPICS.losses(torch.cat([logits, dummies.nan_to_num(5.0)]), torch.cat([labels, dummies]), weights)
    assert longer.sum().item() / count == pytest.approx(expected.item(), abs=1e-5)


def test_balanced_weights_are_scikit_learn_s() -> None:
    labels = [0] * 7 + [1] * 2 + [2] * 3
    three = SingleLabel(("a", "b", "c"))
    expected = compute_class_weight("balanced", classes=np.arange(3), y=np.array(labels))
    assert LossSettings("balanced").weights(labels, three) == pytest.approx(expected)
    assert LossSettings({"b": 4.0}).weights(labels, three) == (1.0, 4.0, 1.0)
    sets = [(0,), (0, 1), (), (0, 2)]
    assert LossSettings("balanced").weights(sets, TOPICS) == pytest.approx([1 / 3, 3, 3])
    with pytest.raises(MinipeftError, match=r"no training example has the label 'c'\. Give weights by name"):
        LossSettings("balanced").weights([0, 1], three)
    with pytest.raises(MinipeftError, match="all training examples have the label 'art'"):
        LossSettings("balanced").weights([(0, 1, 2), (0,)], TOPICS)


def test_training_with_weights_and_smoothing_is_torch_s_whatever_the_batches(tmp_path: Path) -> None:
    """A plain loop over padded batches with CrossEntropyLoss(weight, label_smoothing); losses within 1e-5."""
    options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    reference = reference_model(**options)
    reference.save_pretrained(tmp_path / "checkpoint")
    train, validation = encoded(COUNT), encoded(6, seed=1)
    loss = LossSettings("balanced", 0.1).make_loss(train.split.labels, get_task("sst2").problem, "cpu")
    assert len(set(loss.class_weights)) == 2
    histories = []
    for max_tokens in (10_000, 64, 1):
        model = apply(load_pretrained(tmp_path / "checkpoint"), Full())
        folder = tmp_path / f"run-{max_tokens}"
        histories.append(run_loop(model, train, validation, folder, loss=loss, epochs=1, max_tokens=max_tokens).history)

    from minipeft.data.batches.sampling import epoch_order

    schedule = Schedule(1, 1e-3, 2, 0.1, 8, 64, 3, "accuracy")
    criterion = torch.nn.CrossEntropyLoss(loss.on_device, label_smoothing=0.1)
    optimizer = torch.optim.AdamW(reference.parameters(), weight_decay=0.0)
    decays = {True: [], False: []}  # type: ignore[var-annotated]
    for name, parameter in reference.named_parameters():
        decays[not name.endswith("bias") and "LayerNorm" not in name].append(parameter)
    optimizer = torch.optim.AdamW([{"params": decays[one], "weight_decay": 0.1 * one} for one in (True, False)])
    order, total, weight = epoch_order(COUNT, 3, 0), 0.0, 0.0
    for step, start in enumerate(range(0, COUNT, 8)):
        chosen = order[start : start + 8]
        labels = torch.tensor([train.split.labels[index] for index in chosen])
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step, 3)
        computed = criterion(reference.train()(**padded([train.sequences[index] for index in chosen])).logits, labels)
        optimizer.zero_grad()
        computed.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()
        weights = sum(loss.class_weights[int(label)] for label in labels)
        total, weight = total + computed.item() * weights, weight + weights
    with torch.no_grad():
        logits = reference.eval()(**padded(validation.sequences)).logits
    plain = torch.nn.functional.cross_entropy(logits, torch.tensor(validation.split.labels)).item()
    for history in histories:
        assert history[0]["train_loss"] == pytest.approx(total / weight, abs=1e-5)
        assert history[0]["eval_loss"] == pytest.approx(plain, abs=1e-4)  # neither weighted nor smoothed


def test_weights_by_name_reach_the_run_and_its_config(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"class_weights": ["entailment=3", "not_entailment=0.5"], "label_smoothing": 0.1, "epochs": 1}
    small_run(tiny_checkpoint, small_data, tmp_path / "run", **options, quiet=False)
    assert "loss    class weights entailment 3, not_entailment 0.5; label smoothing 0.1" in capsys.readouterr().err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["class_weights"] == {"entailment": 3.0, "not_entailment": 0.5} and config["label_smoothing"] == 0.1
    plain = small_run(tiny_checkpoint, small_data, tmp_path / "plain", epochs=1)
    assert rows(tmp_path / "run")[0]["train_loss"] != rows(plain.output)[0]["train_loss"]
    with pytest.raises(MinipeftError, match=r"the run has class_weights .*, not 'balanced'"):
        small_run(tiny_checkpoint, small_data, tmp_path / "run", **options | {"class_weights": "balanced"}, resume=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--class-weights", "spam=5"], "--class-weights: 'spam' is not a class of rte (entailment, not_entailment)"),
        (["--class-weights", "spam"], "--class-weights: 'spam' is not NAME=WEIGHT"),
        (["--class-weights", "entailment=x"], "--class-weights: 'entailment=x' is not NAME=WEIGHT"),
        (["--class-weights", "entailment=0"], "--class-weights entailment 0.0 is not above 0"),
        (["--label-smoothing", "1"], "--label-smoothing 1.0 is not a number from 0 to below 1"),
        (["--label-smoothing", "0.1", "--task", "stsb"], "--label-smoothing 0.1 is for single classes"),
        (["--class-weights", "balanced", "--task", "stsb"], "--class-weights: the labels of stsb are numbers"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(
    flags: list[str], message: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--task", "rte", "--model", str(tiny_checkpoint), "--output", str(tmp_path / "run"), *flags]
    assert main_train(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()
