"""Rows that fill a batch up to a size that comes again reach no logit, loss, gradient or metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import largest, ragged, reference_model
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from minipeft import BitFit, Full, LoRA, PrefixTuning, PromptTuning, SequenceClassifier, apply, load_pretrained, pack
from minipeft.data.tasks import Split, get_task
from minipeft.model import roberta
from minipeft.model.roberta import rows_to_fill
from minipeft.training.metrics import Encoded, evaluate, sequence_loss

CPU = torch.device("cpu")
METHODS = [Full(), BitFit(), LoRA(rank=2), PromptTuning(3), PrefixTuning(3)]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    reference_model(num_hidden_layers=2, **NO_DROPOUT).save_pretrained(path)
    return path


def fill(monkeypatch: pytest.MonkeyPatch, *kinds: tuple[str, torch.dtype]) -> None:
    monkeypatch.setattr(roberta, "COMPILED_FOR_EACH_SHAPE", set(kinds))


def results(model: SequenceClassifier, lengths: list[int]) -> dict[str, Tensor]:
    """Logits, loss, hidden states and gradients of a training step."""
    batch = pack(ragged(lengths), [number % 2 for number in range(len(lengths))], config=model.config)
    assert batch.labels is not None
    logits, hidden = model.train()(batch), model.encoder(batch)
    loss = sequence_loss(logits, batch.labels)
    (loss + hidden.sin().sum()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"logits": logits, "hidden": hidden, "loss": loss, **gradients}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12))
@example(lengths=[16])  # nothing to fill
@example(lengths=[1])
@example(lengths=[300, 213, 1])
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_logits_loss_and_gradients_are_those_without(method: Any, folder: Path, lengths: list[int]) -> None:
    model = apply(load_pretrained(folder), method)
    with pytest.MonkeyPatch.context() as monkeypatch:
        fill(monkeypatch)
        without = results(model, lengths)
        fill(monkeypatch, ("cpu", torch.float32))
        filled = results(model, lengths)
    assert filled.keys() == without.keys()
    for name, expected in without.items():
        scale = float(expected.detach().abs().max()) if not name.endswith("key.bias") else 1.0
        tolerance = 1e-5 if name in ("logits", "hidden") else 1e-4 * max(scale, 1.0)
        assert largest(filled[name], expected) < tolerance, name


def test_the_metrics_are_those_without(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [1 + 7 * number % 23 for number in range(40)]
    examples = Encoded(
        Split(get_task("sst2"), [], None, [number % 3 % 2 for number in range(40)]), ragged(lengths), lengths
    )
    model = load_pretrained(folder)
    fill(monkeypatch)
    without = evaluate(model, examples, 100, "cpu")
    fill(monkeypatch, ("cpu", torch.float32))
    filled = evaluate(model, examples, 100, "cpu")
    assert filled == {**without, "eval_loss": pytest.approx(without["eval_loss"], abs=1e-6)}


def test_bfloat16_on_the_cpu_is_filled_and_stays_as_near_to_float32(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [7, 1, 40, 3]
    exact = results(load_pretrained(folder), lengths)["logits"]
    model = load_pretrained(folder, dtype=torch.bfloat16)
    seen = []
    model.encoder.layers[0].register_forward_hook(lambda layer, inputs, output: seen.append(len(output)))
    filled = results(model, lengths)["logits"]
    fill(monkeypatch)
    without = results(model, lengths)["logits"]
    assert set(seen[:2]) == {64} and set(seen[2:]) == {51}
    assert largest(filled, exact) < max(0.02, 1.5 * largest(without, exact))


@given(tokens=st.integers(1, 40_000))
def test_few_sizes_are_left_and_few_rows_are_added(tokens: int) -> None:
    assert rows_to_fill(tokens, CPU, torch.float32) == 0
    size = tokens + (rows := rows_to_fill(tokens, CPU, torch.bfloat16))
    assert size % (64 if tokens >= 512 else 16) == 0
    assert 0 <= rows < (16 if tokens < 512 else 64)
