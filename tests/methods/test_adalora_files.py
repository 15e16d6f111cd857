"""AdaLoRA's files, to peft and back; what of them cannot be kept is refused; merging and exporting."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adalora_models import (
    CONFIG,
    WEIGHTS,
    randomise,
    reference_logits,
    with_peft,
)
from conftest import largest, padded, ragged, reference_model
from peft_agreement import LENGTHS, logits
from safetensors.torch import load_file, save_file

from minipeft import (
    AdaLoRA,
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
from minipeft.methods.lora_variants.adalora import KNOWN, after_step, penalty
from minipeft.methods.peft_format.reading import WITHOUT_EFFECT
from minipeft.model.families import LINEAR_NAMES


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
        ({"rank_pattern": {"roberta.encoder.layer.0.attention.self.query.lora_E": [True]}}, "a list of 3 booleans"),
        ({"rank_pattern": {"roberta.encoder.layer.0.attention.self.query.lora_E": [1, 1, 0]}}, "a list of 3 booleans"),
        ({"rank_pattern": {"roberta.encoder.layer.0.attention.self.query.lora_E": 2}}, "a list of 3 booleans"),
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
