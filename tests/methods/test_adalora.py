"""AdaLoRA: the layer, peft's numbers forward, backward and over 20 steps of pruning; its budget; resuming."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adalora_models import (
    NO_DROPOUT,
    THREE,
    WEIGHTS,
    peft_names,
    randomise,
    reference_logits,
    singular_values,
    with_peft,
)
from conftest import largest, padded, ragged
from hypothesis import given
from hypothesis import strategies as st
from peft_agreement import LENGTHS, logits
from safetensors.torch import load_file
from small_runs import state
from torch.nn.utils import clip_grad_norm_

from minipeft import (
    AdaLoRA,
    EncoderConfig,
    MinipeftError,
    SequenceClassifier,
    apply,
    count_parameters,
    load_pretrained,
    pack,
)
from minipeft.data.tasks.task import Split, get_task
from minipeft.data.tokens.examples import Encoded, Examples
from minipeft.data.tokens.token_table import TokenTable
from minipeft.errors import Interrupted
from minipeft.methods.lora_variants.adalora import AdaLoRALinear, after_step, budget, penalty
from minipeft.model.families import LINEAR_NAMES
from minipeft.model.layers import Linear
from minipeft.training.loop import RunFolder, Schedule, train_loop
from minipeft.training.optimization.optimizer import adamw, set_learning_rate
from minipeft.training.optimization.schedule import linear_schedule

# -------------------------------------------------------------------------------------------------------- the layer


def test_the_layer_is_its_formula_and_starts_from_the_frozen_one() -> None:
    torch.manual_seed(0)
    frozen, x = Linear(7, 5), torch.randn(11, 7)
    layer = AdaLoRALinear(frozen, rank=3, scaling=4.0, dropout=0.0)
    assert torch.equal(layer(x), frozen(x))
    for name in THREE:
        torch.nn.init.normal_(layer.get_parameter(name))
    p, q, diagonal = layer.lora_B, layer.lora_A, torch.diag(layer.lora_E[:, 0])
    expected = x @ frozen.weight.T + frozen.bias + 4 * (p @ diagonal @ q @ x.T).T
    assert largest(layer(x), expected) < 1e-5


def test_p_and_q_start_normal_with_a_standard_deviation_of_a_fiftieth() -> None:
    torch.manual_seed(0)
    layer = AdaLoRALinear(Linear(200, 300), rank=100, scaling=1.0, dropout=0.0)
    for name in ("lora_A", "lora_B"):
        assert abs(float(layer.get_parameter(name).detach().std()) / 0.02 - 1) < 0.02
        assert abs(float(layer.get_parameter(name).detach().mean())) < 1e-3


def test_dropout_falls_on_the_input_of_q_alone_in_training_alone() -> None:
    torch.manual_seed(0)
    frozen = Linear(50, 1)
    layer = AdaLoRALinear(frozen, rank=1, scaling=2.0, dropout=0.2)
    for name in THREE:
        torch.nn.init.ones_(layer.get_parameter(name))
    x = torch.ones(20_000, 50)
    update = (layer(x) - frozen(x)).detach()  # 2 · the sum of 50 inputs, each 0 or 1 / 0.8
    assert abs(float(update.mean()) - 100) < 0.5
    assert abs(float(update.var()) / (4 * 50 * 0.2 / 0.8) - 1) < 0.1
    assert torch.allclose(layer.eval()(x) - frozen(x), torch.tensor(100.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_rank": 0}, "target_rank 0 "),
        ({"init_rank": 2.5}, r"init_rank 2\.5"),
        ({"target_rank": 13}, "target_rank 13 is more than init_rank 12"),
        ({"tinit": -1}, "tinit -1"),
        ({"tfinal": "3"}, "tfinal '3'"),
        ({"delta_t": 0}, "delta_t 0 "),
        ({"beta1": 1}, r"beta1 1\.0 is not between 0 and 1"),
        ({"beta2": 0}, r"beta2 0\.0 is not between"),
        ({"orth_weight": -0.1}, r"orth_weight -0\.1"),
        ({"orth_weight": float("nan")}, "orth_weight nan"),
        ({"alpha": 0}, "alpha 0 "),
        ({"alpha": -3}, "alpha -3"),
        ({"dropout": 1}, r"dropout 1\.0"),
        ({"targets": ("dense",)}, "'dense'"),
        ({"rank_pattern": [3]}, r"rank_pattern \[3\]"),
        ({"rank_pattern": {"0.query": 13}}, r"rank_pattern\['0\.query'\] 13 is more than init_rank 12"),
        ({"rank_pattern": {"0.query": "x"}}, "'x'"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MinipeftError, match=message):
        AdaLoRA(**settings)


def test_a_rank_pattern_for_a_layer_that_is_no_target_is_refused(checkpoint: Path) -> None:
    for key in ("3.query", "0.value", "query"):
        with pytest.raises(MinipeftError, match=f"'{key}' fits no target. Write a key like '2.query'"):
            apply(load_pretrained(checkpoint), AdaLoRA(targets=("query",), rank_pattern={key: 2}))


def test_the_count_on_roberta_base_is_pefts() -> None:
    from peft import AdaLoraConfig, get_peft_model
    from transformers import RobertaConfig, RobertaForSequenceClassification

    with torch.device("meta"):
        ours = count_parameters(apply(SequenceClassifier(EncoderConfig()), AdaLoRA()))
        config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
        theirs = get_peft_model(
            RobertaForSequenceClassification(config), AdaLoraConfig(task_type="SEQ_CLS", total_step=9)
        )
    assert ours.method == 12 * 12 * (4 * (2 * 768 + 1) + 2 * (768 + 3072 + 1)) == 1_991_520
    assert theirs.get_nb_trainable_parameters()[0] == ours.method + ours.head


# ---------------------------------------------------------------------------------------------------- against peft


@pytest.mark.parametrize("targets", [LINEAR_NAMES, ("query", "ffn_output"), ("output",)], ids=str)
def test_logits_penalty_and_gradients_equal_pefts(targets: tuple[str, ...], tmp_path: Path) -> None:
    """Logits to 1e-5; loss with penalty to 1e-5; gradients to 1e-4 of the largest of each tensor."""
    wrapped, model = with_peft(tmp_path, AdaLoRA(2, 3, alpha=7, targets=targets, orth_weight=0.3))
    randomise(model, wrapped)
    wrapped.eval(), model.eval()
    assert largest(logits(model), reference_logits(wrapped)) < 1e-5
    labels = [0, 1, 1, 0, 1, 0]
    theirs = wrapped(**padded(ragged(LENGTHS)), labels=torch.tensor(labels)).loss
    batch = pack(ragged(LENGTHS), labels, config=model.config)
    assert batch.labels is not None
    ours = F.cross_entropy(model(batch), batch.labels, reduction="sum") / len(batch) + penalty(model)
    assert largest(ours, theirs) < 1e-5 and penalty(model) > 0.1
    ours.backward(), theirs.backward()
    parameters, names = dict(wrapped.named_parameters()), peft_names(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            reference = parameters[names[name]].grad
            assert parameter.grad is not None and reference.any(), name
            assert largest(parameter.grad, reference) < 1e-4 * float(reference.abs().max()), name


STEPS, WARMUP, RATE = 20, 3, 1e-2


@pytest.mark.parametrize(
    ("schedule", "left"),
    [({"tinit": 3, "tfinal": 5, "delta_t": 2}, 2), ({}, 2), ({"tinit": 1, "tfinal": 18}, 1)],
    ids=str,
)
def test_20_steps_of_training_and_pruning_equal_pefts(schedule: dict[str, int], left: int, tmp_path: Path) -> None:
    """Every loss within 1e-4, the same singular values at 0 after every step, parameters within 1e-3 at the end."""
    method = AdaLoRA(left, 4, alpha=8, beta1=0.8, beta2=0.9, **schedule)
    wrapped, model = with_peft(tmp_path, method, STEPS, **NO_DROPOUT)
    wrapped.train(), model.train()
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    theirs = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
        ]
    )
    ours = adamw(model, weight_decay=0.01)
    parameters, names = dict(wrapped.named_parameters()), peft_names(model)
    zeros = []
    for step in range(STEPS):
        rate = RATE * linear_schedule(step, WARMUP, STEPS)
        token_ids = ragged([1 + (7 * number + step) % 23 for number in range(6)], seed=step)
        labels = [row[0] % 2 for row in token_ids]

        for group in theirs.param_groups:
            group["lr"] = rate
        their_loss = wrapped(**padded(token_ids), labels=torch.tensor(labels)).loss
        their_loss.backward()
        clip_grad_norm_(trained, 1.0)
        theirs.step()
        wrapped.base_model.update_and_allocate(step)
        theirs.zero_grad()

        set_learning_rate(ours, rate)
        batch = pack(token_ids, labels, config=model.config)
        assert batch.labels is not None
        addition = penalty(model)
        addition.backward()
        loss = F.cross_entropy(model(batch), batch.labels, reduction="sum") / len(batch)
        loss.backward()
        clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        ours.step()
        after_step(model, step, STEPS)
        ours.zero_grad()

        assert abs((loss + addition).item() - their_loss.item()) < 1e-4, step
        for name, parameter in model.named_parameters():
            if name.endswith("lora_E"):
                assert torch.equal(parameter == 0, parameters[names[name]] == 0), (step, name)
        zeros.append(int((singular_values(model) == 0).sum()))
    assert zeros[-1] == (4 - left) * 3 * 6 and len(set(zeros)) > 2  # 3 layers, 6 targets: the budget fell in steps
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter, parameters[names[name]], atol=1e-3, rtol=1e-3)


@given(
    first=st.integers(8, 400),
    falls=st.integers(1, 300),
    tinit=st.integers(0, 30),
    tfinal=st.integers(1, 30),
    between=st.integers(1, 60),
)
def test_the_budget_is_pefts_in_every_step(first: int, falls: int, tinit: int, tfinal: int, between: int) -> None:
    from peft.tuners.adalora.layer import RankAllocator

    total, last = tinit + between + tfinal, max(1, first - falls)
    theirs = RankAllocator.__new__(RankAllocator)
    theirs.peft_config = SimpleNamespace(tinit=tinit, tfinal=tfinal, total_step=total, deltaT=1)
    theirs.init_bgt, theirs.target_bgt = first, last
    method = AdaLoRA(tinit=tinit, tfinal=tfinal)
    budgets = [budget(method, first, last, step, total) for step in range(total)]
    assert budgets == [theirs.budget_schedule(step)[0] for step in range(total)]
    assert budgets == sorted(budgets, reverse=True) and (budgets[0], budgets[-1]) == (first, last)


# -------------------------------------------------------------------------------------------------------- in a run


def encoded(count: int, seed: int = 0) -> Encoded:
    sequences = [[0, *row] for row in ragged([1 + (7 * number + seed) % 23 for number in range(count)], seed=seed)]
    labels = [row[1] % 2 for row in sequences]
    return Encoded(Split(get_task("sst2"), [""] * count, None, labels), TokenTable.from_sequences(sequences))


def run(model: SequenceClassifier, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    schedule = Schedule(
        epochs=5,  # of 3 steps
        lr=1e-2,
        warmup_steps=1,
        weight_decay=0.1,
        sequences_per_step=8,
        max_tokens=10_000,
        seed=3,
        select_by="accuracy",
    )
    train_loop(model, Examples(encoded(20), encoded(6, seed=1)), schedule, RunFolder(folder, quiet=True))


@pytest.mark.parametrize("after", [2, 7, 13])  # before pruning, while the budget falls, and when it has fallen
def test_an_interrupted_run_goes_on_to_the_same_bits(after: int, checkpoint: Path, tmp_path: Path) -> None:
    method = AdaLoRA(2, 4, dropout=0.1, tinit=4, tfinal=4, delta_t=2)

    def new() -> SequenceClassifier:
        torch.manual_seed(after)
        return apply(load_pretrained(checkpoint), method)

    unbroken = new()
    run(unbroken, tmp_path / "unbroken")
    broken, calls = new(), []

    def stop(module: Any, *_: Any) -> None:
        calls.append(module.training)
        if module.training and sum(calls) == after:  # a step has one batch
            signal.raise_signal(signal.SIGINT)

    broken.register_forward_hook(stop)
    with pytest.raises(Interrupted):
        run(broken, tmp_path / "broken")
    assert state(tmp_path / "broken")["progress"]["step"] == after - 1  # saved before the step changes anything
    torch.manual_seed(99)
    resumed = apply(load_pretrained(checkpoint), method)  # other numbers at the start
    run(resumed, tmp_path / "broken")
    one, other = state(tmp_path / "unbroken"), state(tmp_path / "broken")
    assert any(name.endswith("lora_E_uncertainty") for name in one["weights"])
    assert one["weights"].keys() == other["weights"].keys()
    assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])
    assert torch.equal(logits(resumed), logits(unbroken))


def test_a_run_ends_with_the_target_budget_and_its_averages_are_not_in_the_adapter(
    checkpoint: Path, tmp_path: Path
) -> None:
    for number, method in enumerate((AdaLoRA(1, 3, tfinal=4), AdaLoRA(1, 3, delta_t=4))):
        model = apply(load_pretrained(checkpoint), method)
        run(model, tmp_path / str(number))
        assert int((singular_values(model) != 0).sum()) == 1 * 3 * 6
        names = load_file(tmp_path / str(number) / "adapter" / WEIGHTS)
        assert {name.rpartition(".")[2] for name in names} == {*THREE, "weight", "bias"}


def test_nothing_is_pruned_where_the_ranks_are_the_targets(checkpoint: Path, tmp_path: Path) -> None:
    model = apply(load_pretrained(checkpoint), AdaLoRA(3, 3))
    run(model, tmp_path / "run")
    assert singular_values(model).all()


def test_a_schedule_longer_than_the_run_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    model = apply(load_pretrained(checkpoint), AdaLoRA(tinit=10, tfinal=5))
    with pytest.raises(MinipeftError, match="tinit 10 and tfinal 5 leave none of the run's 15 steps"):
        run(model, tmp_path / "run")
