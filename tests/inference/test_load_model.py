"""Adapter folders and merged checkpoints predict what their run does, in minipeft, peft and transformers."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import largest
from safetensors.torch import load_file, save_file

import minipeft
from minipeft import MinipeftError, load_run
from minipeft.cli.cli import main
from minipeft.hub.names import name_in_path

TEXTS = ["a quiet film, not a bad one", "awful", "what is there to say about a long, long film"]


def predicted(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["predict", *map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def probabilities(rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([list(row["probabilities"].values()) for row in rows])


@pytest.fixture(scope="module")
def merged(small_runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("merged")
    for task, run in small_runs.items():
        assert main(["merge", str(run), str(folder / task)]) == 0
    return {task: folder / task for task in small_runs}


def test_an_adapter_folder_predicts_what_its_run_does(
    small_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for text in TEXTS for word in ("--text", text)]
    expected = load_run(small_runs["sst2"], "cpu", "fp32").predict(TEXTS)
    adapter = shutil.copytree(small_runs["sst2"] / "adapter", tmp_path / "adapter")
    assert predicted(capsys, adapter, *words, "--device", "cpu") == expected
    (tmp_path / "in.txt").write_text("\n".join(TEXTS) + "\n")
    assert predicted(capsys, adapter, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.jsonl") == []
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == expected
    pairs = load_run(small_runs["rte"] / "adapter", "cpu")
    assert pairs.predict(TEXTS, TEXTS[::-1]) == load_run(small_runs["rte"], "cpu", "fp32").predict(TEXTS, TEXTS[::-1])


@pytest.mark.parametrize("task", ["sst2", "rte"])
def test_a_merged_checkpoint_predicts_what_its_run_does(
    task: str, merged: dict[str, Path], small_runs: dict[str, Path]
) -> None:
    pairs = TEXTS[::-1] if task == "rte" else None
    expected = load_run(small_runs[task], "cpu", "fp32").predict(TEXTS, pairs)
    found = load_run(merged[task], "cpu").predict(TEXTS, pairs)
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    assert largest(probabilities(found), probabilities(expected)) < 1e-5


def test_an_adapter_and_a_checkpoint_of_several_labels_predict_sets(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    rows = [{"text": f"{text} {n}", "label": ["a", "b"][: n % 3]} for n, text in enumerate(TEXTS * 10)]
    settings = {"label_type": "multilabel", "threshold": 0.3, "method": "head", "epochs": 1, "precision": "fp32"}
    result = minipeft.train(
        data=rows, model=str(tiny_checkpoint), device="cpu", quiet=True, output=str(tmp_path / "run"), **settings
    )
    assert load_run(result.output / "adapter", "cpu").predict(TEXTS) == result.predict(TEXTS)
    load_run(result.output, "cpu").export(tmp_path / "merged")
    found = load_run(tmp_path / "merged", "cpu")
    assert largest(probabilities(found.predict(TEXTS)), probabilities(result.predict(TEXTS))) < 1e-5
    for ours, theirs in zip(
        result.predict(TEXTS), pipeline("text-classification", str(tmp_path / "merged"), top_k=None)(TEXTS), strict=True
    ):
        for row in theirs:
            assert ours["probabilities"][row["label"]] == pytest.approx(row["score"], abs=1e-5)


def test_adapters_and_checkpoints_are_evaluated_on_a_file(
    merged: dict[str, Path], small_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"sentence": text, "label": ("negative", "positive")[n % 2]} for n, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = load_run(small_runs["sst2"], "cpu", "fp32").evaluate_file(str(tmp_path / "a.jsonl"))
    for folder in (small_runs["sst2"] / "adapter", merged["sst2"]):
        assert main(["evaluate", str(folder), "--input", str(tmp_path / "a.jsonl"), "--text-column", "sentence"]) == 0
        metrics = json.loads(capsys.readouterr().out)
        assert metrics["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
        assert metrics["accuracy"] == expected["accuracy"]


@pytest.mark.parametrize("names", [["not_entailment", "entailment"], ["NOT-ENTAILMENT", "Entailment"], ["a", "b"]])
def test_classes_in_another_order_are_matched_by_name(
    names: list[str],
    merged: dict[str, Path],
    small_runs: dict[str, Path],
    small_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """GLUE's integers 0 and 1 are entailment and not_entailment."""
    folder = shutil.copytree(merged["rte"], tmp_path / "rte")
    content = json.loads((folder / "config.json").read_text())
    assert content["id2label"] == {"0": "entailment", "1": "not_entailment"}
    (folder / "config.json").write_text(json.dumps(content | {"id2label": dict(enumerate(names))}))
    weights = load_file(folder / "model.safetensors")
    for name in ("classifier.out_proj.weight", "classifier.out_proj.bias"):
        weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    status = main(["evaluate", str(folder), "--data", str(small_data), "--device", "cpu"])
    if names == ["a", "b"]:
        assert status == 2 and "labels a, b are not the data's" in capsys.readouterr().err
        assert {row["label"] for row in load_run(folder, "cpu", pairs=True).predict(TEXTS, TEXTS)} <= {"a", "b"}
    else:
        expected = load_run(small_runs["rte"], "cpu", "fp32").evaluate()["accuracy"]
        assert status == 0 and json.loads(capsys.readouterr().out)["accuracy"] == expected
        rows = "".join(
            json.dumps({"sentence1": a, "sentence2": b, "label": -1}) + "\n"
            for a, b in zip(TEXTS, TEXTS[::-1], strict=True)
        )
        (tmp_path / "data" / "rte").mkdir(parents=True)
        (tmp_path / "data" / "rte" / "test.jsonl").write_text(rows)
        for model in (folder, small_runs["rte"]):
            flags = [
                "--glue-test",
                str(tmp_path / model.parent.name),
                "--data",
                str(tmp_path / "data"),
                "--device",
                "cpu",
            ]
            assert main(["predict", str(model), *flags]) == 0
        files = [tmp_path / model.parent.name / "RTE.tsv" for model in (folder, small_runs["rte"])]
        assert files[0].read_text() == files[1].read_text()
        (first,) = load_run(folder, "cpu").predict(TEXTS[:1], TEXTS[1:2])
        (same,) = load_run(small_runs["rte"], "cpu", "fp32").predict(TEXTS[:1], TEXTS[1:2])
        assert first["probabilities"][names[1]] == pytest.approx(same["probabilities"]["entailment"], abs=1e-5)


def test_a_merged_checkpoint_works_in_transformers_pipeline_with_label_names(
    merged: dict[str, Path], small_runs: dict[str, Path]
) -> None:
    from transformers import pipeline

    classify = pipeline("text-classification", str(merged["sst2"]), top_k=None)
    expected = load_run(small_runs["sst2"], "cpu", "fp32").predict(TEXTS)
    for ours, theirs in zip(expected, classify(TEXTS), strict=True):
        assert {row["label"] for row in theirs} == {"negative", "positive"}
        for row in theirs:
            assert ours["probabilities"][row["label"]] == pytest.approx(row["score"], abs=1e-5)


@pytest.mark.parametrize("pair_of_texts", [False, True])
def test_an_adapter_of_pefts_predicts_what_peft_does(
    pair_of_texts: bool, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint, num_labels=3)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "classifier" in name:
                parameter.normal_(std=0.3)
    model.eval().save_pretrained(tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    pairs = TEXTS[::-1] if pair_of_texts else None
    inputs = tokenizer(TEXTS, pairs, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits.softmax(1)
    words = [word for text in TEXTS for word in ("--text", text)]
    words += [word for text in pairs or [] for word in ("--pair", text)]
    found = predicted(capsys, tmp_path / "adapter", *words, "--device", "cpu")
    assert list(found[0]["probabilities"]) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert largest(probabilities(found), expected) < 1e-5


def test_what_cannot_predict_is_refused(
    small_runs: dict[str, Path], tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = shutil.copytree(small_runs["sst2"] / "adapter", tmp_path / "adapter")
    content = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(content | {"base_model_name_or_path": "no-such-model"}))
    headless = shutil.copytree(small_runs["sst2"] / "adapter", tmp_path / "headless")
    tensors = load_file(headless / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "classifier" not in name}
    save_file(kept, headless / "adapter_model.safetensors")
    for folder, message in (
        (adapter, "base_model_name_or_path: cannot fetch 'no-such-model'"),
        (headless, "no classification head in it. Train one"),
        (tiny_checkpoint, "no classification head in it. Name a run, an adapter or a merged checkpoint"),
        (tmp_path, "name a run's folder"),
    ):
        assert main(["predict", str(folder), "--text", "a"]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1, error
    with pytest.raises(MinipeftError, match="an adapter or checkpoint has no data"):
        load_run(_custom(headless, tensors), "cpu").evaluate()


def _custom(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, folder / "adapter_model.safetensors")  # no details: neither labels nor task
    return folder


def test_the_base_model_of_another_machine_is_found_by_its_name() -> None:
    snapshot = "/home/a/.cache/huggingface/hub/models--FacebookAI--roberta-base/snapshots/0123"
    assert name_in_path(snapshot) == "FacebookAI/roberta-base"
    assert name_in_path("/home/a/minipeft/weights/roberta-mini") == "roberta-mini"
    assert name_in_path("owner/name") == "owner/name"


def test_no_warning_of_a_new_head_is_printed(small_runs: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_run(small_runs["sst2"] / "adapter", "cpu")
    assert not caplog.records
