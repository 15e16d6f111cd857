"""(IA)³: the layer's formula, peft's own numbers in all its choices, and merging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import forget_details, largest, padded, ragged
from peft_agreement import LENGTHS, check_logits_and_gradients, check_opens_in_peft, check_training, logits, moved, pair
from safetensors.torch import load_file, save_file

from minipeft import (
    IA3,
    MinipeftError,
    apply,
    export,
    load_adapter,
    load_pretrained,
    merge,
    pack,
    save_adapter,
    unmerge,
)
from minipeft.methods.ia3 import IA3Linear
from minipeft.model.families import LINEAR_NAMES
from minipeft.model.layers import Linear
from minipeft.training.optimization.optimizer import parameter_groups

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
METHODS = [
    IA3(),
    IA3(targets=LINEAR_NAMES),
    IA3(targets=("output", "value")),
    IA3(targets=("query", "intermediate", "ffn_output"), feedforward=("intermediate",)),
]
# peft's default, and other choices of what is scaled.
THEIRS: list[dict[str, Any]] = [
    {},  # key, value, and "output.dense", which is attention's output too
    {"target_modules": ["key", "value", "intermediate.dense"], "feedforward_modules": ["intermediate.dense"]},
    {"target_modules": ["query", "output.dense"], "feedforward_modules": []},
    {
        "target_modules": r".*\.layer\.\d+\.(attention\.self\.key|output\.dense)",
        "feedforward_modules": r".*\d\.output\.dense",
    },
    {"target_modules": ["key", "output.dense"], "exclude_modules": ["attention.output.dense"]},
]


def test_the_layer_is_its_formula_with_the_output_or_the_input_scaled() -> None:
    torch.manual_seed(0)
    frozen, x = Linear(7, 5), torch.randn(11, 7)
    for scales_input, size in ((False, 5), (True, 7)):
        layer = IA3Linear(frozen, scales_input)
        assert layer.ia3_l.numel() == size and torch.equal(layer(x), frozen(x))
        scale = torch.nn.init.normal_(layer.ia3_l).detach().flatten()
        inputs, outputs = (scale, torch.ones(5)) if scales_input else (torch.ones(7), scale)
        expected = torch.diag(outputs) @ (frozen.weight @ torch.diag(inputs) @ x.T + frozen.bias[:, None])
        assert largest(layer(x), expected.T) < 1e-5


def test_vectors_do_not_decay_because_they_start_at_one(checkpoint: Path) -> None:
    model = apply(load_pretrained(checkpoint), IA3())
    decays = {id(p) for group in parameter_groups(model, 0.1) if group["weight_decay"] for p in group["params"]}
    assert decays == {id(p) for p in (model.head.dense.weight, model.head.out_proj.weight)}


def test_feedforward_counts_among_the_targets_alone() -> None:
    assert IA3().feedforward == ("ffn_output",)
    assert IA3(targets=("output.dense", "attention.output.dense")).feedforward == ("ffn_output", "output")
    assert IA3(targets=("key",), feedforward=()).feedforward == ()
    with pytest.raises(MinipeftError, match="unknown target 'dense'"):
        IA3(feedforward=("dense",))


# --------------------------------------------------------------------------------------------------------- with peft


@pytest.mark.parametrize("fields", THEIRS, ids=range(len(THEIRS)))
@pytest.mark.parametrize("model_type", ["roberta", "bert"])
def test_an_adapter_that_peft_saved_has_its_logits_and_gradients(
    model_type: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    from peft import IA3Config

    check_logits_and_gradients(*pair(tmp_path, lambda **common: IA3Config(**common, **fields), model_type))


def test_training_agrees_with_peft(tmp_path: Path) -> None:
    from peft import IA3Config

    wrapped, model = pair(tmp_path, IA3Config)
    assert model.method == IA3(targets=("key", "value", "output", "ffn_output"))
    check_training(wrapped, model, tmp_path)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("model_type", ["roberta", "bert"])
def test_a_saved_adapter_opens_in_peft_with_the_same_logits(method: IA3, model_type: str, tmp_path: Path) -> None:
    model = check_opens_in_peft(method, model_type, tmp_path)
    again = load_adapter(load_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model)) and set(again.method.feedforward) == set(method.feedforward)


# ----------------------------------------------------------------------------------------------------------- merging


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_merging_keeps_the_logits_and_unmerging_gives_the_weights_back(method: IA3, checkpoint: Path) -> None:
    model = moved(checkpoint, method)
    before, weights = logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert 0 < largest(logits(merge(model)), before) < 1e-5
    unmerge(model)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_an_export_loads_in_transformers_with_the_same_logits(checkpoint: Path, tmp_path: Path) -> None:
    from transformers import RobertaForSequenceClassification

    model = moved(checkpoint, IA3(targets=LINEAR_NAMES))
    export(model, tmp_path / "out")
    theirs = RobertaForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert largest(logits(model), theirs(**padded(ragged(LENGTHS))).logits) < 1e-5


# ------------------------------------------------------------------------------------------------ files that do not fit


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": ["layer.1.attention.self.key", "value"]}, "names key in some layers, but not in layer 0"),
        ({"feedforward_modules": ["1.output.dense"]}, "feedforward_modules names ffn_output in some layers"),
        ({"feedforward_modules": "(("}, "feedforward_modules"),
        ({"feedforward_modules": None}, "feedforward_modules None is neither"),
        ({"feedforward_modules": []}, r"ia3_l has shape \(1, 80\).*\(48, 1\)"),
        ({"target_modules": ["key", "value"]}, "nothing uses tensor"),
        ({"target_modules": ["key", "value", "query", "output.dense"]}, "query.ia3_l is missing"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"a_later_field": 3}, "a_later_field"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path) -> None:
    save_adapter(apply(load_pretrained(checkpoint), IA3()), tmp_path)
    forget_details(tmp_path)
    content = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(content | fields))
    with pytest.raises(MinipeftError, match=message) as caught:
        load_adapter(load_pretrained(checkpoint), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_vector_is_named(checkpoint: Path, tmp_path: Path) -> None:
    save_adapter(apply(load_pretrained(checkpoint), IA3()), tmp_path)
    name = "base_model.model.roberta.encoder.layer.2.attention.self.key.ia3_l"
    state = load_file(tmp_path / WEIGHTS)
    del state[name]
    save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(MinipeftError, match=f"{name} is missing"):
        load_adapter(load_pretrained(checkpoint), tmp_path)


def test_the_vectors_are_float32_on_bfloat16_weights(checkpoint: Path) -> None:
    model = moved(checkpoint, IA3(targets=LINEAR_NAMES), dtype=torch.bfloat16)
    result = model(pack(ragged(LENGTHS), config=model.config))
    result.sum().backward()
    assert result.dtype == torch.float32
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == (parameter.dtype == torch.float32), name
