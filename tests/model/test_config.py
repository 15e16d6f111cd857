"""config.json of every family as transformers writes it, and configs that are damaged or of something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minipeft import EncoderConfig, MinipeftError
from minipeft.model.families import load_config

FAMILIES = ("roberta", "xlm-roberta", "camembert", "bert")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
)


def write(folder: Path, content: Any) -> Path:
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize(
    "shape",
    [
        {},
        SMALL,
        {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.2, "pad_token_id": 5},
        {"id2label": {0: "no", 1: "perhaps", 2: "yes"}},
    ],
    ids=["defaults", "small", "other", "labels"],
)
def test_a_config_of_transformers_is_read_as_it_means(model_type: str, shape: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(model_type, **shape)
    theirs.save_pretrained(tmp_path)
    ours = load_config(tmp_path)
    for name in (
        "model_type",
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "type_vocab_size",
        "pad_token_id",
        "layer_norm_eps",
        "initializer_range",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "classifier_dropout",
        "id2label",
        "num_labels",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_we_write_is_read_the_same_by_us_and_by_transformers(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = EncoderConfig(
        model_type=model_type,
        hidden_size=30,
        num_attention_heads=5,
        classifier_dropout=0.4,
        pad_token_id=7,
        layer_norm_eps=1e-7,
    ).with_labels(["no", "perhaps", "yes"])
    write(tmp_path, config.to_dict())
    assert load_config(tmp_path) == config
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert theirs.id2label == config.id2label and theirs.label2id == {"no": 0, "perhaps": 1, "yes": 2}
    for name in (
        "model_type",
        "hidden_size",
        "num_attention_heads",
        "classifier_dropout",
        "pad_token_id",
        "layer_norm_eps",
        "vocab_size",
        "max_position_embeddings",
        "type_vocab_size",
    ):
        assert getattr(theirs, name) == getattr(config, name), name


def test_bert_is_silent_about_its_defaults(tmp_path: Path) -> None:
    from transformers import BertConfig

    ours, theirs = load_config(write(tmp_path, {"model_type": "bert"})), BertConfig()
    assert (
        ours.vocab_size,
        ours.pad_token_id,
        ours.layer_norm_eps,
        ours.type_vocab_size,
        ours.max_position_embeddings,
    ) == (theirs.vocab_size, 0, theirs.layer_norm_eps, theirs.type_vocab_size, theirs.max_position_embeddings)


def test_the_longest_sequence_follows_from_the_offset() -> None:
    assert EncoderConfig().max_length == 512 and EncoderConfig(pad_token_id=0).max_length == 513
    assert EncoderConfig(model_type="bert", max_position_embeddings=512, pad_token_id=0).max_length == 512


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"hidden_act": "mish"}, "hidden_act 'mish'"),
        ({"hidden_act": None}, "hidden_act None"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"num_attention_heads": 7}, "hidden_size 768 is not a multiple of num_attention_heads 7"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0"),
        ({"hidden_size": 76.8}, r"hidden_size 76\.8"),
        ({"vocab_size": "many"}, "vocab_size 'many'"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob 1\.0"),
        ({"hidden_dropout_prob": None}, "hidden_dropout_prob"),
        ({"attention_probs_dropout_prob": None}, "attention_probs"),
        ({"pad_token_id": 50265}, "pad_token_id 50265"),
        ({"pad_token_id": None}, "pad_token_id"),
        ({"max_position_embeddings": 2}, "max_position_embeddings 2"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps"),
        ({"layer_norm_eps": None}, "layer_norm_eps"),
        ({"initializer_range": "x"}, "initializer_range"),
        ({"id2label": ["a", "b"]}, "config.json"),
        ({"id2label": {"x": "y"}}, "config.json"),
        ({"id2label": {"1": "a", "3": "b"}}, "id2label"),
    ],
)
def test_a_field_that_cannot_be_kept_is_named_with_its_value(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(MinipeftError, match=message) as caught:
        load_config(write(tmp_path, {"model_type": "roberta"} | fields))
    assert "config.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", "{}", '{"model_type": null}', '{"model_type": []}'])
def test_a_file_that_is_no_config_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(MinipeftError, match=r"config\.json"):
        load_config(write(tmp_path, content))


@given(fields=st.dictionaries(st.sampled_from([*EncoderConfig.__dataclass_fields__, "hidden_act", "is_decoder"]), JSON))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_values_give_a_config_or_one_clear_error(fields: dict[str, Any], tmp_path: Path) -> None:
    try:
        config = load_config(write(tmp_path, {"model_type": "roberta"} | fields))
    except MinipeftError as error:
        assert "\n" not in str(error)
    else:
        assert config.max_length >= 1 and config.num_labels >= 1 and 0 <= config.head_dropout_prob < 1
        assert config.layer_norm_eps >= 0 and config.initializer_range >= 0
        assert set(config.id2label) == set(range(config.num_labels))
