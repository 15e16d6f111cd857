"""Adapter files: ours in peft, peft's in ours, round trips, merging, exporting, and files that do not fit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import largest, padded, ragged, reference_model, run_command
from safetensors.torch import load_file, save_file
from torch import Tensor

from minipeft import (
    IA3,
    AdaLoRA,
    BitFit,
    DoRA,
    Full,
    Head,
    Houlsby,
    LayerNormTuning,
    LoRA,
    MinipeftError,
    Pfeiffer,
    PrefixTuning,
    PromptTuning,
    SequenceClassifier,
    VeRA,
    apply,
    export,
    load_adapter,
    load_pretrained,
    merge,
    pack,
    save_adapter,
    unmerge,
)
from minipeft.adapters.adapter_file import read_adapter
from minipeft.methods.peft_format.reading import LORA_FIELDS, WITHOUT_EFFECT
from minipeft.model.families import LINEAR_NAMES

State = dict[str, Tensor]
LENGTHS = (7, 1, 40, 3)
METHODS = [
    LoRA(rank=2, alpha=8),
    LoRA(rank=3, alpha=1, dropout=0.1, targets=LINEAR_NAMES),
    DoRA(rank=2),
    AdaLoRA(2, 3),
    BitFit(),
    BitFit(targets=("query", "intermediate")),
    Full(),
    Head(),
    IA3(targets=LINEAR_NAMES),
    LayerNormTuning(),
    LayerNormTuning(("attention", "output")),
    VeRA(rank=5, seed=3, targets=LINEAR_NAMES, save_projection=False),
    Houlsby(size=5),
    Pfeiffer(size=5),
    PromptTuning(4, init="vocabulary"),
    PrefixTuning(4),
]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def trained(folder: Path, method: Any, seed: int = 0, **options: Any) -> SequenceClassifier:
    """The checkpoint in `folder` with a method whose parameters, head included, have moved at random."""
    model = apply(load_pretrained(folder, **options), method).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model: SequenceClassifier) -> Tensor:
    with torch.no_grad():
        return model.eval()(pack(ragged(LENGTHS), config=model.config))


def reference_logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(**padded(ragged(LENGTHS), model.config.pad_token_id)).logits


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# ---------------------------------------------------------------------------------------------------------- with peft


@pytest.mark.parametrize(
    ("model_type", "targets"),
    [
        ("roberta", ("query", "value")),
        ("roberta", ("output",)),
        ("roberta", ("ffn_output",)),
        ("roberta", ("key", "intermediate", "output")),
        ("roberta", ("value", "ffn_output", "intermediate")),
        ("roberta", LINEAR_NAMES),
        ("xlm-roberta", ("query",)),
        ("bert", ("query", "value")),
        ("bert", LINEAR_NAMES),
        ("bert", ("ffn_output", "output")),
        ("bert", ("output",)),
    ],
)
def test_a_saved_lora_opens_in_peft_with_the_same_logits(
    model_type: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    from peft import PeftModel

    reference = reference_model(model_type)
    reference.save_pretrained(tmp_path / "base")
    before = reference_logits(reference)
    model = trained(tmp_path / "base", LoRA(rank=3, alpha=8, dropout=0.1, targets=targets))
    save_adapter(model, tmp_path / "adapter")
    wrapped = PeftModel.from_pretrained(reference, tmp_path / "adapter")
    assert largest(logits(model), reference_logits(wrapped)) < 1e-5
    assert largest(logits(model), before) > 1e-2
    wrapped.save_pretrained(tmp_path / "again")  # what peft writes has the same tensors under the same names
    ours, theirs = (load_file(tmp_path / name / WEIGHTS) for name in ("adapter", "again"))
    assert sorted(ours) == sorted(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("model_type", "targets"),
    [
        ("roberta", ["query", "value"]),
        ("roberta", ["attention.output.dense", "key"]),
        ("roberta", ["query", "key", "value", "output.dense", "intermediate.dense"]),
        ("roberta", r".*\.layer\.\d+\.(attention\.self\.value|output\.dense)"),
        ("roberta", "all-linear"),
        ("camembert", ["intermediate.dense"]),
        ("bert", ["query", "value"]),
        ("bert", r"bert\.encoder\.layer\..*\.dense"),
    ],
)
def test_an_adapter_that_peft_saved_loads_with_the_same_logits(model_type: str, targets: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    reference = reference_model(model_type, num_labels=3)
    reference.save_pretrained(tmp_path / "base")
    wrapped = get_peft_model(
        reference, LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=5, target_modules=targets, lora_dropout=0.1)
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    wrapped.save_pretrained(tmp_path / "adapter")
    model = load_adapter(load_pretrained(tmp_path / "base", num_labels=3), tmp_path / "adapter")
    assert largest(logits(model), reference_logits(wrapped)) < 1e-5
    assert model.method.rank == 3 and model.method.alpha == 5 and model.method.dropout == 0.1


@pytest.mark.parametrize("name", ["default", "other"])
@pytest.mark.parametrize("whole", [[], ["LayerNorm"]])
@pytest.mark.parametrize("model_type", ["roberta", "bert"])
def test_every_bias_of_an_adapter_of_pefts_is_read_whatever_wraps_it(
    model_type: str, whole: list[str], name: str, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    reference = reference_model(model_type)
    reference.save_pretrained(tmp_path / "base")
    head = ["pooler", "classifier"] if model_type == "bert" else ["classifier"]
    config = LoraConfig(task_type="SEQ_CLS", bias="all", modules_to_save=[*head, *whole])
    wrapped = get_peft_model(reference, config, adapter_name=name)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    wrapped.save_pretrained(tmp_path / "adapter")
    folder = tmp_path / "adapter" / ("" if name == "default" else name)
    model = load_adapter(load_pretrained(tmp_path / "base"), folder)
    assert largest(logits(model), reference_logits(wrapped)) < 1e-5


# -------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("model_type", ["roberta", "bert"])
def test_a_round_trip_gives_the_same_model_to_the_bit(method: Any, model_type: str, tmp_path: Path) -> None:
    reference_model(model_type).save_pretrained(tmp_path / "base")
    model = trained(tmp_path / "base", method)
    save_adapter(model, tmp_path / "adapter", task="rte", score=0.75)
    again = load_adapter(load_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(logits(model), logits(again))
    assert again.method == method if isinstance(method, LoRA) else type(again.method) is type(method)
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]
    found = read_adapter(tmp_path / "adapter", model.config)
    state, details = found.state, found.details
    assert sum(t.numel() for t in state.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert details["task"] == "rte" and details["score"] == 0.75
    assert not list((tmp_path / "adapter").glob(".*"))  # nothing else is left


IN_A_FRESH_PROCESS = """
import sys, torch
from pathlib import Path
from minipeft import load_adapter, load_pretrained, pack
folder = Path(sys.argv[1])
kept = torch.load(folder / "kept.pt", weights_only=True)
for name, expected in kept["logits"].items():
    model = load_adapter(load_pretrained(folder / "base"), folder / name)
    with torch.no_grad():
        assert torch.equal(model(pack(kept["ids"], config=model.config)), expected), name
print(len(kept["logits"]))
"""


@pytest.mark.full
def test_every_adapter_round_trips_in_a_fresh_process(tmp_path: Path) -> None:
    reference_model().save_pretrained(tmp_path / "base")
    expected = {}
    for number, method in enumerate(METHODS):
        model = trained(tmp_path / "base", method)
        save_adapter(model, tmp_path / str(number))
        expected[str(number)] = logits(model)
    torch.save({"ids": ragged(LENGTHS), "logits": expected}, tmp_path / "kept.pt")
    done = run_command("-c", IN_A_FRESH_PROCESS, tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(METHODS)


def test_an_adapter_on_bfloat16_weights_round_trips_in_float32(checkpoint: Path, tmp_path: Path) -> None:
    model = trained(checkpoint, LoRA(), dtype=torch.bfloat16)
    save_adapter(model, tmp_path / "adapter")
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter" / WEIGHTS).values()} == {torch.float32}
    again = load_adapter(load_pretrained(checkpoint, dtype=torch.bfloat16), tmp_path / "adapter")
    assert torch.equal(logits(model), logits(again))


def test_labels_travel_with_the_adapter(checkpoint: Path, tmp_path: Path) -> None:
    model = trained(checkpoint, Head())
    model.config = model.config.with_labels(["no", "ja"])
    save_adapter(model, tmp_path / "adapter")
    assert load_adapter(load_pretrained(checkpoint), tmp_path / "adapter").config.id2label == {0: "no", 1: "ja"}


# ---------------------------------------------------------------------------------------------- merging and exporting


def test_merging_keeps_the_logits_and_unmerging_gives_the_weights_back_to_the_bit(checkpoint: Path) -> None:
    model = trained(checkpoint, LoRA(rank=3, alpha=8, targets=LINEAR_NAMES))
    before, weights = logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert merge(model) is model
    merged = logits(model)
    assert not torch.equal(model.encoder.layers[0].query.weight, weights["encoder.layers.0.query.weight"])
    assert 0 < largest(before, merged) < 1e-5
    assert torch.equal(logits(merge(model)), merged)  # a second time changes nothing
    unmerge(model)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(unmerge(model)), before)


def test_bfloat16_weights_come_back_to_the_bit(checkpoint: Path) -> None:
    model = trained(checkpoint, LoRA(), dtype=torch.bfloat16)
    before = logits(model)
    assert largest(logits(merge(model)), before) < 0.05
    assert torch.equal(logits(unmerge(model)), before)


def test_a_merged_adapter_is_not_saved(checkpoint: Path, tmp_path: Path) -> None:
    model = merge(trained(checkpoint, LoRA()))
    with pytest.raises(MinipeftError, match="unmerge"):
        save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "camembert", "bert"])
@pytest.mark.parametrize("method", [LoRA(rank=2, alpha=8, targets=LINEAR_NAMES), BitFit()], ids=["lora", "bitfit"])
def test_an_export_loads_in_transformers_with_the_same_logits_and_labels(
    method: Any, model_type: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    reference_model(model_type).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    model = trained(tmp_path / "base", method)
    model.config = model.config.with_labels(["no", "ja"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export(model, tmp_path / "out")
    theirs, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    assert theirs.config.id2label == {0: "no", 1: "ja"} and theirs.config.label2id == {"no": 0, "ja": 1}
    assert largest(logits(model), reference_logits(theirs)) < 1e-5
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())  # left as it was
    with pytest.raises(MinipeftError, match="not empty"):
        export(model, tmp_path / "out")


# --------------------------------------------------------------------------------------------- files that do not fit


@pytest.fixture
def saved(checkpoint: Path, tmp_path: Path) -> Path:
    save_adapter(trained(checkpoint, LoRA(rank=2)), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("model_type", "shape", "message"),
    [
        ("bert", {}, "bert"),
        ("roberta", {"num_hidden_layers": 2}, "2 layers"),
        ("roberta", {"vocab_size": 301}, "301"),
        ("roberta", {"hidden_size": 51}, "51"),
        ("roberta", {"num_attention_heads": 4}, "4 heads"),
        ("roberta", {"intermediate_size": 96}, "96"),
    ],
)
def test_an_adapter_of_another_base_is_refused(
    model_type: str, shape: dict[str, Any], message: str, saved: Path, tmp_path: Path
) -> None:
    reference_model(model_type, **shape).save_pretrained(tmp_path / "other")
    with pytest.raises(MinipeftError, match=f"trained on roberta with 3 layers of 48 and 300 tokens.*{message}"):
        load_adapter(load_pretrained(tmp_path / "other"), saved)


@pytest.mark.parametrize("layers", [2, 4])
def test_a_file_that_says_nothing_of_its_base_is_refused_by_the_number_of_layers(
    layers: int, saved: Path, tmp_path: Path
) -> None:
    reference_model(num_hidden_layers=layers).save_pretrained(tmp_path / "other")
    save_file(load_file(saved / WEIGHTS), saved / WEIGHTS)
    with pytest.raises(MinipeftError, match=f"tensors up to layer 3, the model asks for {layers}"):
        load_adapter(load_pretrained(tmp_path / "other"), saved)


def test_an_adapter_for_other_labels_is_refused(saved: Path, checkpoint: Path, tmp_path: Path) -> None:
    reference_model(num_labels=3).save_pretrained(tmp_path / "three")
    with pytest.raises(MinipeftError, match=r"has 2 labels, the model 3; load the model with num_labels=2"):
        load_adapter(load_pretrained(tmp_path / "three", num_labels=3), saved)


A = "base_model.model.roberta.encoder.layer.1.attention.self.value.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {name: state[name] for name in state if name != A}, f"{A} is missing"),
        (lambda state: state | {A.replace("value", "key"): state[A].clone()}, r"nothing uses tensor \S*key\.lora_A"),
        (lambda state: state | {A: torch.zeros(3, 48)}, r"value\.lora_A\.weight has shape \(3, 48\).*\(2, 48\)"),
        (lambda state: state | {A: torch.zeros(2, 48, dtype=torch.int32)}, r"value\.lora_A\.weight holds torch\.int32"),
        (lambda state: {}, "missing"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[State], State], message: str, saved: Path, checkpoint: Path
) -> None:
    save_file(change(load_file(saved / WEIGHTS)), saved / WEIGHTS)
    with pytest.raises(MinipeftError, match=message):
        load_adapter(load_pretrained(checkpoint), saved)


@pytest.mark.parametrize("content", [b"", b"<html>", None])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_damaged_or_missing_file_is_named_in_one_line(
    name: str, content: bytes | None, saved: Path, checkpoint: Path
) -> None:
    (saved / name).unlink() if content is None else (saved / name).write_bytes(content)
    with pytest.raises(MinipeftError, match=name) as caught:
        load_adapter(load_pretrained(checkpoint), saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bias", "all"),
        ("use_dora", True),  # its vectors are not in the file
        ("r", 10**12),
        ("r", 10**400),
        ("lora_alpha", 10**400),
        ("rank_pattern", {"query": 10**400}),
        ("rank_pattern", {"query": 4}),  # A and B have rank 2
        ("rank_pattern", {"query": "4"}),
        ("rank_pattern", {"((": 4}),
        ("rank_pattern", [4]),
        ("layers_to_transform", [0]),  # the file has all layers
        ("layers_to_transform", "one"),
        ("exclude_modules", ["value"]),
        ("modules_to_save", ["classifier", "LayerNorm"]),
        ("modules_to_save", ["classifier", "norm"]),
        ("modules_to_save", 3),
        ("lora_bias", True),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("trainable_token_indices", [3]),
        ("kasa_config", {"beta": 1}),
        ("monteclora_config", {"n": 1}),
        ("peft_type", "LOHA"),
        ("peft_type", None),
        ("peft_type", "MINIPEFT_LORA"),
        ("r", 0),
        ("r", "2"),
        ("lora_alpha", "x"),
        ("lora_dropout", 2),
        ("target_modules", ["dense_h"]),
        ("target_modules", None),
        ("target_modules", [3]),
        ("target_modules", "(("),
        ("target_modules", 7),
    ],
)
def test_a_setting_that_cannot_be_kept_is_refused_by_name(
    field: str, value: Any, saved: Path, checkpoint: Path
) -> None:
    edit_config(saved, **{field: value})
    with pytest.raises(MinipeftError) as caught:
        load_adapter(load_pretrained(checkpoint), saved)
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)
    if field not in ("use_dora", "bias", "rank_pattern", "layers_to_transform", "exclude_modules", "modules_to_save"):
        assert field.removeprefix("lora_") in str(
            caught.value
        )  # the others show in the tensors too, which may be named first


@pytest.mark.parametrize("from_peft", [False, True])
@pytest.mark.parametrize("rank", [10**12, 10**400])
def test_a_rank_that_no_machine_holds_is_refused(rank: int, from_peft: bool, saved: Path, checkpoint: Path) -> None:
    if from_peft:  # peft's weights say nothing of the config
        save_file(load_file(saved / WEIGHTS), saved / WEIGHTS, metadata={"format": "pt"})
    edit_config(saved, r=rank)
    with pytest.raises(MinipeftError, match=str(saved)) as caught:
        load_adapter(load_pretrained(checkpoint), saved)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("details", ["[" * 100_000, "7", '{"base": 5, "config": 5}'])
def test_odd_details_in_the_weights_are_refused_or_ignored(details: str, saved: Path, checkpoint: Path) -> None:
    expected = logits(load_adapter(load_pretrained(checkpoint), saved))
    save_file(load_file(saved / WEIGHTS), saved / WEIGHTS, metadata={"minipeft": details})
    try:
        assert torch.equal(logits(load_adapter(load_pretrained(checkpoint), saved)), expected)
    except MinipeftError as error:
        assert str(saved) in str(error) and "nested too deeply" in str(error)


def test_every_field_of_pefts_config_is_either_understood_or_known_to_change_nothing() -> None:
    """A field that a later peft adds shows here, and is refused in a file that uses it."""
    from peft import LoraConfig

    refused = {
        "fan_in_fan_out",
        *("layers_pattern", "layer_replication", "lora_bias", "target_parameters", "trainable_token_indices"),
        *("alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config"),
    }
    found = {field.name for field in dataclasses.fields(LoraConfig)}
    assert found - LORA_FIELDS - WITHOUT_EFFECT - refused == {"use_dora"}
    assert not refused & (LORA_FIELDS | WITHOUT_EFFECT)


def test_a_model_without_a_method_has_no_adapter(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(MinipeftError, match="no adapter to save"):
        save_adapter(load_pretrained(checkpoint), tmp_path / "adapter")


def test_a_model_takes_one_adapter(saved: Path, checkpoint: Path) -> None:
    model = load_adapter(load_pretrained(checkpoint), saved)
    with pytest.raises(MinipeftError, match="already has"):
        load_adapter(model, saved)
