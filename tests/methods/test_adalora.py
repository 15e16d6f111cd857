"""AdaLoRA: peft's numbers forward, backward and over 20 steps of pruning; its budget; files both ways; resuming."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import largest, padded, ragged, reference_model
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from minipeft import (
    AdaLoRA,
    EncoderConfig,
    MinipeftError,
    SequenceClassifier,
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
from minipeft.data.tasks import Split, get_task
from minipeft.errors import Interrupted
from minipeft.methods.adalora import KNOWN, AdaLoRALinear, after_step, budget, penalty
from minipeft.methods.peft_format import WITHOUT_EFFECT
from minipeft.model.checkpoint import name_table, tensor_names
from minipeft.model.roberta import LINEAR_NAMES, Linear
from minipeft.training.loop import train_loop
from minipeft.training.metrics import Encoded, sequence_loss
from minipeft.training.optim import adamw, linear_schedule, set_learning_rate

LENGTHS = (7, 1, 40, 3, 129, 7)
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
THREE = ("lora_A", "lora_E", "lora_B")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# For each of our targets, the regular expression that means it to peft.
PEFT_TARGETS = {
    "query": r"attention\.self\.query",
    "key": r"attention\.self\.key",
    "value": r"attention\.self\.value",
    "output": r"attention\.output\.dense",
    "intermediate": r"intermediate\.dense",
    "ffn_output": r"\d+\.output\.dense",
}


def with_peft(
    folder: Path, method: AdaLoRA, total_steps: int = 10, targets: Any = None, **shape: Any
) -> tuple[Any, SequenceClassifier]:
    """A model with AdaLoRA from peft, and ours with the same numbers."""
    from peft import AdaLoraConfig, get_peft_model

    reference = reference_model(**shape)
    reference.save_pretrained(folder)
    model = apply(load_pretrained(folder), method)
    ours = "|".join(PEFT_TARGETS[target] for target in method.targets)
    config = AdaLoraConfig(
        task_type="SEQ_CLS",
        target_r=method.target_rank,
        init_r=method.init_rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        tinit=method.tinit,
        tfinal=method.tfinal,
        deltaT=method.delta_t,
        beta1=method.beta1,
        beta2=method.beta2,
        orth_reg_weight=method.orth_weight,
        total_step=total_steps,
        target_modules=rf".*\.layer\.\S*({ours})" if targets is None else targets,
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
        names[ours] = "base_model.model." + theirs.replace("classifier.", "classifier.modules_to_save.default.")
    for ours, theirs in name_table(model, model.config).items():
        if isinstance(model.get_submodule(ours), AdaLoRALinear):
            for leaf in ("weight", "bias"):
                names[f"{ours}.{leaf}"] = f"base_model.model.{theirs}.base_layer.{leaf}"
            for leaf in THREE:
                names[f"{ours}.{leaf}"] = f"base_model.model.{theirs}.{leaf}.default"
    return names


def randomise(model: SequenceClassifier, wrapped: Any = None, seed: int = 1) -> None:
    """Give Λ, which starts at zero, numbers; and peft's model the same."""
    generator = torch.Generator().manual_seed(seed)
    theirs, names = dict(wrapped.named_parameters()) if wrapped else {}, peft_names(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_E"):
                parameter.copy_(100 * torch.randn(parameter.shape, generator=generator))
                if wrapped:
                    theirs[names[name]].copy_(parameter)


def logits(model: SequenceClassifier) -> Tensor:
    with torch.no_grad():
        return model.eval()(pack(ragged(LENGTHS), config=model.config))


def reference_logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(**padded(ragged(LENGTHS))).logits


def singular_values(model: SequenceClassifier) -> Tensor:
    return torch.cat([p.detach().flatten() for name, p in model.named_parameters() if name.endswith("lora_E")])


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
        with pytest.raises(MinipeftError, match=f"names '{key}'"):
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
    ours = sequence_loss(model(batch), batch.labels) / len(batch) + penalty(model)
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
        loss = sequence_loss(model(batch), batch.labels) / len(batch)
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
    return Encoded(Split(get_task("sst2"), [""] * count, None, labels), sequences, [len(row) for row in sequences])


def run(model: SequenceClassifier, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    train_loop(
        model,
        encoded(20),
        encoded(6, seed=1),
        folder,
        epochs=5,  # of 3 steps
        lr=1e-2,
        sequences_per_step=8,
        warmup_steps=1,
        weight_decay=0.1,
        max_tokens=10_000,
        seed=3,
        device="cpu",
        quiet=True,
    )


def state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint" / "state.pt", weights_only=True)


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
    assert any(name.endswith("lora_E_uncertainty") for name in one["trained"])
    assert one["trained"].keys() == other["trained"].keys()
    assert all(torch.equal(one["trained"][name], other["trained"][name]) for name in one["trained"])
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


# ------------------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("targets", [LINEAR_NAMES, ("ffn_output",), ("query", "output")], ids=str)
def test_a_saved_adapter_opens_in_peft_with_the_same_logits(targets: tuple[str, ...], tmp_path: Path) -> None:
    from peft import PeftModel

    reference = reference_model()
    reference.save_pretrained(tmp_path / "base")
    method = AdaLoRA(2, 3, alpha=8, dropout=0.1, targets=targets, tinit=5, tfinal=9)
    model = apply(load_pretrained(tmp_path / "base"), method)
    before = logits(model)
    randomise(model)
    save_adapter(model, tmp_path / "adapter")
    wrapped = PeftModel.from_pretrained(reference, tmp_path / "adapter")
    assert largest(logits(model), reference_logits(wrapped)) < 1e-5 and largest(logits(model), before) > 1e-2
    wrapped.save_pretrained(tmp_path / "again")  # what peft writes has the same tensors under the same names
    ours, theirs = (load_file(tmp_path / name / WEIGHTS) for name in ("adapter", "again"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    again = load_adapter(load_pretrained(tmp_path / "base"), tmp_path / "again")
    assert again.method == method and torch.equal(logits(again), logits(model))


@pytest.mark.parametrize(
    "targets", [None, ["query", "value"], ["attention.output.dense", "key"], r".*\.layer\.\d\.output\.dense"], ids=str
)
def test_an_adapter_that_peft_saved_loads_with_the_same_logits(targets: Any, tmp_path: Path) -> None:
    from peft import AdaLoraConfig, get_peft_model

    reference = reference_model(num_labels=3)
    reference.save_pretrained(tmp_path / "base")
    config = AdaLoraConfig(task_type="SEQ_CLS", total_step=7, target_modules=targets)
    wrapped = get_peft_model(reference, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                parameter.add_((10 if "lora_E" in name else 0.1) * torch.randn_like(parameter))
    wrapped.save_pretrained(tmp_path / "adapter")
    model = load_adapter(load_pretrained(tmp_path / "base", num_labels=3), tmp_path / "adapter")
    assert largest(logits(model), reference_logits(wrapped)) < 2e-5
    assert model.method == AdaLoRA(alpha=8, targets=model.method.targets)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """A checkpoint, and an adapter that peft trained, pruned and cut; one layer has nothing left."""
    folder = tmp_path_factory.mktemp("pruned")
    method = AdaLoRA(1, 3, alpha=5, targets=("query", "output"), tfinal=2)
    wrapped, _ = with_peft(folder / "base", method, targets=["query", "attention.output.dense"])
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=0.1)
    for step in range(9):
        wrapped(**padded(ragged(LENGTHS)), labels=torch.tensor([0, 1, 0, 1, 0, 1])).loss.backward()
        optimizer.step()
        wrapped.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    wrapped.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter", reference_logits(wrapped)


def test_a_pruned_adapter_of_peft_loads_with_its_ranks_and_opens_in_peft_again(
    pruned: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base, adapter, expected = pruned
    kept = json.loads((adapter / CONFIG).read_text())["rank_pattern"]
    ranks = {name: sum(ones) for name, ones in kept.items()}
    assert sum(ranks.values()) == 6 and len(set(ranks.values())) > 1  # not one a layer
    model = load_adapter(load_pretrained(base), adapter)
    assert largest(logits(model), expected) < 1e-5
    prefix = "roberta.encoder.layer."
    for key, rank in ranks.items():
        number, _, module = key.removeprefix(prefix).partition(".attention.")
        target = {"self.query.lora_E": "query", "output.dense.lora_E": "output"}[module]
        assert len(model.get_parameter(f"encoder.layers.{number}.{target}.lora_E")) == rank
    save_adapter(model, tmp_path / "again")
    reference = AutoModelForSequenceClassification.from_pretrained(base)
    assert largest(reference_logits(PeftModel.from_pretrained(reference, tmp_path / "again")), expected) < 1e-5
    again = load_adapter(load_pretrained(base), tmp_path / "again")
    assert again.method == model.method and torch.equal(logits(again), logits(model))
    assert largest(logits(merge(again)), expected) < 1e-4
    penalty(model).backward()  # a layer that has no singular value left has no part in it
    gradients = [p.grad for name, p in model.named_parameters() if name.endswith(("lora_A", "lora_B"))]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank_pattern": {"x.lora_E": [True] * 3}}, "rank_pattern names 'x.lora_E'"),
        ({"rank_pattern": [1]}, r"rank_pattern \[1\]"),
        ({"rank_pattern": {"roberta.encoder.layer.0.attention.self.query.lora_E": [True]}}, "3 times true or false"),
        ({"rank_pattern": {"roberta.encoder.layer.0.attention.self.query.lora_E": [1, 1, 0]}}, "3 times true or false"),
        ({"rank_pattern": {"roberta.encoder.layer.0.attention.self.query.lora_E": 2}}, "3 times true or false"),
        ({"init_r": 0}, "init_rank 0"),
        ({"init_r": 4, "rank_pattern": None}, "has shape"),
        ({"rank_pattern": None}, "has shape"),
        ({"lora_alpha": "x"}, "alpha 'x'"),
        ({"use_rslora": True}, "use_rslora True"),
        ({"use_dora": True}, "use_dora True"),
        ({"bias": "some"}, "unknown bias 'some'"),
        ({"alpha_pattern": {"query": 3}}, "alpha_pattern"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"layers_to_transform": [0], "rank_pattern": None}, "nothing uses tensor|layers"),
        ({"target_modules": ["layer.0.attention.self.query", "attention.output.dense"]}, "takes all layers"),
        ({"target_modules": ["dense_h"]}, "target_modules"),
        ({"new_field": 3}, "new_field 3"),
    ],
)
def test_a_setting_that_cannot_be_kept_is_refused_by_name(
    fields: dict[str, Any], message: str, pruned: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    base, adapter, _ = pruned
    (tmp_path / "adapter").mkdir()
    content = json.loads((adapter / CONFIG).read_text()) | fields
    (tmp_path / "adapter" / CONFIG).write_text(json.dumps(content))
    save_file(load_file(adapter / WEIGHTS), tmp_path / "adapter" / WEIGHTS)
    with pytest.raises(MinipeftError, match=message):
        load_adapter(load_pretrained(base), tmp_path / "adapter")


def test_tensors_that_do_not_fit_are_named(checkpoint: Path, tmp_path: Path) -> None:
    save_adapter(apply(load_pretrained(checkpoint), AdaLoRA(2, 3)), tmp_path / "adapter")
    whole = load_file(tmp_path / "adapter" / WEIGHTS)
    name = "base_model.model.roberta.encoder.layer.1.attention.self.value.lora_E"
    for change, message in (
        ({key: tensor for key, tensor in whole.items() if key != name}, f"{name} is missing"),
        (whole | {name: torch.zeros(4, 1)}, rf"{name} has shape \(4, 1\)"),
        (whole | {name + "_sensitivity": torch.zeros(3, 1)}, f"nothing uses tensor {name}_sensitivity"),
    ):
        save_file(change, tmp_path / "adapter" / WEIGHTS)
        with pytest.raises(MinipeftError, match=message):
            load_adapter(load_pretrained(checkpoint), tmp_path / "adapter")


def test_every_field_of_pefts_config_is_either_understood_or_known_to_change_nothing() -> None:
    """A field that a later peft adds shows here, and is refused in a file that uses it."""
    from peft import AdaLoraConfig

    refused = {
        *("layers_pattern", "layer_replication", "lora_bias", "target_parameters", "trainable_token_indices"),
        "fan_in_fan_out",
        *("alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config"),
        *("use_dora", "use_rslora", "alpha_pattern"),
    }
    assert {field.name for field in dataclasses.fields(AdaLoraConfig)} - KNOWN - WITHOUT_EFFECT == refused
    assert not refused & (KNOWN | WITHOUT_EFFECT)


# ---------------------------------------------------------------------------------------------- merging and exporting


def test_merging_keeps_the_logits_unmerging_the_bits_and_an_export_loads_in_transformers(
    checkpoint: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    model = apply(load_pretrained(checkpoint), AdaLoRA(2, 3))
    randomise(model)
    before, weights = logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert 0 < largest(logits(merge(model)), before) < 1e-4
    assert torch.equal(logits(unmerge(model)), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    export(model, tmp_path / "out")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert largest(reference_logits(theirs), before) < 1e-4


def test_bfloat16_weights_leave_what_trains_in_float32(checkpoint: Path) -> None:
    model = apply(load_pretrained(checkpoint, dtype=torch.bfloat16), AdaLoRA(2, 3))
    out = model(pack(ragged(LENGTHS), config=model.config))
    out.sum().backward()
    after_step(model, 0, 3)
    assert out.dtype == torch.float32 and {b.dtype for b in model.buffers()} == {torch.float32}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == (parameter.dtype == torch.float32), name
