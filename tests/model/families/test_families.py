"""Every encoder family against transformers and peft: logits, gradients, training, adapters, exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DISTILBERT_FIELDS, largest, padded, ragged, reference_model
from peft_agreement import HEADS, check_logits_and_gradients, check_training, moved, pair
from torch import Tensor

from minipeft import (
    AdaLoRA,
    BitFit,
    EncoderConfig,
    Full,
    Houlsby,
    LayerNormTuning,
    LoRA,
    MinipeftError,
    Pfeiffer,
    PrefixTuning,
    PromptTuning,
    SequenceClassifier,
    apply,
    export,
    load_adapter,
    load_pretrained,
    pack,
    save_adapter,
)
from minipeft.methods.adapted import LINEAR_NAMES
from minipeft.model.config import HIDDEN_ACTIVATIONS
from minipeft.model.families import FAMILIES, get_family, load_config
from minipeft.model.pretrained import tensor_names

LENGTHS = (7, 1, 40, 3, 129, 7, 2, 64)
NEW = ("distilbert", "electra", "modernbert")
# (hidden_size, layers, heads, intermediate_size, other fields) of published checkpoints.
PUBLISHED: dict[str, tuple[str, tuple[int, int, int, int], dict[str, int]]] = {
    "distilbert-base": ("distilbert", (768, 6, 12, 3072), {}),
    "distilroberta-base": ("roberta", (768, 6, 12, 3072), {}),
    "electra-small": ("electra", (256, 12, 4, 1024), {"embedding_size": 128}),
    "electra-base": ("electra", (768, 12, 12, 3072), {"embedding_size": 768}),
    "electra-large": ("electra", (1024, 24, 16, 4096), {"embedding_size": 1024}),
    "deberta-v3-xsmall": ("deberta-v2", (384, 12, 6, 1536), {}),
    "deberta-v3-small": ("deberta-v2", (768, 6, 12, 3072), {}),
    "deberta-v3-base": ("deberta-v2", (768, 12, 12, 3072), {}),
    "deberta-v3-large": ("deberta-v2", (1024, 24, 16, 4096), {}),
    "modernbert-base": ("modernbert", (768, 22, 12, 1152), {"local_attention": 128}),
    "modernbert-large": ("modernbert", (1024, 28, 16, 2624), {"local_attention": 128}),
}
QUICK = ("electra-small",)
VOCABULARY = 2000  # smaller than the published ones: the rows of one table do not change the mathematics


def both(folder: Path, model_type: str, num_labels: int = 2, **shape: Any) -> tuple[Any, SequenceClassifier]:
    """transformers' model with random weights, and ours with the same."""
    reference = reference_model(model_type, num_labels, **shape)
    reference.save_pretrained(folder)
    return reference, load_pretrained(folder, num_labels)


def their_logits(reference: Any, ids: list[list[int]]) -> Tensor:
    with torch.no_grad():
        return reference.eval()(**padded(ids, reference.config.pad_token_id)).logits


def our_logits(model: SequenceClassifier, ids: list[list[int]]) -> Tensor:
    with torch.no_grad():
        return model.eval()(pack(ids, config=model.config))


@pytest.mark.parametrize(
    ("model_type", "num_labels", "shape"),
    [
        ("distilbert", 2, {}),
        ("distilbert", 1, {"hidden_size": 35, "num_attention_heads": 5, "intermediate_size": 33}),
        ("distilbert", 3, {"num_hidden_layers": 1, "num_attention_heads": 1}),
        ("electra", 2, {"embedding_size": 20}),
        ("electra", 3, {"embedding_size": 48}),
        ("electra", 1, {"hidden_size": 49, "num_attention_heads": 7, "embedding_size": 77}),
        ("modernbert", 2, {}),
        ("modernbert", 3, {"classifier_pooling": "mean", "local_attention": 6, "classifier_activation": "relu"}),
        ("modernbert", 1, {"hidden_size": 42, "num_attention_heads": 7, "num_hidden_layers": 5, "local_attention": 2}),
        ("modernbert", 2, {"num_hidden_layers": 2, "num_attention_heads": 1, "classifier_pooling": "mean"}),
        ("modernbert", 2, dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True)),
    ],
)
def test_logits_equal_transformers(model_type: str, num_labels: int, shape: dict[str, Any], tmp_path: Path) -> None:
    reference, model = both(tmp_path, model_type, num_labels, **shape)
    ids = ragged(LENGTHS)
    logits = our_logits(model, ids)
    assert logits.std() > 0.1  # the comparison is not one of zeros
    assert largest(logits, their_logits(reference, ids)) < 1e-5


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in PUBLISHED]
)
def test_logits_equal_transformers_at_published_shapes_from_1_to_512_tokens(name: str, tmp_path: Path) -> None:
    model_type, (hidden, layers, heads, inner), fields = PUBLISHED[name]
    reference, model = both(
        tmp_path,
        model_type,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        vocab_size=VOCABULARY,
        **fields,
    )
    ids = ragged((1, 512, 71), VOCABULARY)
    logits = our_logits(model, ids)
    assert logits.std() > 0.05
    assert largest(logits, torch.cat([their_logits(reference, [row]) for row in ids])) < 1e-5


@pytest.mark.parametrize("model_type", NEW)
def test_every_length_from_1_to_512_gives_the_same_logits(model_type: str, tmp_path: Path) -> None:
    reference, model = both(tmp_path, model_type, num_hidden_layers=1)
    for start in range(1, 512, 128):
        ids = ragged(range(start, start + 128, 3))
        assert largest(our_logits(model, ids), their_logits(reference, ids)) < 1e-5
    ids = ragged([512])
    assert largest(our_logits(model, ids), their_logits(reference, ids)) < 1e-5


def test_electra_reads_token_types(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    reference, model = both(tmp_path, "electra", embedding_size=20)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(300)}, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="w2 $A w3", pair="w2 $A w3 $B:1 w3:1", special_tokens=[("w2", 2), ("w3", 3)]
    )
    encodings = tokenizer.encode_batch([("w7 w8 w9", "w20 w30"), ("w5", "w6 w7 w8")])
    inputs = padded([encoding.ids for encoding in encodings], 0, [encoding.type_ids for encoding in encodings])
    with torch.no_grad():
        assert largest(model(pack(encodings, config=model.config)), reference(**inputs).logits) < 1e-5


@pytest.mark.parametrize("activation", HIDDEN_ACTIVATIONS)
@pytest.mark.parametrize("model_type", ["roberta", "bert", *NEW])
def test_hidden_activations_equal_transformers(model_type: str, activation: str, tmp_path: Path) -> None:
    reference, model = both(tmp_path, model_type, hidden_act=activation)
    ids = ragged(LENGTHS)
    logits = our_logits(model, ids)
    assert largest(logits, their_logits(reference, ids)) < 1e-5
    if activation != "gelu":
        reference_model(model_type).save_pretrained(tmp_path / "gelu")
        # The tanh approximation of gelu differs by less than 5e-4 at any point.
        assert largest(logits, our_logits(load_pretrained(tmp_path / "gelu"), ids)) > 1e-5


@pytest.mark.parametrize("method", [Full(), BitFit()], ids=["full", "bitfit"])
@pytest.mark.parametrize("model_type", NEW)
def test_gradients_equal_transformers(model_type: str, method: Any, tmp_path: Path) -> None:
    biases = {"attention_bias": True, "classifier_pooling": "mean"} if model_type == "modernbert" else {}
    reference, model = both(tmp_path, model_type, **biases if method == BitFit() else {})
    apply(model, method)
    ids, labels = ragged(LENGTHS), torch.arange(len(LENGTHS)) % 2
    torch.nn.functional.cross_entropy(model(pack(ids, config=model.config)), labels).backward()
    reference(**padded(ids, 0), labels=labels).loss.backward()
    theirs = {name: parameter.grad for name, parameter in reference.named_parameters()}
    names = tensor_names(model, model.config)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if method == Full():
        assert sorted(names[name] for name in trained) == sorted(theirs)
    for name, parameter in trained.items():
        expected = theirs[names[name]]
        assert parameter.grad is not None and expected is not None, name
        # The gradient of a key bias is zero in exact arithmetic, and rounding noise here.
        assert largest(parameter.grad, expected) < 1e-4 * max(float(expected.abs().max()), 1e-2), name


@pytest.mark.parametrize("model_type", NEW)
def test_lora_of_peft_opens_here_and_trains_the_same_for_20_steps(model_type: str, tmp_path: Path) -> None:
    from peft import LoraConfig

    targets = {"distilbert": ["q_lin", "v_lin"], "modernbert": ["Wqkv"]}.get(model_type, ["query", "value"])
    wrapped, model = pair(
        tmp_path, lambda **fields: LoraConfig(r=3, lora_alpha=5, target_modules=targets, **fields), model_type
    )
    assert model.method.targets == (("qkv",) if model_type == "modernbert" else ("query", "value"))
    check_logits_and_gradients(wrapped, model)
    model.zero_grad(), wrapped.zero_grad()
    check_training(wrapped, model, tmp_path)


def test_default_targets_are_peft_s(tmp_path: Path) -> None:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as theirs

    compared = 0
    for model_type in FAMILIES:
        row = get_family(model_type)
        suffixes = {row.names[row.linears[row.aliases.get(name, name)]] for name in LoRA().targets}
        ours = {path.rpartition(".")[2] for path in suffixes}
        if model_type in theirs:
            assert ours == set(theirs[model_type])
            compared += 1
        else:  # peft asks for target_modules: the same projections
            assert ours in ({"q_lin", "v_lin"}, {"query", "value"}, {"Wqkv"})
    assert compared >= 5


PEFT_TARGETS: dict[str, list[Any]] = {
    "distilbert": [
        ["k_lin", "out_lin"],
        ["q_lin", "lin1", "lin2"],
        r".*layer\.[02]\.ffn\.lin\d",
        "all-linear",
    ],
    "electra": [["query", "output.dense"], ["intermediate.dense"], "all-linear"],
    "modernbert": [["Wqkv", "Wi"], ["Wo"], ["attn.Wo"], r".*layers\.[02]\.mlp\.W[io]", "all-linear"],
}


@pytest.mark.parametrize(
    ("model_type", "targets"), [(family, targets) for family in NEW for targets in PEFT_TARGETS[family]]
)
def test_an_adapter_of_peft_opens_with_the_same_logits(model_type: str, targets: Any, tmp_path: Path) -> None:
    from peft import LoraConfig

    wrapped, model = pair(tmp_path, lambda **f: LoraConfig(r=3, lora_alpha=5, target_modules=targets, **f), model_type)
    check_logits_and_gradients(wrapped, model)


@pytest.mark.parametrize(
    "targets",
    [("query", "value"), ("output",), ("ffn_output",), ("key", "intermediate", "output"), LINEAR_NAMES[:6]],
    ids=str,
)
@pytest.mark.parametrize("model_type", NEW)
def test_a_saved_lora_opens_in_peft_with_the_same_logits(
    model_type: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    from peft import PeftModel

    reference = reference_model(model_type)
    reference.save_pretrained(tmp_path / "base")
    ids = ragged(LENGTHS)
    before = their_logits(reference, ids)
    model = moved(tmp_path / "base", LoRA(rank=3, alpha=8, targets=targets))
    save_adapter(model, tmp_path / "adapter")
    wrapped = PeftModel.from_pretrained(reference, tmp_path / "adapter")
    assert largest(our_logits(model, ids), their_logits(wrapped, ids)) < 1e-5
    assert largest(our_logits(model, ids), before) > 1e-2


REFUSED = [("modernbert", method) for method in (BitFit, Pfeiffer, PrefixTuning)]
METHODS = [BitFit(), LayerNormTuning(), Houlsby(size=5), Pfeiffer(size=5), PrefixTuning(3), PromptTuning(3)]


@pytest.mark.parametrize(
    ("model_type", "method"),
    [(family, method) for family in NEW for method in METHODS if (family, type(method)) not in REFUSED],
    ids=str,
)
def test_a_saved_adapter_of_each_method_loads_with_the_same_logits(
    model_type: str, method: Any, tmp_path: Path
) -> None:
    both(tmp_path / "base", model_type)
    ids = ragged(LENGTHS)
    model = moved(tmp_path / "base", method)
    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(load_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert again.method == method
    assert torch.equal(our_logits(model, ids), our_logits(again, ids))
    assert largest(our_logits(model, ids), our_logits(load_pretrained(tmp_path / "base"), ids)) > 1e-4


@pytest.mark.parametrize("model_type", NEW)
@pytest.mark.parametrize("kind", ["LN_TUNING", "IA3"])
def test_adapters_of_other_methods_open_in_both_directions(kind: str, model_type: str, tmp_path: Path) -> None:
    import peft

    modules, ia3, feedforward = {
        "distilbert": (["sa_layer_norm", "output_layer_norm"], ["k_lin", "v_lin", "lin2"], ["lin2"]),
        "electra": (["LayerNorm"], ["key", "value"], []),
        "modernbert": (["mlp_norm", "final_norm"], ["Wqkv", "mlp.Wo"], ["mlp.Wo"]),
    }[model_type]
    configs: dict[str, Any] = {
        "LN_TUNING": lambda **f: peft.LNTuningConfig(target_modules=modules, **f),
        "IA3": lambda **f: peft.IA3Config(target_modules=ia3, feedforward_modules=feedforward, **f),
    }
    wrapped, model = pair(tmp_path, configs[kind], model_type)
    check_logits_and_gradients(wrapped, model)
    save_adapter(model, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(
        reference_model(model_type, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), tmp_path / "ours"
    )
    ids = ragged(LENGTHS)
    assert largest(our_logits(model, ids), their_logits(again, ids)) < 1e-5


@pytest.mark.parametrize("model_type", NEW)
def test_an_export_loads_in_transformers_with_the_same_logits(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    both(tmp_path / "base", model_type, hidden_act="relu")
    model = moved(tmp_path / "base", LoRA(rank=2, alpha=1, targets=LINEAR_NAMES[:6]))
    export(model, tmp_path / "out")
    theirs, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    assert theirs.config.architectures == [type(theirs).__name__] and theirs.config.model_type == model_type
    ids = ragged(LENGTHS)
    assert largest(our_logits(model, ids), their_logits(theirs, ids)) < 1e-5
    assert load_config(tmp_path / "out") == model.config


@pytest.mark.parametrize("model_type", NEW)
def test_a_pretrained_checkpoint_without_a_head_gets_a_new_one(
    model_type: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference_model(model_type, kind="language model").save_pretrained(tmp_path)
    if model_type == "electra":  # the discriminator, which is what is published
        from transformers import ElectraForPreTraining

        ElectraForPreTraining(reference_model("electra").config).save_pretrained(tmp_path)
    caplog.set_level("INFO", "minipeft")
    model = load_pretrained(tmp_path, num_labels=3)
    assert ("head.dense" in caplog.text) == (model_type != "modernbert")  # which is pretrained there
    assert "head.out_proj" in caplog.text
    assert our_logits(model, ragged(LENGTHS)).shape == (len(LENGTHS), 3)


@pytest.mark.parametrize("model_type", NEW)
@pytest.mark.parametrize("where", ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"])
def test_dropout_has_the_mean_and_spread_of_transformers(model_type: str, where: str, tmp_path: Path) -> None:
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    reference, model = both(tmp_path, model_type, num_hidden_layers=1, **none | {where: 0.3})
    ids = ragged([9]) * 3000
    torch.manual_seed(0)
    with torch.no_grad():
        ours = model.train()(pack(ids, config=model.config))[:, 0]
        theirs = reference.train()(**padded(ids, 0)).logits[:, 0]
    assert theirs.std() > 0.01
    error = float(theirs.std()) / len(ids) ** 0.5
    assert abs(float(ours.mean() - theirs.mean())) < 6 * error
    assert abs(float(ours.std() / theirs.std()) - 1) < 0.1


def test_a_method_that_a_family_cannot_do_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    row = replace(get_family("electra"), unsupported={"pfeiffer": "it has no such place"}, aliases={"value": "query"})
    monkeypatch.setattr("minipeft.model.families.electra.ELECTRA", row)
    config = row.config(hidden_size=8, embedding_size=4, num_attention_heads=2, num_hidden_layers=1, vocab_size=9)
    with pytest.raises(MinipeftError, match="pfeiffer does not work with model_type electra: it has no such place"):
        apply(SequenceClassifier(config), Pfeiffer())
    assert apply(SequenceClassifier(config), LoRA()).method == LoRA(targets=("query",))


def test_bitfit_without_biases_is_refused() -> None:
    model = SequenceClassifier(EncoderConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9))
    for module in model.encoder.modules():
        if getattr(module, "bias", None) is not None:
            module.bias = None
    with pytest.raises(MinipeftError, match="BitFit trains biases, but this roberta model has none"):
        apply(model, BitFit())


def test_targets_may_have_the_names_of_any_family() -> None:
    assert LoRA(targets=("q_lin", "ffn.lin2", "attention.output.dense")).targets == ("query", "ffn_output", "output")


def test_the_config_of_distilbert_is_read_under_its_own_names(tmp_path: Path) -> None:
    from transformers import DistilBertConfig

    theirs = DistilBertConfig(dim=24, n_layers=2, n_heads=3, hidden_dim=40, dropout=0.3, seq_classif_dropout=0.4)
    theirs.save_pretrained(tmp_path)
    ours = load_config(tmp_path)
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_dropout_prob"):
        assert getattr(ours, name) == getattr(theirs, DISTILBERT_FIELDS.get(name, name)), name
    assert ours.head_dropout_prob == 0.4


@pytest.mark.parametrize("model_type", NEW)
def test_modules_to_save_name_the_whole_head(model_type: str, tmp_path: Path) -> None:
    from minipeft.files import read_json

    both(tmp_path, model_type)
    save_adapter(moved(tmp_path, LoRA()), tmp_path / "adapter")
    assert read_json(tmp_path / "adapter" / "adapter_config.json")["modules_to_save"] == HEADS[model_type]


@pytest.mark.parametrize("method", [LoRA(rank=49), LoRA(rank=9, targets="embeddings_project"), AdaLoRA(1, 49)], ids=str)
def test_a_rank_above_a_layers_smaller_dimension_is_refused(method: Any, tmp_path: Path) -> None:
    reference_model("electra", embedding_size=8).save_pretrained(tmp_path)
    with pytest.raises(
        MinipeftError, match=r"rank \d+ of \w+ is above \d+, the smaller dimension.* Choose a rank"
    ) as e:
        apply(load_pretrained(tmp_path), method)
    assert "\n" not in str(e.value)


def test_a_projection_is_a_target_where_it_exists(tmp_path: Path) -> None:
    reference_model("electra", embedding_size=8).save_pretrained(tmp_path / "narrow")
    reference_model("electra", embedding_size=48).save_pretrained(tmp_path / "equal")
    method = LoRA(rank=2, targets=("query", "embeddings_project"), rank_pattern={"0.embeddings_project": 3})
    narrow = apply(load_pretrained(tmp_path / "narrow"), method)
    assert narrow.encoder.embeddings_project.lora_A.shape == (3, 8)
    equal = apply(load_pretrained(tmp_path / "equal"), LoRA(targets=("query", "embeddings_project")))
    assert isinstance(equal.encoder.embeddings_project, torch.nn.Identity)
