"""The bundled roberta-mini: in Hugging Face's format, small, and what a machine without a network runs on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, environment

from minipeft import load_tokenizer, pack
from minipeft.model.language_model import load_language_model
from minipeft.model.pretrained import load_pretrained

FOLDER = REPOSITORY / "weights" / "roberta-mini"
SENTENCES = ["A small dog sleeps.", "Nobody SAW it, but 12 people – at least – heard: « ça va ? » 🙂", "yes"]


def test_it_is_small_and_in_half_precision() -> None:
    assert json.loads((FOLDER / "config.json").read_text())["model_type"] == "roberta"
    assert (FOLDER / "model.safetensors").stat().st_size <= 16 * 2**20


def test_transformers_loads_it_with_the_same_ids_and_the_same_logits() -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    ours, tokenizer = load_language_model(FOLDER).eval(), load_tokenizer(FOLDER)
    theirs = AutoModelForMaskedLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    their_tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    ids = tokenizer.encode(SENTENCES)
    assert [their_tokenizer(sentence)["input_ids"] for sentence in SENTENCES] == ids
    with torch.no_grad():
        expected = torch.cat([theirs(torch.tensor([one])).logits[0] for one in ids])
        torch.testing.assert_close(ours(pack(ids, config=ours.config)), expected, atol=1e-5, rtol=1e-5)


def test_it_is_a_classifier_s_encoder() -> None:
    model = load_pretrained(FOLDER, num_labels=3)
    tokenizer = load_tokenizer(FOLDER)
    batch = pack(tokenizer.encode(SENTENCES, SENTENCES[::-1]), config=model.config)
    assert model(batch).shape == (3, 3)


def test_without_a_network_the_main_job_says_loudly_what_it_runs_on(tmp_path: Path) -> None:
    if (REPOSITORY / "weights" / "roberta-base").exists():
        pytest.skip("weights/roberta-base is here, so the main job runs on that")
    command = [sys.executable, str(REPOSITORY / "train.py"), "--task", "rte", "--method", "lora", "--rank", "2"]
    limits = [
        "--epochs",
        "1",
        "--train-limit",
        "64",
        "--eval-limit",
        "32",
        "--output",
        str(tmp_path / "run"),
        "--quiet",
    ]
    done = subprocess.run(
        command + limits,
        cwd=REPOSITORY,
        env=environment() | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "STAND-IN" in done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "roberta-mini" in result["model"] and "stand-in" in result["data"]
