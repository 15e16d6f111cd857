"""BitFit trains every bias of the encoder; those of the keys cannot matter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import largest, ragged, reference_model

from minipeft import BitFit, MinipeftError, SequenceClassifier, apply, load_adapter, load_pretrained, pack, save_adapter

LENGTHS = (7, 1, 40, 3, 129)


@pytest.fixture(params=["roberta", "bert"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> SequenceClassifier:
    reference_model(request.param).save_pretrained(tmp_path)
    return apply(load_pretrained(tmp_path), BitFit()).eval()


def test_it_trains_exactly_the_encoders_biases_and_the_head(model: SequenceClassifier) -> None:
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {
        name for name, _ in model.named_parameters() if name.startswith("head.") or name.endswith(".bias")
    }
    in_encoder = {name for name in trained if name.startswith("encoder.")}
    assert len(in_encoder) == 1 + 8 * len(model.encoder.layers)  # six linear layers and two LayerNorms a layer
    assert all(dict(model.named_parameters())[name].ndim == 1 for name in in_encoder)


@pytest.mark.parametrize("targets", [("query", "intermediate"), ("output",), ("ffn_output", "key")], ids=str)
def test_of_named_layers_the_biases_train_alone(targets: tuple[str, ...], checkpoint: Path) -> None:
    model = apply(load_pretrained(checkpoint), BitFit(targets=targets))
    trained = {name for name, parameter in model.encoder.named_parameters() if parameter.requires_grad}
    assert trained == {f"layers.{layer}.{target}.bias" for layer in range(3) for target in targets}


def test_targets_are_checked_and_print_as_the_constructor() -> None:
    assert repr(BitFit()) == "BitFit()" and BitFit() == BitFit(targets=None)
    assert eval(repr(BitFit(targets=("query", "intermediate")))) == BitFit(targets=("query", "intermediate.dense"))
    with pytest.raises(MinipeftError, match="unknown target 'LayerNorm'"):
        BitFit(targets=("LayerNorm",))
    with pytest.raises(MinipeftError, match="no targets"):
        BitFit(targets=())


def test_a_subset_round_trips_and_a_file_without_targets_has_all_biases(checkpoint: Path, tmp_path: Path) -> None:
    for method in (BitFit(targets=("query", "intermediate")), BitFit()):
        model = apply(load_pretrained(checkpoint), method).eval()
        with torch.no_grad():
            for parameter in model.encoder.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
        save_adapter(model, tmp_path)
        if method == BitFit():  # as it was written before there were targets
            path = tmp_path / "adapter_config.json"
            content = json.loads(path.read_text())
            del content["targets"]
            path.write_text(json.dumps(content))
        again = load_adapter(load_pretrained(checkpoint), tmp_path)
        batch = pack(ragged(LENGTHS), config=model.config)
        assert again.method == method and torch.equal(again(batch), model(batch))


def test_training_moves_nothing_else(model: SequenceClassifier) -> None:
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    batch = pack(ragged(LENGTHS), config=model.config)
    F.cross_entropy(model(batch), torch.tensor([0, 1, 0, 1, 1])).backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        if ".key." not in name:
            assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    assert torch.equal(model.encoder.layers[0].key.weight, before["encoder.layers.0.key.weight"])


def test_the_gradient_of_key_biases_is_rounding_noise(model: SequenceClassifier) -> None:
    F.cross_entropy(model(pack(ragged(LENGTHS), config=model.config)), torch.tensor([0, 1, 0, 1, 1])).backward()
    for layer in model.encoder.layers:
        key, query = layer.key.bias.grad, layer.query.bias.grad
        assert float(query.abs().max()) > 1e-4
        assert float(key.abs().max()) < 1e-4 * float(query.abs().max())


@torch.no_grad()
def test_shifting_key_biases_changes_no_logits_and_shifting_query_biases_does(model: SequenceClassifier) -> None:
    batch = pack(ragged(LENGTHS), config=model.config)
    before = model(batch)
    for layer in model.encoder.layers:
        layer.key.bias.add_(torch.linspace(-2, 2, len(layer.key.bias)))
    assert largest(model(batch), before) < 1e-5
    for layer in model.encoder.layers:
        layer.query.bias.add_(torch.linspace(-2, 2, len(layer.query.bias)))
    assert largest(model(batch), before) > 1e-2
