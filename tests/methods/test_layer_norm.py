"""LayerNorm tuning: the trainable parameters, and peft's own numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import forget_details, largest, padded, ragged
from peft_agreement import LENGTHS, check_logits_and_gradients, check_opens_in_peft, check_training, logits, moved, pair

from minipeft import (
    LayerNormTuning,
    MinipeftError,
    apply,
    export,
    load_adapter,
    load_pretrained,
    merge,
    save_adapter,
)

# peft's target_modules and what they are to us.
TARGETS: list[tuple[Any, tuple[str, ...]]] = [
    (["LayerNorm"], ("embeddings", "attention", "output")),
    (["output.LayerNorm"], ("attention", "output")),
    (["attention.output.LayerNorm", "embeddings.LayerNorm"], ("embeddings", "attention")),
    (r".*\.\d+\.output\.LayerNorm", ("output",)),
]


def config(**fields: Any) -> Any:
    """A function that makes peft's config with these fields and the common ones."""
    from peft import LNTuningConfig

    return lambda **common: LNTuningConfig(**common, **fields)


@pytest.mark.parametrize("layer_norms", [names for _, names in TARGETS], ids=str)
def test_the_named_layer_norms_train_and_nothing_else_of_the_encoder(
    layer_norms: tuple[str, ...], checkpoint: Path
) -> None:
    model = apply(load_pretrained(checkpoint), LayerNormTuning(layer_norms))
    modules = {"embeddings": ["layer_norm"]} | {
        name: [f"layers.{i}.{name}_layer_norm" for i in range(3)] for name in ("attention", "output")
    }
    expected = {f"{m}.{leaf}" for name in layer_norms for m in modules[name] for leaf in ("weight", "bias")}
    assert {name for name, p in model.encoder.named_parameters() if p.requires_grad} == expected


def test_names_are_checked() -> None:
    assert LayerNormTuning(("output", "attention")) == LayerNormTuning(layer_norms=("attention", "output"))
    with pytest.raises(MinipeftError, match="unknown LayerNorm 'query'; one of embeddings, attention, output"):
        LayerNormTuning(("query",))
    for nothing in ((), None, 3):
        with pytest.raises(MinipeftError, match="names no LayerNorm; name some of"):
            LayerNormTuning(nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize(("targets", "layer_norms"), TARGETS, ids=str)
@pytest.mark.parametrize("model_type", ["roberta", "bert"])
def test_an_adapter_that_peft_saved_has_its_logits_and_gradients(
    model_type: str, targets: Any, layer_norms: tuple[str, ...], tmp_path: Path
) -> None:
    wrapped, model = pair(tmp_path, config(target_modules=targets), model_type)
    assert model.method == LayerNormTuning(layer_norms)
    check_logits_and_gradients(wrapped, model)


def test_training_agrees_with_peft(tmp_path: Path) -> None:
    check_training(*pair(tmp_path, config(target_modules=["LayerNorm"])), tmp_path)


@pytest.mark.parametrize("layer_norms", [names for _, names in TARGETS], ids=str)
@pytest.mark.parametrize("model_type", ["roberta", "bert"])
def test_a_saved_adapter_opens_in_peft_and_here_with_the_same_logits(
    layer_norms: tuple[str, ...], model_type: str, tmp_path: Path
) -> None:
    model = check_opens_in_peft(LayerNormTuning(layer_norms), model_type, tmp_path)
    again = load_adapter(load_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model)) and again.method == model.method


def test_merging_changes_nothing_and_an_export_loads_in_transformers(checkpoint: Path, tmp_path: Path) -> None:
    from transformers import RobertaForSequenceClassification

    model = moved(checkpoint, LayerNormTuning())
    before = logits(model)
    assert torch.equal(logits(merge(model)), before)
    export(model, tmp_path / "out")
    theirs = RobertaForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert largest(before, theirs(**padded(ragged(LENGTHS))).logits) < 1e-5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": ["layer.1.output.LayerNorm"]}, "names output in some layers, but not in layer 0"),
        ({"target_modules": ["LayerNorm", "query"]}, "'query', which is not a LayerNorm"),
        ({"target_modules": ["query"]}, "names no LayerNorm"),
        ({"target_modules": ["output.LayerNorm"]}, r"nothing uses tensor \S*embeddings"),
        ({"target_modules": None}, "target_modules None"),
        ({"a_later_field": 3}, "a_later_field"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path) -> None:
    save_adapter(apply(load_pretrained(checkpoint), LayerNormTuning()), tmp_path)
    path = tmp_path / "adapter_config.json"
    forget_details(path.parent)
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(MinipeftError, match=message) as caught:
        load_adapter(load_pretrained(checkpoint), tmp_path)
    assert "\n" not in str(caught.value)
