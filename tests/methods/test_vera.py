"""VeRA: the layer's formula, projections that live once and equal peft's, peft's numbers, and merging."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import forget_details, largest, padded, ragged, reference_model
from peft_agreement import LENGTHS, check_logits_and_gradients, check_opens_in_peft, check_training, logits, moved, pair
from safetensors.torch import load_file, save_file

from minipeft import (
    MinipeftError,
    VeRA,
    apply,
    count_parameters,
    export,
    load_adapter,
    load_pretrained,
    merge,
    pack,
    save_adapter,
    unmerge,
)
from minipeft.methods.lora_variants.vera import Projections, VeRALinear
from minipeft.model.families import LINEAR_NAMES
from minipeft.model.layers import Linear

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
METHODS = [VeRA(rank=6), VeRA(rank=5, seed=7, targets=LINEAR_NAMES), VeRA(rank=70, targets=("output", "ffn_output"))]
METHODS += [VeRA(rank=6, seed=3, dropout=0.1, save_projection=False, targets=("intermediate", "key"))]


def config(**fields: Any) -> Any:
    """A function that makes peft's config with these fields and the common ones."""
    from peft import VeraConfig

    return lambda **common: VeraConfig(**common, **fields)


# -------------------------------------------------------------------------------------------------------- the layer


def test_the_layer_is_its_formula_on_its_slice_of_the_projections() -> None:
    torch.manual_seed(0)
    frozen, x, method = Linear(7, 5), torch.randn(11, 7), VeRA(rank=3, d_initial=0.5)
    projections = Projections(9, 8, method, torch.device("cpu"))
    layer = VeRALinear(frozen, projections, method)
    assert torch.equal(layer(x), frozen(x)) and layer.vera_lambda_d.tolist() == [0.5] * 3
    torch.nn.init.normal_(layer.vera_lambda_d), torch.nn.init.normal_(layer.vera_lambda_b)
    a, b = projections.vera_A[:, :7], projections.vera_B[:5, :]
    update = torch.diag(layer.vera_lambda_b) @ b @ torch.diag(layer.vera_lambda_d) @ a
    assert largest(layer(x), x @ (frozen.weight + update).T + frozen.bias) < 1e-5
    assert sorted(name for name, _ in layer.named_parameters()) == ["bias", "vera_lambda_b", "vera_lambda_d", "weight"]


def test_dropout_falls_on_the_input_of_a_alone_in_training_alone() -> None:
    torch.manual_seed(0)
    method = VeRA(rank=1, d_initial=1.0, dropout=0.2)
    frozen, projections = Linear(50, 1), Projections(50, 1, method, torch.device("cpu"))
    layer = VeRALinear(frozen, projections, method)
    torch.nn.init.ones_(layer.vera_lambda_b), projections.vera_A.fill_(1), projections.vera_B.fill_(2)
    x = torch.ones(20_000, 50)
    update = (layer(x) - frozen(x)).detach()  # 2 · the sum of 50 inputs, each 0 or 1 / 0.8
    assert abs(float(update.mean()) - 100) < 0.5
    assert abs(float(update.var()) / (4 * 50 * 0.2 / 0.8) - 1) < 0.1
    assert torch.allclose(layer.eval()(x) - frozen(x), torch.tensor(100.0))


def test_the_projections_live_once_and_every_layer_sees_a_change_of_them(checkpoint: Path) -> None:
    model = moved(checkpoint, VeRA(rank=6, targets=LINEAR_NAMES))
    assert {name: tuple(buffer.shape) for name, buffer in model.named_buffers()} == {
        "encoder.vera.vera_A": (6, 80),
        "encoder.vera.vera_B": (80, 6),
    }
    before = logits(model)
    twin = copy.deepcopy(model)
    twin.encoder.vera.vera_B.zero_()
    assert torch.equal(logits(twin), logits(load_pretrained(checkpoint)))  # the copy's layers hold the copy's B …
    assert torch.equal(logits(model), before)  # … and the model's its own
    model.double().float()
    assert largest(logits(model), before) == 0
    model.to("meta")
    assert {layer._slices()[0].device.type for layer in model.modules() if isinstance(layer, VeRALinear)} == {"meta"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank 0"),
        ({"d_initial": math.nan}, "d_initial nan"),
        ({"dropout": 1}, "dropout 1"),
        ({"targets": ("dense",)}, "unknown target 'dense'"),
        ({"seed": -1}, "seed -1 is not a whole number of 0 or more"),
        ({"seed": 2**64}, "seed"),
        ({"save_projection": "no"}, "save_projection 'no'"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MinipeftError, match=message):
        VeRA(**settings)


# --------------------------------------------------------------------------------------------------------- with peft


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 6},
        {"r": 5, "projection_prng_key": 11, "target_modules": ["query", "key", "output.dense", "intermediate.dense"]},
        {"r": 3, "target_modules": r".*\.layer\.\d+\.(intermediate\.dense|attention\.self\.value)", "d_initial": 0.5},
        {"r": 6, "projection_prng_key": 5, "target_modules": ["intermediate.dense"], "save_projection": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("model_type", ["roberta", "bert"])
def test_an_adapter_that_peft_saved_has_its_logits_and_gradients(
    model_type: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    wrapped, model = pair(tmp_path, config(**fields), model_type)
    check_logits_and_gradients(wrapped, model)
    assert ("base_model.vera_A" in load_file(tmp_path / "theirs" / WEIGHTS)) == model.method.save_projection


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_projections_of_a_seed_are_pefts_to_the_bit(method: VeRA, checkpoint: Path) -> None:
    from peft import get_peft_model

    ours = apply(load_pretrained(checkpoint), method).encoder.vera
    names = {"output": "attention.output.dense", "intermediate": "intermediate.dense", "ffn_output": r"\d.output.dense"}
    targets = rf".*\.layer\..*({'|'.join(names.get(target, target) for target in method.targets)})"
    fields = {"r": method.rank, "projection_prng_key": method.seed, "target_modules": targets}
    theirs = get_peft_model(reference_model(), config(**fields)()).base_model
    assert torch.equal(ours.vera_A, theirs.vera_A["default"]) and torch.equal(ours.vera_B, theirs.vera_B["default"])


def test_training_agrees_with_peft(tmp_path: Path) -> None:
    check_training(*pair(tmp_path, config(r=6, target_modules=["query", "value", "intermediate.dense"])), tmp_path)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("model_type", ["roberta", "bert"])
def test_a_saved_adapter_opens_in_peft_and_here_with_the_same_logits(
    method: VeRA, model_type: str, tmp_path: Path
) -> None:
    model = check_opens_in_peft(method, model_type, tmp_path)
    again = load_adapter(load_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model)) and again.method.seed == method.seed
    saved = sum(tensor.numel() for tensor in load_file(tmp_path / "adapter" / WEIGHTS).values())
    count, in_projections = count_parameters(model), sum(buffer.numel() for buffer in model.buffers())
    assert saved == count.method + count.head + (in_projections if method.save_projection else 0)


def test_projections_in_the_file_count_more_than_its_seed(checkpoint: Path, tmp_path: Path) -> None:
    model = moved(checkpoint, VeRA(rank=6))
    torch.nn.init.normal_(model.encoder.vera.vera_A)
    save_adapter(model, tmp_path)
    assert torch.equal(logits(load_adapter(load_pretrained(checkpoint), tmp_path)), logits(model))


# ----------------------------------------------------------------------------------------------------------- merging


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_merging_keeps_the_logits_and_unmerging_gives_the_weights_back(method: VeRA, checkpoint: Path) -> None:
    model = moved(checkpoint, method)
    before, weights = logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert 0 < largest(logits(merge(model)), before) < 1e-4
    unmerge(model)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_an_export_loads_in_transformers_with_the_same_logits(checkpoint: Path, tmp_path: Path) -> None:
    from transformers import RobertaForSequenceClassification

    model = moved(checkpoint, VeRA(rank=6, targets=LINEAR_NAMES))
    export(model, tmp_path / "out")
    theirs = RobertaForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert largest(logits(model), theirs(**padded(ragged(LENGTHS))).logits) < 1e-5


# ----------------------------------------------------------------------------------------------- files that do not fit


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers_to_transform": [0]}, "names query in some layers, but not in layer 1"),
        ({"bias": "some"}, "unknown bias 'some'"),
        ({"r": 7}, r"vera_lambda_d has shape \(6,\)|vera_A has shape"),
        ({"save_projection": False}, "nothing uses tensor base_model.vera_A"),
        ({"target_modules": ["query", "intermediate.dense"]}, "is missing|has shape"),
        ({"projection_prng_key": "x"}, "seed 'x'"),
        ({"a_later_field": 3}, "a_later_field"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path) -> None:
    save_adapter(apply(load_pretrained(checkpoint), VeRA(rank=6)), tmp_path)
    forget_details(tmp_path)
    content = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(content | fields))
    with pytest.raises(MinipeftError, match=message) as caught:
        load_adapter(load_pretrained(checkpoint), tmp_path)
    assert "\n" not in str(caught.value)


def test_projections_that_a_file_lacks_though_it_promises_them_are_named(checkpoint: Path, tmp_path: Path) -> None:
    save_adapter(apply(load_pretrained(checkpoint), VeRA(rank=6)), tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    del state["base_model.vera_A"]
    save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(MinipeftError, match=r"base_model\.vera_A is missing"):
        load_adapter(load_pretrained(checkpoint), tmp_path)


def test_the_vectors_are_float32_on_bfloat16_weights(checkpoint: Path) -> None:
    model = moved(checkpoint, VeRA(rank=6, targets=LINEAR_NAMES), dtype=torch.bfloat16)
    result = model(pack(ragged(LENGTHS), config=model.config))
    result.sum().backward()
    assert result.dtype == torch.float32
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == (parameter.dtype == torch.float32), name
