"""LoRA: the layer's formula, its targets, and peft's own numbers forward, backward and over 50 steps of training."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import largest, padded, ragged, reference_model, shared
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from minipeft import (
    BitFit,
    LoRA,
    LoRALinear,
    MinipeftError,
    SequenceClassifier,
    apply,
    count_parameters,
    load_pretrained,
    load_tokenizer,
    pack,
)
from minipeft.data.tasks.splits import read_split
from minipeft.data.tasks.task import get_task
from minipeft.model.families import LINEAR_NAMES
from minipeft.model.layers import Linear
from minipeft.model.pretrained import name_table, tensor_names
from minipeft.training.optimization.optimizer import adamw, set_learning_rate
from minipeft.training.optimization.schedule import linear_schedule

LENGTHS = (7, 1, 40, 3, 129, 7)
# For each of our targets, the regular expression that means it to peft.
PEFT_TARGETS = {
    "query": r"attention\.self\.query",
    "key": r"attention\.self\.key",
    "value": r"attention\.self\.value",
    "output": r"attention\.output\.dense",
    "intermediate": r"intermediate\.dense",
    "ffn_output": r"\d+\.output\.dense",
}
HEADS = {"roberta": ["classifier"], "bert": ["pooler", "classifier"]}


def with_peft(folder: Path, method: LoRA, model_type: str = "roberta", **shape: Any) -> tuple[Any, SequenceClassifier]:
    """A model with LoRA from peft, and ours with the same weights."""
    from peft import LoraConfig, get_peft_model

    reference = reference_model(model_type, **shape)
    reference.save_pretrained(folder)
    model = apply(load_pretrained(folder), method)
    targets = "|".join(PEFT_TARGETS[target] for target in method.targets)
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=rf".*\.layer\.\S*({targets})",
        modules_to_save=HEADS[model_type],
    )
    wrapped = get_peft_model(reference, config)
    theirs, names = dict(wrapped.named_parameters()), peft_names(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(theirs[names[name]])
    return wrapped, model


def peft_names(model: SequenceClassifier) -> dict[str, str]:
    """Our name of each parameter → its name in a model that peft has wrapped."""
    names = {}
    for ours, theirs in tensor_names(model, model.config).items():
        if ours.startswith("head."):
            module = next(module for module in ("pooler", "classifier") if module in theirs)
            names[ours] = "base_model.model." + theirs.replace(module, module + ".modules_to_save.default", 1)
        else:
            names[ours] = "base_model.model." + theirs
    for ours, theirs in name_table(model, model.config).items():
        if isinstance(layer := model.get_submodule(ours), LoRALinear):
            for leaf in ("weight", "bias"):
                names[f"{ours}.{leaf}"] = f"base_model.model.{theirs}.base_layer.{leaf}"
            for leaf in ("lora_A", "lora_B"):
                names[f"{ours}.{leaf}"] = f"base_model.model.{theirs}.{leaf}.default.weight"
            assert layer.scaling
    return names


def randomise(wrapped: Any, model: SequenceClassifier) -> None:
    """Give both the same random B, which starts at zero, so that A has a gradient."""
    theirs, names = dict(wrapped.named_parameters()), peft_names(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(std=0.1)
                theirs[names[name]].copy_(parameter)


# -------------------------------------------------------------------------------------------------------- the layer


def test_the_layer_is_its_formula() -> None:
    torch.manual_seed(0)
    frozen = Linear(7, 5)
    layer = LoRALinear(frozen, rank=3, alpha=12, dropout=0.0)
    x = torch.randn(11, 7)
    assert torch.equal(layer(x), frozen(x))  # training starts from the pretrained function
    torch.nn.init.normal_(layer.lora_B)
    expected = x @ frozen.weight.T + frozen.bias + 12 / 3 * (layer.lora_B @ (layer.lora_A @ x.T)).T
    assert largest(layer(x), expected) < 1e-5


def test_a_starts_kaiming_uniform_and_b_at_zero() -> None:
    torch.manual_seed(0)
    layer = LoRALinear(Linear(64, 5), rank=100, alpha=1, dropout=0.0)
    bound = 1 / math.sqrt(64)  # peft's kaiming_uniform_(a=√5): uniform within 1 / √in_features
    assert not layer.lora_B.any()
    a = layer.lora_A.detach()
    assert 0.99 * bound < float(a.abs().max()) <= bound
    assert abs(float(a.std()) / (bound / math.sqrt(3)) - 1) < 0.03


def test_dropout_falls_on_the_input_of_a_alone_in_training_alone() -> None:
    torch.manual_seed(0)
    frozen = Linear(50, 1)
    layer = LoRALinear(frozen, rank=1, alpha=2, dropout=0.2)
    torch.nn.init.ones_(layer.lora_A)
    torch.nn.init.ones_(layer.lora_B)
    x = torch.ones(20_000, 50)
    update = (layer(x) - frozen(x)).detach()  # 2 · the sum of 50 inputs, each 0 or 1 / 0.8
    assert abs(float(update.mean()) - 100) < 0.5
    assert abs(float(update.var()) / (4 * 50 * 0.2 / 0.8) - 1) < 0.1
    assert torch.allclose(layer.eval()(x) - frozen(x), torch.tensor(100.0))


# ------------------------------------------------------------------------------------------------------- the config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank 0"),
        ({"rank": -3}, "rank -3"),
        ({"rank": 2.5}, "rank 2.5"),
        ({"rank": "2"}, "rank '2'"),
        ({"alpha": math.inf}, "alpha inf"),
        ({"alpha": math.nan}, "alpha nan"),
        ({"dropout": 1}, "dropout 1"),
        ({"dropout": -0.1}, r"dropout -0\.1"),
        ({"targets": ()}, "query, key, value, output, intermediate, ffn_output"),
        ({"targets": ("query", "dense")}, "'dense'; one of query, key, value, output, intermediate, ffn_output"),
        ({"targets": "classifier"}, "classifier"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MinipeftError, match=message):
        LoRA(**settings)


@given(st.lists(st.sampled_from(LINEAR_NAMES), min_size=1))
def test_targets_print_as_the_constructor_and_come_once(targets: list[str]) -> None:
    method = LoRA(targets=tuple(targets))
    assert eval(repr(method), {"LoRA": LoRA}) == method
    assert set(method.targets) == set(targets) and len(method.targets) == len(set(targets))


def test_peft_names_of_targets_are_accepted() -> None:
    theirs = ("query", "attention.output.dense", "intermediate.dense", "output.dense")
    assert LoRA(targets=theirs).targets == ("query", "output", "intermediate", "ffn_output")
    assert LoRA(targets="value").targets == ("value",)  # type: ignore[arg-type]


@given(rank=st.integers(1, 6), targets=st.sets(st.sampled_from(LINEAR_NAMES), min_size=1))
@settings(max_examples=25, deadline=None)
def test_parameters_are_rank_times_in_and_out_features_of_each_target(rank: int, targets: set[str]) -> None:
    from minipeft import EncoderConfig

    hidden, inner, layers = 6, 10, 2
    config = EncoderConfig(
        vocab_size=9,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=inner,
        max_position_embeddings=12,
    )
    model = apply(SequenceClassifier(config), LoRA(rank=rank, targets=tuple(targets)))
    sizes = {name: hidden + (inner if name in ("intermediate", "ffn_output") else hidden) for name in LINEAR_NAMES}
    assert count_parameters(model).method == layers * rank * sum(sizes[target] for target in targets)
    trained = [name for name, p in model.encoder.named_parameters() if p.requires_grad]
    assert all(re.fullmatch(rf"layers\.\d\.({'|'.join(targets)})\.lora_[AB]", name) for name in trained)


# --------------------------------------------------------------------------------------------------------- with peft


@pytest.mark.parametrize(
    ("model_type", "targets"),
    [
        ("roberta", ("query", "value")),
        ("roberta", ("output",)),
        ("roberta", ("ffn_output",)),
        ("roberta", ("intermediate", "key")),
        ("roberta", LINEAR_NAMES),
        ("bert", LINEAR_NAMES),
    ],
)
def test_logits_and_gradients_equal_peft(model_type: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    wrapped, model = with_peft(tmp_path, LoRA(rank=3, alpha=8, targets=targets), model_type, num_hidden_layers=2)
    randomise(wrapped, model)
    wrapped.eval(), model.eval()
    ids, labels = ragged(LENGTHS), torch.arange(len(LENGTHS)) % 2
    logits = model(pack(ids, config=model.config))
    theirs = wrapped(**padded(ids, model.config.pad_token_id), labels=labels)
    assert largest(logits, theirs.logits) < 1e-5
    F.cross_entropy(logits, labels).backward()
    theirs.loss.backward()
    expected, names = dict(wrapped.named_parameters()), peft_names(model)
    ours = {names[name]: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(ours) == sorted(name for name, p in expected.items() if p.requires_grad)
    for name, grad in ours.items():
        reference = expected[name].grad
        assert grad is not None and float(reference.abs().max()) > 0, name
        assert largest(grad, reference) < 1e-4 * float(reference.abs().max()), name


STEPS, BATCH, WARMUP, RATE = 50, 6, 10, 2e-3
Batches = list[tuple[list[list[int]], list[int]]]


def rte_batches() -> Batches:
    """50 batches of real RTE, in real token ids."""
    folder = shared("tokenizers", "roberta-base")
    split = read_split(get_task("rte"), "train", str(shared("glue")), limit=STEPS * BATCH)
    ids = load_tokenizer(folder).encode(split.texts, split.pairs, max_length=96)
    return [(ids[i : i + BATCH], list(map(int, split.labels[i : i + BATCH]))) for i in range(0, STEPS * BATCH, BATCH)]


def our_losses(model: SequenceClassifier, batches: Batches) -> list[float]:
    optimizer = adamw(model, weight_decay=0.01)
    losses = []
    for step, (ids, labels) in enumerate(batches):
        set_learning_rate(optimizer, RATE * linear_schedule(step, WARMUP, STEPS))
        batch = pack(ids, labels, config=model.config)
        assert batch.labels is not None
        loss = F.cross_entropy(model(batch), batch.labels, reduction="sum") / len(batch)
        loss.backward()
        clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def their_losses(model: Any, batches: Batches) -> list[float]:
    from transformers import get_linear_schedule_with_warmup

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=RATE,
    )
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
    losses = []
    for ids, labels in batches:
        loss = model(**padded(ids), labels=torch.tensor(labels)).loss
        loss.backward()
        clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("method", [LoRA(rank=2, alpha=8), BitFit()], ids=["lora", "bitfit"])
def test_every_loss_of_50_steps_on_rte_equals_transformers_and_peft(method: Any, tmp_path: Path) -> None:
    shape = {
        "vocab_size": 50265,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if method == BitFit():
        peer = reference_model(**shape)
        peer.save_pretrained(tmp_path)
        model = apply(load_pretrained(tmp_path), method)
        for name, parameter in peer.named_parameters():
            parameter.requires_grad_(name.endswith(".bias") or name.startswith("classifier."))
    else:
        peer, model = with_peft(tmp_path, method, **shape)
    peer.train(), model.train()
    batches = rte_batches()
    ours, theirs = our_losses(model, batches), their_losses(peer, batches)
    assert len(ours) == STEPS and max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4
    untrained = our_losses_without_training(load_pretrained(tmp_path).train(), batches)
    assert max(abs(a - b) for a, b in zip(ours, untrained, strict=True)) > 1e-2  # training moved the losses


def our_losses_without_training(model: SequenceClassifier, batches: Batches) -> list[float]:
    with torch.no_grad():
        return [
            F.cross_entropy(model(pack(ids, config=model.config)), torch.tensor(labels)).item()
            for ids, labels in batches
        ]


def test_bfloat16_activations_keep_a_and_b_and_their_gradients_in_float32(checkpoint: Path) -> None:
    model = apply(load_pretrained(checkpoint, dtype=torch.bfloat16), LoRA(targets=LINEAR_NAMES))
    logits: Tensor = model(pack(ragged(LENGTHS), config=model.config))
    logits.sum().backward()
    assert logits.dtype == torch.float32
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == (parameter.dtype == torch.float32), name
