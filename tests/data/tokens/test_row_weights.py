"""Weights of rows: integers are repeated rows; which row a weight belongs to; errors; and resumed runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import reference_model, refused
from small_runs import encoded, rows, run_loop, without_times

from minipeft import Full, MinipeftError, apply, load_pretrained, train
from minipeft.data.tables.memory import read_memory
from minipeft.data.tasks.custom import inspect_custom_data
from minipeft.data.tasks.splits import read_split
from minipeft.data.tasks.task import Split, get_task
from minipeft.data.tokens.examples import Encoded
from minipeft.data.tokens.long_texts import Windows
from minipeft.data.tokens.row_weights import add_weights
from minipeft.training import loop
from minipeft.training.optimization.loss import LossSettings

WEIGHTS = [2, 0, 1, 3, 1, 2]


@pytest.fixture(scope="module")
def without_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    reference_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).save_pretrained(folder)
    return folder


def repeat(examples: Encoded, counts: list[int]) -> Encoded:
    """Return each example so many times."""
    indices = np.repeat(np.arange(len(counts)), counts)
    split = Split(examples.split.task, [], None, [examples.split.labels[index] for index in indices.tolist()])
    windows = None if examples.windows is None else examples.windows.subset(indices)
    return Encoded(split, examples.sequences.take(examples.sequences_of(indices.tolist())), windows)


@pytest.mark.parametrize("class_weights", [{}, {"positive": 3.0}], ids=["plain", "class weights"])
@pytest.mark.parametrize("windows", [False, True], ids=["texts", "windows"])
def test_integer_weights_are_repeated_rows(
    windows: bool, class_weights: dict[str, float], without_dropout: Path, tmp_path: Path
) -> None:
    """One step over all examples, in one batch and in several: losses within 1e-6, gradients to float32's precision."""
    counts = np.array([2, 1, 3, 1, 1, 2]) if windows else np.ones(6, dtype=np.int64)
    sequences = encoded(counts.sum())
    labels = Split(get_task("sst2"), [], None, [0, 1, 1, 0, 1, 0])
    plain = Encoded(labels, sequences.sequences, Windows("mean", counts) if windows else None)
    weighted = replace(plain, weights=np.array(WEIGHTS) / 3)
    loss = LossSettings(class_weights).make_loss(labels.labels, labels.task.problem, "cpu")
    found: list[list[torch.Tensor]] = []

    def clip(parameters: list[torch.Tensor], *others: Any) -> torch.Tensor:
        found.append([parameter.grad.clone() for parameter in parameters if parameter.grad is not None])
        return torch.zeros(())

    losses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "clip_grad_norm_", clip)
        for number, (examples, tokens) in enumerate(
            [(repeat(plain, WEIGHTS), 10_000), (weighted, 10_000), (weighted, 1), (plain, 10_000)]
        ):
            model = apply(load_pretrained(without_dropout), Full())
            settings = {"epochs": 1, "sequences_per_step": 64, "max_tokens": tokens, "loss": loss}
            history = run_loop(model, examples, encoded(2), tmp_path / str(number), **settings).history
            losses.append(history[0]["train_loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-6) and losses[2] == pytest.approx(losses[0], abs=1e-6)
    assert abs(losses[3] - losses[0]) > 1e-3  # the weights matter
    largest = max(float(gradient.abs().max()) for gradient in found[0])
    for gradients in found[1:3]:
        for ours, expected in zip(gradients, found[0], strict=True):
            assert (ours - expected).abs().max() < 2e-6 * max(1.0, largest)


def test_equal_weights_change_nothing_and_steps_of_weight_0_have_the_loss_0(
    without_dropout: Path, tmp_path: Path
) -> None:
    examples, histories = encoded(12), []
    one = np.zeros(12)
    one[5] = 1.0
    for number, weights in enumerate((None, np.full(12, 0.3), one)):
        model = apply(load_pretrained(without_dropout), Full())
        weighted = replace(examples, weights=weights)
        settings = {"epochs": 1, "sequences_per_step": 2, "lr": 0.0}
        histories.append(run_loop(model, weighted, examples, tmp_path / str(number), **settings).history[0])
    assert histories[1]["train_loss"] == pytest.approx(histories[0]["train_loss"], abs=1e-6)
    alone = examples.subset(np.arange(12) == 5)
    model = apply(load_pretrained(without_dropout), Full())
    expected = run_loop(model, alone, examples, tmp_path / "alone", epochs=1, lr=0.0).history[0]
    assert histories[2]["train_loss"] == pytest.approx(expected["train_loss"], abs=1e-6)
    assert histories[2]["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-6)  # without weights


def table(count: int = 40) -> dict[str, list[Any]]:
    numbers = range(count)
    labels = ["no" if n % 3 else "yes" for n in numbers]
    return {"text": [f"text {n}" for n in numbers], "label": labels, "w": [float(n) for n in numbers]}


@pytest.mark.parametrize("limit", [None, 7])
def test_each_training_row_has_its_own_weight(limit: int | None) -> None:
    """Rows that are drawn for validation are left out."""
    columns = dict.fromkeys(("text_column", "pair_column", "label_column", "validation"))
    custom = inspect_custom_data("auto", read_memory(table()), label_type="classes", weight_column="w", **columns)
    split = read_split(custom.task, "train", custom.source, limit)
    examples = Encoded(split, encoded(len(split)).sequences)
    weights = add_weights(examples, "w", limit).weights
    expected = np.array([float(text.split()[1]) for text in split.texts])
    assert weights is not None and len(weights) == (limit or 36) and custom.unread_columns == ()
    np.testing.assert_allclose(weights, expected / expected.max())
    mask = np.arange(len(split)) % 2 == 0
    part = add_weights(examples, "w", limit).subset(mask).weights
    assert part is not None and part.tolist() == weights[mask].tolist()


def test_a_run_resumes_with_the_same_weights_only(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"model": str(tiny_checkpoint), "epochs": 1, "device": "cpu", "method": "head"}
    settings |= {"weight_column": "w", "report_to": "none", "lr_schedule": "constant", "warmup_steps": 0}
    settings |= {"output": str(tmp_path / "run"), "holdout": 0.2}
    train(data=table(), **settings)
    assert "loss    rows weighted by w" in capsys.readouterr().err
    other = table() | {"w": [float(n + 1) for n in range(40)]}
    with pytest.raises(MinipeftError, match="the run has other training examples"):
        train(data=other, **settings | {"epochs": 2}, resume=True)
    with pytest.raises(MinipeftError, match="the run has weight_column 'w', not 'v'"):
        train(data=table() | {"v": table()["w"]}, **settings | {"weight_column": "v"}, resume=True)
    assert len(rows(tmp_path / "run")) == 1
    train(data=table(), **settings | {"epochs": 2}, resume=True)
    whole = train(data=table(), **settings | {"epochs": 2, "output": str(tmp_path / "whole")})
    assert without_times(rows(tmp_path / "run")) == without_times(rows(whole.output))


@pytest.mark.parametrize(
    ("flags", "weight", "message"),
    [
        (["--weight-column", "v"], "1", "no column 'v' (there are text, label, w); --weight-column names another"),
        (["--weight-column", "w"], "-1", "own.csv, line 9: w is '-1', not a finite number from 0 on. Correct it."),
        (["--weight-column", "w"], "nan", "own.csv, line 9: w is 'nan', not a finite"),
        (["--weight-column", "w"], "", "own.csv, line 9: w is None, not a finite"),
        (["--weight-column", "w"], "0", "own.csv: the w of every training row is 0"),
        (["--weight-column", "w", "--label-type", "tokens"], "1", "--weight-column 'w' is not for --label-type tokens"),
        (["--weight-column", "w", "--task", "rte"], "1", "is a file, but --task rte reads GLUE's columns"),
    ],
)
def test_weights_that_cannot_be_are_refused_in_one_line(
    flags: list[str], weight: str, message: str, tiny_checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    lines = [f"text {n},{'no' if n % 3 else 'yes'},{weight if n == 7 else 0}" for n in range(40)]
    (tmp_path / "own.csv").write_text("\n".join(["text,label,w", *lines]))
    (tmp_path / "dev.csv").write_text("text,label\na text,no\nanother text,yes\n")
    files = ["--data", tmp_path / "own.csv", "--validation", tmp_path / "dev.csv", "--model", tiny_checkpoint]
    arguments = ["train", *files, "--device", "cpu", "--output", tmp_path / "run", *flags]
    assert message in refused(arguments, tmp_path / "run", capsys)
