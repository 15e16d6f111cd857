"""Bottleneck adapters: their equations, put by hand into transformers' padded model, forward and backward."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import largest, padded, ragged, reference_model
from peft_agreement import LENGTHS, logits
from safetensors.torch import load_file, save_file
from torch import Tensor

from minipeft import (
    EncoderConfig,
    Houlsby,
    MinipeftError,
    Pfeiffer,
    SequenceClassifier,
    apply,
    count_parameters,
    export,
    load_adapter,
    load_pretrained,
    merge,
    pack,
    save_adapter,
)
from minipeft.methods.bottleneck import ACTIVATIONS, Bottleneck
from minipeft.model.layers import LayerNorm
from minipeft.model.pretrained import tensor_names

SIZE = 5
WEIGHTS = "adapter_model.safetensors"
EVERY = [Houlsby(size=SIZE), Houlsby(size=SIZE, activation="relu"), Pfeiffer(size=SIZE), Pfeiffer(SIZE, "tanh")]


def moved(folder: Path, method: Any, **options: Any) -> SequenceClassifier:
    """A model with the method, whose adapters are far from their start."""
    model = apply(load_pretrained(folder, **options), method)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapter." in name:
                parameter.normal_(std=0.3)
    return model


# ------------------------------------------------------------------------------------------------------ the equations


def into_transformers(reference: Any, model: SequenceClassifier) -> dict[str, Tensor]:
    """Put our adapters' numbers, through the papers' equations, into a transformers model; our name → its copy."""
    tensors = {
        name: parameter.detach().clone().requires_grad_()
        for name, parameter in model.named_parameters()
        if ".adapter." in name
    }
    f = {"gelu": F.gelu, "relu": F.relu, "tanh": torch.tanh}[model.method.activation]

    def update(place: str, x: Tensor) -> Tensor:
        down, down_bias, up, up_bias = (
            tensors[f"encoder.layers.{place}.adapter.{leaf}"]
            for leaf in ("down.weight", "down.bias", "up.weight", "up.bias")
        )
        return f(x @ down.T + down_bias) @ up.T + up_bias

    def houlsby(place: str) -> Callable[..., Tensor]:
        """After the projection, before the residual sum: r + U f(D r)."""
        return lambda module, inputs, r: r + update(place, r)

    def pfeiffer(place: str) -> Callable[..., Tensor]:
        """A = U f(D h) + r with h = LayerNorm(x + r), then LayerNorm(x + A)."""

        def hook(module: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> Tensor:
            inner, x = inputs
            r = module.dense(inner)
            adapted = update(place, module.LayerNorm(x + r)) + r
            return module.LayerNorm(x + adapted)

        return hook

    for number, layer in enumerate(reference.base_model.encoder.layer):
        if isinstance(model.method, Houlsby):
            layer.attention.output.dense.register_forward_hook(houlsby(f"{number}.output"))
            layer.output.dense.register_forward_hook(houlsby(f"{number}.ffn_output"))
        else:
            layer.output.register_forward_hook(pfeiffer(f"{number}.output_layer_norm"))
    return tensors


@pytest.mark.parametrize("model_type", ["roberta", "bert"])
@pytest.mark.parametrize("method", EVERY, ids=str)
def test_logits_and_gradients_are_those_of_the_papers_equations(method: Any, model_type: str, tmp_path: Path) -> None:
    """Logits to 1e-5; gradients to 1e-5 of the largest of each tensor, or of 1."""
    reference = reference_model(model_type)
    reference.save_pretrained(tmp_path)
    before = reference(**padded(ragged(LENGTHS), reference.config.pad_token_id)).logits
    model = moved(tmp_path, method).eval()
    tensors = into_transformers(reference, model)
    ours = model(pack(ragged(LENGTHS), config=model.config))
    theirs = reference(**padded(ragged(LENGTHS), reference.config.pad_token_id)).logits
    assert largest(ours, theirs) < 1e-5
    assert largest(ours, before) > 1e-2  # the adapters count
    for result in (ours, theirs):
        (result * torch.linspace(-1, 2, result.numel()).view_as(result)).sum().backward()
    names, parameters = tensor_names(model, model.config), dict(reference.named_parameters())
    compared = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expected = tensors[name].grad if name in tensors else parameters[names[name]].grad
            assert parameter.grad is not None and expected is not None and expected.any(), name
            assert largest(parameter.grad, expected) < 1e-5 * max(1.0, float(expected.abs().max())), name
            compared += 1
    assert compared == len(tensors) + 4 + (2 * 7 if isinstance(method, Houlsby) else 0)  # 4 in the head; 7 LayerNorms


def test_what_trains_is_the_adapters_and_in_houlsbys_the_layer_norms(checkpoint: Path) -> None:
    def trained(method: Any) -> set[str]:
        model = apply(load_pretrained(checkpoint), method)
        names = {name for name, p in model.encoder.named_parameters() if p.requires_grad}
        return {re.sub(r"layers\.\d\.", "", name) for name in names}

    adapter = {f"adapter.{leaf}" for leaf in ("down.weight", "down.bias", "up.weight", "up.bias")}
    norms = {"layer_norm", "attention_layer_norm", "output_layer_norm"}
    assert trained(Pfeiffer()) == {f"output_layer_norm.{leaf}" for leaf in adapter}
    assert trained(Houlsby()) == {
        *(f"{place}.{leaf}" for place in ("output", "ffn_output") for leaf in adapter),
        *(f"{name}.{leaf}" for name in norms for leaf in ("weight", "bias")),
    }


# ------------------------------------------------------------------------------------------------ the start, the counts


def test_the_weights_start_small_and_cut_at_two_standard_deviations_and_the_biases_at_zero() -> None:
    torch.manual_seed(0)
    adapter = Bottleneck(300, 200, "relu", torch.device("cpu"))
    for linear in (adapter.down, adapter.up):
        assert not linear.bias.any()
        assert 0.0199 < float(linear.weight.detach().abs().max()) <= 0.02
        # a normal variable cut at ±2 has variance 1 − 4 φ(2) / (2 Φ(2) − 1)
        normal = torch.distributions.Normal(0.0, 1.0)
        two = torch.tensor(2.0)
        cut = (1 - 4 * normal.log_prob(two).exp() / (2 * normal.cdf(two) - 1)).sqrt()
        assert abs(float(linear.weight.detach().std() / (0.01 * cut)) - 1) < 0.02


@pytest.mark.parametrize("method", EVERY, ids=str)
def test_training_starts_close_to_the_pretrained_function(method: Any, checkpoint: Path) -> None:
    torch.manual_seed(0)
    model = load_pretrained(checkpoint)
    before = logits(model)
    apply(model, method)
    assert 0 < largest(logits(model), before) < 1e-2
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapter.up." in name:
                parameter.zero_()
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    ("method", "adapters", "norms"),
    [
        (Houlsby(), 12 * 2 * (2 * 64 * 768 + 64 + 768), 25 * 2 * 768),
        (Houlsby(size=8), 12 * 2 * (2 * 8 * 768 + 8 + 768), 25 * 2 * 768),
        (Pfeiffer(), 894_528, 0),  # 12 · (2 · 48 · 768 + 48 + 768)
    ],
)
def test_counts_on_roberta_base(method: Any, adapters: int, norms: int) -> None:
    with torch.device("meta"):
        count = count_parameters(apply(SequenceClassifier(EncoderConfig()), method))
    assert (count.method, count.total) == (adapters + norms, 124_055_040 + 592_130 + adapters)


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("kind", [Houlsby, Pfeiffer])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size 0 is not a whole number of 1 or more"),
        ({"size": 2.5}, r"size 2\.5"),
        ({"size": "16"}, "size '16'"),
        ({"activation": "swish"}, "activation 'swish'; one of gelu, relu, tanh"),
        ({"activation": None}, "activation None"),
    ],
)
def test_bad_settings_are_refused_by_name(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MinipeftError, match=message):
        kind(**settings)
    assert all(kind(activation=name).activation == name for name in ACTIVATIONS)


@pytest.mark.parametrize("method", EVERY, ids=str)
def test_they_are_neither_merged_nor_exported(method: Any, checkpoint: Path, tmp_path: Path) -> None:
    model = apply(load_pretrained(checkpoint), method)
    for act in (lambda: merge(model), lambda: export(model, tmp_path / "out")):
        with pytest.raises(MinipeftError, match=rf"{type(method).__name__}\(size=5.*cannot be merged"):
            act()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", [Houlsby(size=SIZE), Pfeiffer(size=SIZE)], ids=str)
def test_a_file_that_does_not_fit_is_refused_by_name(method: Any, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    save_adapter(moved(checkpoint, method), folder)
    whole = load_file(folder / WEIGHTS)
    name = next(name for name in whole if re.search(r"layer\.1\.output\.\w+\.adapter\.down\.weight$", name))
    for change, message in (
        ({k: v for k, v in whole.items() if k != name}, f"{name} is missing"),
        (whole | {name: torch.zeros(SIZE + 1, 48)}, rf"{name} has shape \(6, 48\)"),
        (whole | {name + "s": torch.zeros(1)}, f"nothing uses tensor {name}s"),
    ):
        save_file(change, folder / WEIGHTS)
        with pytest.raises(MinipeftError, match=message):
            load_adapter(load_pretrained(checkpoint), folder)


def test_bfloat16_weights_leave_the_adapters_in_float32(checkpoint: Path, tmp_path: Path) -> None:
    for method in EVERY:
        model = moved(checkpoint, method, dtype=torch.bfloat16)
        out = model(pack(ragged(LENGTHS), config=model.config))
        out.sum().backward()
        assert out.dtype == torch.float32
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (parameter.grad is not None) == (parameter.dtype == torch.float32), name
        full = moved(checkpoint, method)
        assert largest(logits(model), logits(full)) < 0.2
        save_adapter(model, tmp_path / str(method))
        again = load_adapter(load_pretrained(checkpoint, dtype=torch.bfloat16), tmp_path / str(method))
        assert torch.equal(logits(again), logits(model))


def test_the_replaced_layer_norm_is_still_one(checkpoint: Path) -> None:
    model = apply(load_pretrained(checkpoint), Pfeiffer())
    norm = model.encoder.layers[0].output_layer_norm
    assert isinstance(norm, LayerNorm) and "48" in repr(norm)
