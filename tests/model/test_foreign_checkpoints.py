"""Checkpoints as others publish them: further tensors, heads of other tasks, and config.json's labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILY_FIELDS, OTHER_NAMES, SMALL, largest, padded, ragged
from safetensors.torch import load_file, save_file

from minipeft import MinipeftError, load_pretrained, load_run, pack
from minipeft.model.config import EncoderConfig, label_order
from minipeft.model.families import FAMILIES, get_family, load_config
from minipeft.model.pretrained import load_for_training

LENGTHS = (7, 1, 30, 3)
FIELDS = SMALL | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice", "MaskedLM")


def made(
    model_type: str, kind: str, folder: Path, labels: Sequence[str] = ("LABEL_0", "LABEL_1"), **fields: Any
) -> Any:
    """Save a random transformers model of AutoModelFor<kind> with 2 layers of width 16; return it."""
    import transformers

    torch.manual_seed(3)
    shape = {**FIELDS, "max_position_embeddings": 64, **FAMILY_FIELDS.get(model_type, {})}
    shape |= {"max_position_embeddings": 64, "id2label": dict(enumerate(labels[:2] if kind == HEADS[2] else labels))}
    shape |= {"deberta-v2": {"position_buckets": 32}, "modernbert": {"pad_token_id": 0}}.get(model_type, {})
    shape = {OTHER_NAMES.get(model_type, {}).get(name, name): value for name, value in shape.items()}
    config = transformers.AutoConfig.for_model(model_type, **shape)
    model = getattr(transformers, f"AutoModelFor{kind}").from_config(config).eval()
    model.save_pretrained(folder)
    return model


def reference_logits(model: Any, ids: list[list[int]]) -> torch.Tensor:
    with torch.no_grad():
        return model(**padded(ids, model.config.pad_token_id)).logits


def log_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "minipeft"]


# ----------------------------------------------------------------------------------------------------- other heads


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_head_of_another_task_is_new_for_training_and_an_error_for_prediction(
    model_type: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoModel, AutoModelForMultipleChoice

    if kind == "MultipleChoice" and model_type not in {t.model_type for t in AutoModelForMultipleChoice._model_mapping}:
        kind = "TokenClassification"
    made(model_type, kind, tmp_path, ["a", "b", "c"])
    caplog.set_level("INFO", "minipeft")
    model = load_for_training(tmp_path, ["no", "yes"], "single_label_classification").eval()
    (line,) = log_lines(caplog)
    assert "head.out_proj newly initialized" in line and "\n" not in line
    reference, ids = AutoModel.from_pretrained(tmp_path).eval(), ragged(LENGTHS)
    with torch.no_grad():
        hidden = reference(**padded(ids, reference.config.pad_token_id)).last_hidden_state
        expected = torch.cat([row[:length] for row, length in zip(hidden, LENGTHS, strict=True)])
        assert largest(model.encoder(pack(ids, config=model.config)), expected) < 1e-5
    assert model.config.id2label == {0: "no", 1: "yes"} and model.head.out_proj.weight.shape == (2, 16)
    if kind not in ("SequenceClassification", "TokenClassification"):  # minipeft predicts with both
        with pytest.raises(MinipeftError, match=r"is not a classifier|no classification head") as caught:
            load_run(tmp_path, "cpu")
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_head_is_reused_by_the_names_of_its_classes(
    model_type: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference = made(model_type, "SequenceClassification", tmp_path, ["not_entailment", "entailment"])
    ids = ragged(LENGTHS)
    expected = reference_logits(reference, ids)
    caplog.set_level("INFO", "minipeft")
    for labels, order in (
        (["not_entailment", "entailment"], [0, 1]),
        (["entailment", "not_entailment"], [1, 0]),
        (["ENTAILMENT", "Not entailment"], [1, 0]),
        (["entailment", "contradiction"], None),
        (["0", "1"], None),
        (["entailment", "neutral", "not_entailment"], None),
    ):
        caplog.clear()
        model = load_for_training(tmp_path, labels, "single_label_classification").eval()
        assert list(model.config.id2label.values()) == labels
        with torch.no_grad():
            logits = model(pack(ids, config=model.config))
        assert bool(log_lines(caplog)) == (order is None)
        if order is not None:
            assert largest(logits, expected[:, order]) < 1e-5
        elif len(labels) == 2:
            assert largest(logits, expected) > 1e-3 and largest(logits, expected[:, [1, 0]]) > 1e-3
    assert load_for_training(tmp_path, labels[::2], "multi_label_classification").new_tensors  # another kind of labels


def test_a_regression_head_is_reused_for_regression(tmp_path: Path) -> None:
    made("roberta", "SequenceClassification", tmp_path, ["similarity"])
    assert load_for_training(tmp_path, ["score"], "regression").new_tensors == ()
    assert load_for_training(tmp_path, ["score"], "multi_label_classification").new_tensors


def test_a_head_of_another_size_is_new(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reference = made("roberta", "SequenceClassification", tmp_path, ["a", "b", "c"])
    assert load_pretrained(tmp_path, num_labels=3).new_tensors == ()
    model = load_pretrained(tmp_path, num_labels=5)
    (line,) = log_lines(caplog)
    assert "head.dense and head.out_proj newly initialized" in line and "classifier.out_proj.weight" in line
    assert caplog.records[0].levelname == "WARNING"
    assert model.config.num_labels == 5 and model.head.out_proj.weight.shape == (5, 16)
    assert torch.equal(model.encoder.word_embeddings.weight, reference.roberta.embeddings.word_embeddings.weight)
    with pytest.raises(MinipeftError, match="num_labels 0"):
        load_pretrained(tmp_path, num_labels=0)


def test_a_missing_part_of_a_head_is_an_error_for_prediction(tmp_path: Path) -> None:
    made("bert", "SequenceClassification", tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if "pooler" not in n}, path, metadata={"format": "pt"})
    with pytest.raises(MinipeftError, match=r"no classification head in it.*bert\.pooler\.dense\.weight is missing"):
        load_run(tmp_path, "cpu")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_published_files_with_further_tensors_load(
    model_type: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference = made(model_type, "SequenceClassification", tmp_path)
    prefix = get_family(model_type).prefix
    extra = {
        f"{prefix}embeddings.word_embeddings._weight": torch.zeros(300, 16),
        f"{prefix}embeddings.position_ids": torch.arange(64)[None],
        "qa_outputs.weight": torch.zeros(2, 16),
        "mask_predictions.dense.weight": torch.zeros(16, 16),
        "lm_head.bias": torch.zeros(300),
    }
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | extra, path, metadata={"format": "pt"})
    ids = ragged(LENGTHS)
    model = load_pretrained(tmp_path)
    with torch.no_grad():
        assert largest(model(pack(ids, config=model.config)), reference_logits(reference, ids)) < 1e-5
    (line,) = log_lines(caplog)
    assert all(name in line for name in extra) and "newly" not in line


# --------------------------------------------------------------------------------------------------------- labels


LABEL_FIELDS: list[dict[str, Any]] = [
    {},
    {"num_labels": 3},
    {"num_labels": 1},
    {"id2label": {"0": "a", "1": "b"}},
    {"id2label": {"1": "a", "0": "b"}},
    {"id2label": {"0": "a", "1": "b"}, "num_labels": 2},
    {"id2label": {"0": "a", "1": "b"}, "num_labels": 3},
    {"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": 2},
    {"id2label": {"0": "a"}, "label2id": {"other": 0}},
    {"label2id": {"a": 0, "b": 1, "c": 2}},
    {"id2label": None, "num_labels": 4},
    {"problem_type": "multi_label_classification", "num_labels": 1},
]


@pytest.mark.parametrize("fields", LABEL_FIELDS, ids=str)
def test_labels_are_read_as_transformers_does(fields: dict[str, Any], tmp_path: Path) -> None:
    from transformers import BertConfig

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **fields}))
    expected = BertConfig.from_pretrained(tmp_path)
    config = load_config(tmp_path)
    assert config.id2label == dict(sorted(expected.id2label.items())) and config.num_labels == expected.num_labels
    assert config.problem_type == expected.problem_type


@pytest.mark.parametrize(
    "fields",
    [
        {"num_labels": "3"},
        {"num_labels": 0},
        {"num_labels": 10**9},
        {"num_labels": 2.5},
        {"id2label": ["a", "b"]},
        {"id2label": {}},
        {"id2label": {"0": "a", "1": "a"}},
        {"id2label": {"0": "a", "2": "b"}},
        {"id2label": {"zero": "a"}},
        {"problem_type": "single_label_classification", "num_labels": 1},
        {"problem_type": "ranking"},
        {"problem_type": 3},
    ],
    ids=str,
)
def test_labels_that_mean_nothing_are_refused_in_one_line(fields: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **fields}))
    with pytest.raises(MinipeftError) as caught:
        load_config(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_two_classes_of_one_name_are_refused() -> None:
    with pytest.raises(MinipeftError, match=r"id2label.*'yes' stands for two classes"):
        EncoderConfig().with_labels(["yes", "no", "yes"])


@pytest.mark.parametrize(
    ("names", "labels", "order"),
    [
        (["a", "b"], ["b", "a"], [1, 0]),
        (["NEGATIVE", "POSITIVE"], ["negative", "positive"], [0, 1]),
        (["not-entailment", "Entailment"], ["entailment", "not_entailment"], [1, 0]),
        (["LABEL_0", "LABEL_1"], ["1", "0"], [1, 0]),
        (["LABEL_0", "LABEL_1"], ["no", "yes"], None),
        (["-1", "1"], ["1", "-1"], [1, 0]),  # the same without "-", but not with it
        (["a", "A"], ["A", "a"], [1, 0]),
        (["a", "A"], ["a", "b"], None),
        (["a", "A "], ["a", "A"], None),
        (["a", "b"], ["a", "b", "c"], None),
        ([], [], []),
    ],
)
def test_class_names_are_compared_where_that_is_safe(names: list[str], labels: list[str], order: Any) -> None:
    assert label_order(names, labels) == order
