"""LoRA's refinements and DoRA: against peft forward, backward, over 20 steps and through files both ways."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import largest, padded, ragged, reference_model
from torch import Tensor

from minipeft import (
    DoRA,
    LoRA,
    MinipeftError,
    SequenceClassifier,
    apply,
    load_adapter,
    load_pretrained,
    merge,
    pack,
    save_adapter,
    unmerge,
)
from minipeft.model.families import LINEAR_NAMES
from minipeft.training.optimization.optimizer import adamw, set_learning_rate

LENGTHS = (7, 1, 40, 3, 21)
STEPS, RATE = 20, 5e-3
LAYERS_0_AND_2 = r".*\.layer\.(0\.attention\.self\.query|2\.output\.dense)"
# peft's settings, and ours that mean the same
VARIANTS: dict[str, tuple[dict[str, Any], LoRA]] = {
    "rslora": ({"r": 4, "use_rslora": True}, LoRA(4, 8, rslora=True)),
    "gaussian": ({"init_lora_weights": "gaussian"}, LoRA(8, 8, init="gaussian")),
    "pissa": ({"r": 3, "init_lora_weights": "pissa"}, LoRA(3, 8, init="pissa")),
    "rank-pattern": (
        {
            "rank_pattern": {"layer.1.attention.self.value": 3, "query": 2},
            "alpha_pattern": {r"layer\.2\..*": 5},
        },
        LoRA(8, 8, rank_pattern={"query": 2, "1.value": 3}, alpha_pattern={"2.query": 5, "2.value": 5}),
    ),
    "some-layers": (
        {"target_modules": LAYERS_0_AND_2},
        LoRA(
            8,
            8,
            targets=("query", "ffn_output"),
            rank_pattern={"1.query": 0, "2.query": 0, "0.ffn_output": 0, "1.ffn_output": 0},
        ),
    ),
    "layers-to-transform": (
        {
            "target_modules": ["key", "output.dense"],
            "exclude_modules": ["1.output.dense"],
            "layers_to_transform": [1, 2],
        },
        LoRA(
            8,
            8,
            targets=("key", "output", "ffn_output"),
            rank_pattern={"0.key": 0, "0.output": 0, "0.ffn_output": 0, "1.ffn_output": 0},
        ),
    ),
    "bias-all": ({"bias": "all"}, LoRA(8, 8, bias="all")),
    "bias-lora-only": ({"bias": "lora_only"}, LoRA(8, 8, bias="lora_only")),
    "layer-norms-too": ({"modules_to_save": ["LayerNorm"]}, LoRA(8, 8, modules_to_save=("LayerNorm",))),
    "a-linear-layer-too": (
        {"modules_to_save": ["intermediate.dense"]},
        LoRA(8, 8, modules_to_save=("intermediate.dense",)),
    ),
    "dora": ({"r": 4, "use_dora": True}, DoRA(4, 8)),
    "dora-rslora-all-linear": (
        {
            "use_dora": True,
            "use_rslora": True,
            "target_modules": r".*\.layer\..*(query|key|value|dense)",
        },
        DoRA(8, 8, targets=LINEAR_NAMES, rslora=True),
    ),
}


def with_peft(folder: Path, **settings: Any) -> Any:
    """A model that peft has wrapped, all that trains moved at random, and its base in `folder`/base."""
    from peft import LoraConfig, get_peft_model

    reference = reference_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    reference.save_pretrained(folder / "base")
    wrapped = get_peft_model(reference, LoraConfig(task_type="SEQ_CLS", **settings))
    move(wrapped)
    return wrapped.train()


def move(model: Any) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


def batches(count: int = STEPS) -> list[tuple[list[list[int]], Tensor]]:
    return [(ragged(LENGTHS, seed=step), (torch.arange(len(LENGTHS)) + step) % 2) for step in range(count)]


def our_logits(model: SequenceClassifier, ids: list[list[int]]) -> Tensor:
    logits: Tensor = model(pack(ids, config=model.config))
    return logits


def train(model: Any, logits: Any, optimizer: torch.optim.Optimizer, steps: int = STEPS) -> list[float]:
    losses = []
    for ids, labels in batches(steps):
        loss = F.cross_entropy(logits(ids), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("settings", "method"), VARIANTS.values(), ids=VARIANTS)
def test_what_peft_writes_trains_as_in_peft_and_goes_back(
    settings: dict[str, Any], method: LoRA, tmp_path: Path
) -> None:
    from peft import PeftModel

    wrapped = with_peft(tmp_path, **settings)
    wrapped.save_pretrained(tmp_path / "theirs")
    model = load_adapter(load_pretrained(tmp_path / "base"), tmp_path / "theirs").train()
    assert model.method == method
    ids, labels = batches(1)[0]
    ours, theirs = our_logits(model, ids), wrapped(**padded(ids)).logits
    assert largest(ours, theirs) < 1e-5
    unadapted = our_logits(load_pretrained(tmp_path / "base"), ids)
    assert largest(ours, unadapted) > 1e-3

    F.cross_entropy(ours, labels).backward()
    F.cross_entropy(theirs, labels).backward()
    norms = [
        torch.stack([p.grad.norm() for p in side.parameters() if p.requires_grad and p.grad is not None]).norm()
        for side in (model, wrapped)
    ]
    assert math.isclose(*(float(norm) for norm in norms), rel_tol=1e-4)
    model.zero_grad(), wrapped.zero_grad()

    optimizer = adamw(model, weight_decay=0.0)
    set_learning_rate(optimizer, RATE)
    their_optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], RATE, weight_decay=0.0)
    our_losses = train(model, lambda ids: our_logits(model, ids), optimizer)
    their_losses = train(wrapped, lambda ids: wrapped(**padded(ids)).logits, their_optimizer)
    assert max(abs(a - b) for a, b in zip(our_losses, their_losses, strict=True)) < 1e-4
    assert abs(our_losses[0] - our_losses[-1]) > 1e-2

    save_adapter(model, tmp_path / "ours")
    again = PeftModel.from_pretrained(
        reference_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), tmp_path / "ours"
    ).eval()
    with torch.no_grad():
        assert largest(our_logits(model.eval(), ids), again(**padded(ids)).logits) < 1e-5


@pytest.mark.parametrize("method", [method for _, method in VARIANTS.values()], ids=VARIANTS)
def test_a_variant_round_trips_and_merges(method: LoRA, checkpoint: Path, tmp_path: Path) -> None:
    model = apply(load_pretrained(checkpoint), method)
    move(model)
    ids = batches(1)[0][0]
    with torch.no_grad():
        before, weights = our_logits(model, ids), {name: t.clone() for name, t in model.state_dict().items()}
        save_adapter(model, tmp_path / "adapter")
        again = load_adapter(load_pretrained(checkpoint), tmp_path / "adapter")
        assert again.method == method and torch.equal(our_logits(again, ids), before)
        assert largest(our_logits(merge(model), ids), before) < 1e-5
        unmerge(model)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


# ------------------------------------------------------------------------------------------------ each by its formula


def test_pissa_starts_from_the_pretrained_function_and_holds_its_largest_part(checkpoint: Path) -> None:
    """Meng et al. 2024: what trains is the best rank-r approximation of W (Eckart and Young 1936)."""
    model, plain = apply(load_pretrained(checkpoint), LoRA(rank=5, alpha=3, init="pissa")), load_pretrained(checkpoint)
    ids = ragged(LENGTHS)
    assert largest(our_logits(model, ids), our_logits(plain, ids)) < 1e-5
    for ours, theirs in zip(model.encoder.layers, plain.encoder.layers, strict=True):
        layer, whole = ours.value, theirs.value.weight.detach()
        singular = torch.linalg.svdvals(whole)
        principal = 3 / 5 * (layer.lora_B @ layer.lora_A).detach()
        assert torch.allclose(torch.linalg.svdvals(principal)[:5], singular[:5], rtol=1e-4)
        assert math.isclose(float((whole - principal).norm()), float(singular[5:].norm()), rel_tol=1e-4)
        assert largest(layer.weight.detach() + principal, whole) < 1e-5


def test_dora_keeps_the_lengths_of_rows_apart_from_their_direction(checkpoint: Path) -> None:
    """Liu et al. 2024, equation 5: whatever A and B, row i of the merged weight is as long as |m_i|."""
    model = apply(load_pretrained(checkpoint), DoRA(rank=3))
    move(model)
    layer = model.encoder.layers[1].query
    lengths = torch.linalg.vector_norm(layer.merged_weight(), dim=1)
    assert largest(lengths, layer.lora_magnitude_vector.abs()) < 1e-5
    direction = layer.weight + layer.scaling * layer.lora_B @ layer.lora_A
    cosines = F.cosine_similarity(layer.merged_weight(), direction)
    assert largest(cosines, layer.lora_magnitude_vector.sign()) < 1e-5


def test_rslora_divides_by_the_root_of_the_rank() -> None:
    assert LoRA(16, 8).rslora is False
    from minipeft import LoRALinear
    from minipeft.model.layers import Linear

    assert LoRALinear(Linear(4, 4), rank=16, alpha=8).scaling == 0.5
    assert LoRALinear(Linear(4, 4), rank=16, alpha=8, rslora=True).scaling == 2.0


def test_lora_plus_gives_b_a_larger_learning_rate(checkpoint: Path) -> None:
    """Hayou et al. 2024: λ = η_B / η_A. In Adam's first step each entry moves by its learning rate."""
    model = apply(load_pretrained(checkpoint), LoRA(rank=2, lr_ratio=16))
    move(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = adamw(model, weight_decay=0.0)
    set_learning_rate(optimizer, 1e-3)
    train(model, lambda ids: our_logits(model, ids), optimizer, steps=1)
    for name, parameter in model.named_parameters():
        if name in before:
            rate = 16e-3 if name.endswith("lora_B") else 1e-3
            moved = (parameter.detach() - before[name]).abs().median()
            assert math.isclose(float(moved), rate, rel_tol=0.01), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank_pattern": {"12.query": 4}}, "'12.query' fits no target. .*: write '2.value', 'value', '2'$"),
        ({"rank_pattern": {"key": 4}}, "'key' fits no target. The targets are query, value in layers 0 to 2"),
        ({"alpha_pattern": {"query.1": 4}}, "alpha_pattern: 'query.1'"),
        ({"rank_pattern": {"query": 0, "value": 0}}, "rank 0"),
        ({"modules_to_save": ("norm",)}, "'norm'"),
        ({"modules_to_save": ("value",)}, "names 'value': layers.0.value is a target too"),
        ({"init": "pissa", "rank": 49}, "rank 49 of query is above 48"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_by_name(
    settings: dict[str, Any], message: str, checkpoint: Path
) -> None:
    with pytest.raises(MinipeftError, match=message):
        apply(load_pretrained(checkpoint), LoRA(**settings))


def test_a_rank_that_only_a_later_layer_refuses_leaves_the_earlier_as_they_were(checkpoint: Path) -> None:
    model = load_pretrained(checkpoint)
    ids = ragged(LENGTHS)
    before = our_logits(model, ids)
    with pytest.raises(MinipeftError, match="rank 49 of value is above 48, the smaller dimension"):
        apply(model, LoRA(2, init="pissa", rank_pattern={"2.value": 49}))
    assert largest(our_logits(apply(model, LoRA(2)), ids), before) < 1e-6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init": "olora"}, "init 'olora'; one of kaiming, gaussian, pissa"),
        ({"bias": True}, "bias True; one of none, all, lora_only"),
        ({"rslora": 1}, "rslora 1"),
        ({"lr_ratio": 0}, "lr_ratio 0"),
        ({"rank_pattern": [4]}, r"rank_pattern \[4\]"),
        ({"rank_pattern": {"query": -1}}, r"rank_pattern\['query'\] -1"),
        ({"alpha_pattern": {"query": "x"}}, r"alpha_pattern\['query'\] 'x'"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MinipeftError, match=message):
        LoRA(**settings)
