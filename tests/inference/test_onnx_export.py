"""ONNX programs in ONNX Runtime against the model, in every family; what is refused, and what an error leaves."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import contents, padded, ragged, reference_model, refused
from small_runs import small_run

from minipeft import MinipeftError, SequenceClassifier, apply, load_pretrained, load_run, load_tokenizer, pack
from minipeft.cli.cli import main
from minipeft.inference.onnx_export import OnnxClassifier, export_onnx
from minipeft.methods import get_method
from minipeft.model.attention.padded import padded_batch
from minipeft.model.families import FAMILIES

LENGTHS = (7, 1, 40, 3, 129, 300, 2, 64)
BATCHES = ((1,), (2,), (512,), (1, 1), LENGTHS)
LARGEST_INT8_ERROR = 0.1  # of the spread of the logits; 0.05 is one prediction of a hundred on SST-2
TEXTS = ["a good film", "a bad film, which is longer than the other", "good"]


def small_model(model_type: str, folder: Path, kind: str = "classification", **shape: Any) -> SequenceClassifier:
    """A tiny random model of a family, loaded from a checkpoint of transformers."""
    reference_model(model_type, kind=kind, num_hidden_layers=2, **shape).save_pretrained(folder)
    return load_pretrained(folder)


def inputs_of(model: SequenceClassifier, lengths: Sequence[int]) -> tuple[list[list[int]], dict[str, torch.Tensor]]:
    """Random sequences, and the same as the inputs of a padded program; token types change within a sequence."""
    ids = ragged(lengths)
    types = [[int(place > 2) for place in range(len(row))] for row in ids]
    return ids, padded(ids, model.config.pad_token_id, types if model.config.type_vocab_size > 1 else None)


@torch.no_grad()
def packed_logits(model: SequenceClassifier, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits of the packed model, of one sequence after the other."""
    from minipeft.data.tokens.tokenizer import TokenIds

    found = []
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        types = inputs.get("token_type_ids", torch.zeros_like(inputs["input_ids"]))[row][mask].tolist()
        found.append(model(pack([TokenIds(inputs["input_ids"][row][mask].tolist(), types)], config=model.config)))
    return torch.cat(found)


def check_program(model: SequenceClassifier, folder: Path) -> None:
    """The program gives the model's logits in ONNX Runtime, for any number and length of sequences."""
    export_onnx(model, lambda other: packed_logits(other, inputs_of(model, (5, 9))[1]), folder, False)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    shapes = {one.name: (one.type, one.shape) for one in session.get_inputs()}
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if model.config.type_vocab_size > 1 else [])]
    assert shapes == dict.fromkeys(names, ("tensor(int64)", ["batch", "length"]))
    assert [one.name for one in session.get_outputs()] == ["logits"]
    for lengths in BATCHES:
        _, inputs = inputs_of(model, lengths)
        expected = packed_logits(model, inputs)
        logits = session.run(["logits"], {name: x.numpy() for name, x in inputs.items()})[0]
        assert logits.dtype == np.float32 and logits.shape[0] == len(lengths)
        if logits.ndim == 3:
            logits = logits[inputs["attention_mask"].bool().numpy()]
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["classification", "tokens"])
@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_a_padded_batch_has_the_logits_of_the_packed_one(model_type: str, kind: str, tmp_path: Path) -> None:
    model = small_model(model_type, tmp_path, kind)
    _, inputs = inputs_of(model, LENGTHS)
    batch = padded_batch(**{"token_type_ids": None, **inputs}, config=model.config)
    logits = model(batch)
    if kind == "tokens":
        logits = logits[inputs["attention_mask"].bool().flatten()]
    torch.testing.assert_close(logits, packed_logits(model, inputs), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_padded_batch_of_modernbert_with_mean_pooling(tmp_path: Path) -> None:
    model = small_model("modernbert", tmp_path, classifier_pooling="mean")
    _, inputs = inputs_of(model, LENGTHS)
    batch = padded_batch(**{"token_type_ids": None, **inputs}, config=model.config)
    torch.testing.assert_close(model(batch), packed_logits(model, inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["houlsby", "pfeiffer", "prefix_tuning"])
@torch.no_grad()
def test_a_method_that_does_not_merge_is_part_of_the_padded_model(method: str, tmp_path: Path) -> None:
    model = apply(small_model("bert", tmp_path), get_method(method)())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))
    _, inputs = inputs_of(model, (7, 1, 40, 129))
    batch = padded_batch(**inputs, config=model.config)
    torch.testing.assert_close(model(batch), packed_logits(model, inputs), atol=1e-5, rtol=0)


def test_a_sequence_of_padding_alone_does_not_change_the_others(tmp_path: Path) -> None:
    model = small_model("roberta", tmp_path)
    _, inputs = inputs_of(model, (7, 4))
    inputs["attention_mask"][1] = 0
    with torch.no_grad():
        logits = model(padded_batch(**inputs, token_type_ids=None, config=model.config))
    assert logits.isfinite().all()
    expected = packed_logits(model, {name: x[:1] for name, x in inputs.items()})
    torch.testing.assert_close(logits[:1], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        ("bert", "tokens"),
        ("deberta-v2", "classification"),
        *(
            pytest.param(name, kind, marks=pytest.mark.full)
            for name in FAMILIES
            for kind in ("classification", "tokens")
            if (name, kind) not in (("bert", "tokens"), ("deberta-v2", "classification"))
        ),
    ],
)
def test_a_program_has_the_models_logits(model_type: str, kind: str, tmp_path: Path) -> None:
    check_program(small_model(model_type, tmp_path / "model", kind), tmp_path / "onnx")


@pytest.mark.full
@pytest.mark.parametrize("method", ["houlsby", "pfeiffer", "prefix_tuning", "vera", "dora", "ia3"])
def test_a_program_of_every_kind_of_method(method: str, tmp_path: Path) -> None:
    model = apply(small_model("roberta", tmp_path / "model", max_position_embeddings=700), get_method(method)())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    check_program(model, tmp_path / "onnx")


@pytest.mark.full
def test_modernberts_mean_is_exported(tmp_path: Path) -> None:
    check_program(small_model("modernbert", tmp_path / "model", classifier_pooling="mean"), tmp_path / "onnx")


def test_the_command_writes_a_folder_that_predicts_without_minipeft(
    small_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = small_runs["sst2"], tmp_path / "onnx"
    assert main(["export", str(run), str(folder), "--format", "onnx", "--int8"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["folder"] == str(folder) and said["examples"] == 256
    assert 0 < said["largest_logit_difference"] < 1e-4 < said["int8_largest_logit_difference"] < 1
    files = {path.name for path in folder.iterdir()}
    assert files == {"model.onnx", "model_int8.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert (folder / "model_int8.onnx").stat().st_size < (folder / "model.onnx").stat().st_size
    assert not any(str(Path(__file__).parent.parent).encode() in content for content in contents(folder).values())
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "negative", "1": "positive"}
    expected = load_run(run, "cpu", "fp32").predict_proba(TEXTS)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    ids = load_tokenizer(folder).encode(TEXTS)
    logits = session.run(["logits"], {name: x.numpy() for name, x in padded([list(row) for row in ids]).items()})[0]
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), expected, atol=1e-5)


@pytest.mark.full
def test_adapters_and_merged_checkpoints_are_exported_as_the_run_is(
    small_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_runs["sst2"]
    assert main(["merge", str(run), str(tmp_path / "merged")]) == 0
    programs = []
    for number, folder in enumerate((run, run / "adapter", tmp_path / "merged")):
        assert main(["export", str(folder), str(tmp_path / str(number)), "--format", "onnx"]) == 0
        merged = load_pretrained(tmp_path / "merged")
        programs.append(OnnxClassifier(tmp_path / str(number) / "model.onnx", merged))
    batch = pack(load_tokenizer(tmp_path / "merged").encode(TEXTS), config=merged.config)
    first, *others = (program(batch) for program in programs)
    for logits in others:
        torch.testing.assert_close(logits, first, atol=1e-5, rtol=0)


def test_int8_predicts_as_float32_does(tmp_path: Path) -> None:
    """roberta-mini with a channel that is far larger than the others, as trained encoders have them."""
    torch.manual_seed(0)
    model = load_pretrained("roberta-mini")
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.attention_layer_norm.weight[7] *= 20
            layer.output_layer_norm.weight[7] *= 20
    ids = [row.tolist() for row in torch.randint(5, model.config.vocab_size, (64, 20))]
    batches = [pack(ids[start : start + 16], config=model.config) for start in range(0, 64, 16)]

    @torch.no_grad()
    def logits_of(other: SequenceClassifier) -> torch.Tensor:
        return torch.cat([other(batch) for batch in batches])

    expected = logits_of(model)
    export_onnx(model, logits_of, tmp_path / "onnx", int8=True)
    assert torch.equal(logits_of(model), expected)  # the model does not change
    size, of_int8 = ((tmp_path / "onnx" / name).stat().st_size for name in ("model.onnx", "model_int8.onnx"))
    assert of_int8 < size / 2  # roberta-mini's weights, not the graph, are most of both
    logits = logits_of(OnnxClassifier(tmp_path / "onnx" / "model_int8.onnx", model))
    error = (logits - expected).std() / expected.std()
    assert error < LARGEST_INT8_ERROR


def test_what_cannot_be_exported_is_one_line(
    small_runs: dict[str, Path],
    tiny_checkpoint: Path,
    small_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompt = small_run(tiny_checkpoint, small_data, tmp_path / "prompt", method="prompt_tuning", epochs=1).output
    run, onnx = str(small_runs["sst2"]), ["--format", "onnx"]
    place = tmp_path / "place"
    place.mkdir()
    assert "prompt_tuning: its prompt lengthens" in refused(["export", prompt, place / "new", *onnx], place, capsys)
    assert "--int8 has no meaning without" in refused(["export", run, place / "new", "--int8"], place, capsys)
    (place / "full").mkdir()
    (place / "full" / "file").touch()
    assert "is not empty" in refused(["export", run, place / "full", *onnx], place, capsys)
    with pytest.raises(MinipeftError, match=r"not on the CPU in float32. Call load_run"):
        load_run(run, "cpu", "bf16").export_onnx(place / "new")
    for name in ("onnx", "onnxscript", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            said = refused(["export", run, place / "new", *onnx], place, capsys)
            assert f"{name} is not installed. Run pip install 'minipeft[onnx]'" in said


def test_an_export_that_fails_leaves_nothing(
    small_runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(small_runs["sst2"], "cpu", "fp32")
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.export_onnx(tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []
