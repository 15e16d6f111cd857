"""docs/deploy.md: the service over HTTP, ONNX Runtime without torch, threads, and what other servers read."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import REPOSITORY, environment, reference_model
from safetensors import safe_open

from minipeft import LoRA, apply, export, load_pretrained, load_run
from minipeft.cli.cli import main

EXAMPLES = REPOSITORY / "docs" / "examples"
TEXTS = ["a good film", "a bad film, which is longer than the other one", "good", "It is not good at all."]
# A process in which importing these fails, as in an environment without them.
WITHOUT = """import runpy, sys
for name in ("torch", "minipeft", "transformers", "datasets"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
BERT_LAYER = [
    *(f"attention.self.{name}" for name in ("query", "key", "value")),
    *("attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"),
]
MODERNBERT_LAYER = ["attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo", "attn_norm", "mlp_norm"]
BERT_EMBEDDINGS = ["word_embeddings", "position_embeddings", "token_type_embeddings"]
BERT_FIELDS = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob "
    "max_position_embeddings type_vocab_size initializer_range layer_norm_eps pad_token_id"
)
MODERNBERT_FIELDS = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_activation "
    "max_position_embeddings initializer_range initializer_cutoff_factor norm_eps norm_bias pad_token_id eos_token_id "
    "bos_token_id cls_token_id sep_token_id global_rope_theta attention_bias attention_dropout "
    "global_attn_every_n_layers local_attention local_rope_theta classifier_activation num_labels mlp_bias "
    "classifier_pooling classifier_bias"
)


@contextmanager
def service(model: Path, log: Path) -> Iterator[str]:
    """The FastAPI application in a process of its own; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "fastapi_app:app", "--port", str(port), "--app-dir", str(EXAMPLES)]
    with open(log, "w") as out:
        process = subprocess.Popen(command, env=environment(MODEL=str(model)), stdout=out, stderr=out)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                httpx.get(f"{address}/openapi.json")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def test_the_service_answers_concurrent_requests_with_the_runs_predictions(
    small_runs: dict[str, Path], tmp_path: Path
) -> None:
    run = load_run(small_runs["sst2"], "cpu", "fp32")
    requests = [[f"{text} {number}" for text in TEXTS[: 1 + number % len(TEXTS)]] for number in range(24)]
    with service(small_runs["sst2"], tmp_path / "log") as address, httpx.Client(base_url=address, timeout=60) as client:

        def ask(texts: list[str]) -> Any:
            answer = client.post("/predict", json={"texts": texts})
            assert answer.status_code == 200, answer.text
            return answer.json()

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, requests))
        assert ask([]) == []
        assert client.post("/predict", json={"texts": "a text"}).status_code == 422
        assert ask(TEXTS) == run.predict(TEXTS)
    for texts, rows in zip(requests, answers, strict=True):
        for row, expected in zip(rows, run.predict(texts), strict=True):
            assert row["label"] == expected["label"]
            assert row["probabilities"] == pytest.approx(expected["probabilities"], abs=2e-6)


@pytest.mark.parametrize("merged", [False, True])
def test_eight_threads_get_the_answers_of_one(merged: bool, small_runs: dict[str, Path], tmp_path: Path) -> None:
    folder = small_runs["rte"]
    if merged:
        assert main(["merge", str(folder), str(tmp_path / "merged")]) == 0
        folder = tmp_path / "merged"
    run = load_run(folder, "cpu", "fp32", pairs=True)
    batches = [[f"{text} {number}" for text in TEXTS * (1 + number % 3)] for number in range(40)]

    def predict(texts: list[str]) -> Any:
        return run.predict_proba(texts, texts[::-1])

    expected = [predict(texts) for texts in batches]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for found, one in zip(pool.map(predict, batches), expected, strict=True):
                np.testing.assert_allclose(found, one, atol=1e-6)


def test_onnx_runtime_predicts_without_torch(small_runs: dict[str, Path], tmp_path: Path) -> None:
    assert main(["export", str(small_runs["sst2"]), str(tmp_path / "onnx"), "--format", "onnx"]) == 0
    script = EXAMPLES / "onnx_predict.py"
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(script), str(tmp_path / "onnx"), *TEXTS],
        cwd=tmp_path,
        env=variables,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    expected = [row["label"] for row in load_run(small_runs["sst2"], "cpu", "fp32").predict(TEXTS)]
    rows = [tuple(line.split("\t")) for line in done.stdout.splitlines()]
    assert rows == list(zip(expected, TEXTS, strict=True))


def test_the_merged_checkpoint_is_a_pipeline_of_transformers(small_runs: dict[str, Path], tmp_path: Path) -> None:
    from transformers import pipeline

    assert main(["merge", str(small_runs["sst2"]), str(tmp_path / "merged")]) == 0
    answers = pipeline("text-classification", str(tmp_path / "merged"), device="cpu")(TEXTS)
    for answer, expected in zip(answers, load_run(small_runs["sst2"], "cpu", "fp32").predict(TEXTS), strict=True):
        assert answer["label"] == expected["label"]
        assert answer["score"] == pytest.approx(max(expected["probabilities"].values()), abs=1e-5)


def tensors_of(model_type: str, layers: int) -> set[str]:
    """The tensors that vLLM and text-embeddings-inference read of a family's classifier."""
    if model_type == "modernbert":
        modules = [f"model.layers.{i}.{name}" for i in range(layers) for name in MODERNBERT_LAYER]
        modules += ["model.embeddings.tok_embeddings", "model.embeddings.norm", "model.final_norm"]
        modules += ["head.dense", "head.norm"]
        modules.remove("model.layers.0.attn_norm")  # the embeddings are normalized already
        return {f"{name}.weight" for name in modules} | {"classifier.weight", "classifier.bias"}
    prefix = "bert" if model_type == "bert" else "roberta"
    head = ["bert.pooler.dense", "classifier"] if model_type == "bert" else ["classifier.dense", "classifier.out_proj"]
    modules = [*head, f"{prefix}.embeddings.LayerNorm"]
    modules += [f"{prefix}.encoder.layer.{i}.{name}" for i in range(layers) for name in BERT_LAYER]
    names = {f"{name}.{leaf}" for name in modules for leaf in ("weight", "bias")}
    return names | {f"{prefix}.embeddings.{name}.weight" for name in BERT_EMBEDDINGS}


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [
        ("bert", "Bert"),
        ("roberta", "Roberta"),
        ("xlm-roberta", "XLMRoberta"),
        ("camembert", "Camembert"),
        ("modernbert", "ModernBert"),
    ],
)
def test_a_merged_checkpoint_has_what_vllm_and_text_embeddings_inference_read(
    model_type: str, architecture: str, tmp_path: Path
) -> None:
    reference_model(model_type, num_labels=3).save_pretrained(tmp_path / "base")
    export(apply(load_pretrained(tmp_path / "base", 3), LoRA(rank=2)), tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["architectures"] == [f"{architecture}ForSequenceClassification"]
    assert config["model_type"] == model_type and config["dtype"] == "float32"
    assert len(config["id2label"]) == len(config["label2id"]) == 3 and config.get("num_labels", 3) == 3
    needed = (MODERNBERT_FIELDS if model_type == "modernbert" else BERT_FIELDS).split()
    assert [name for name in needed if config.get(name) is None] == []
    with safe_open(tmp_path / "merged" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == tensors_of(model_type, config["num_hidden_layers"])
    page = re.sub(r"\s+", " ", (REPOSITORY / "docs" / "deploy.md").read_text(encoding="utf-8"))
    assert config["architectures"][0] in page and "model.safetensors" in page
