"""TokenClassifier against transformers' ForTokenClassification, in all families; adapters of peft's TOKEN_CLS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import largest, padded, ragged, reference_model
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForTokenClassification

from minipeft import (
    LoRA,
    MinipeftError,
    PromptTuning,
    apply,
    export,
    load_adapter,
    load_pretrained,
    pack,
    save_adapter,
)
from minipeft.data.batches.buckets import COARSE, FINE, pad_to_bucket
from minipeft.model.families import FAMILIES
from minipeft.model.token_classifier import TokenClassifier
from minipeft.problems.problem import IGNORE_INDEX
from minipeft.problems.token_labels import TokenLabels

LENGTHS = (7, 1, 40, 3, 65)
NAMES = [f"tag {number}" for number in range(5)]


def tokens(logits: torch.Tensor, lengths: tuple[int, ...] = LENGTHS) -> torch.Tensor:
    """Rows of a padded batch without the padding, end to end."""
    return torch.cat([row[:length] for row, length in zip(logits, lengths, strict=True)])


def reference_of(model_type: str, **shape: Any) -> Any:
    return reference_model(model_type, len(NAMES), kind="tokens", **shape)


def labels_of(lengths: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    """A label for about half of the tokens."""
    random = np.random.default_rng(seed)
    return [np.where(random.random(n) < 0.5, random.integers(0, 5, n), IGNORE_INDEX).tolist() for n in lengths]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_logits_are_transformers_and_an_export_opens_there(model_type: str, tmp_path: Path) -> None:
    reference = reference_of(model_type)
    reference.save_pretrained(tmp_path / "checkpoint")
    model = load_pretrained(tmp_path / "checkpoint", 5, problem_type="token_classification")
    assert isinstance(model, TokenClassifier) and not model.new_tensors
    assert isinstance(load_pretrained(tmp_path / "checkpoint", 5), TokenClassifier)  # by its architecture
    ids = ragged(LENGTHS)
    with torch.no_grad():
        logits = model(pack(ids, config=model.config))
        expected = reference(**padded(ids, model.config.pad_token_id)).logits
        assert logits.shape == (sum(LENGTHS), 5) and largest(logits, tokens(expected)) < 1e-5
        apply(model, LoRA(rank=2))
        model.config = model.config.with_labels(NAMES, "token_classification")
        export(model, tmp_path / "export")
        theirs = AutoModelForTokenClassification.from_pretrained(tmp_path / "export").eval()
        assert largest(tokens(theirs(**padded(ids, model.config.pad_token_id)).logits), logits) < 1e-5
    assert list(theirs.config.id2label.values()) == NAMES
    content = json.loads((tmp_path / "export" / "config.json").read_text())
    assert content["architectures"][0].endswith("ForTokenClassification") and content.get("problem_type") is None


def test_the_loss_is_transformers_mean_whatever_the_padding() -> None:
    reference = reference_of("roberta")
    ids, labels = ragged(LENGTHS), labels_of(LENGTHS)
    longest = max(LENGTHS)
    rows = torch.tensor([row + [IGNORE_INDEX] * (longest - len(row)) for row in labels])
    problem = TokenLabels(tuple(NAMES))
    with torch.no_grad():
        found = reference(**padded(ids), labels=rows)
        logits, targets = tokens(found.logits), problem.targets(labels, LENGTHS, 5)
        ours = problem.losses(logits, targets).sum() / problem.total_weight(labels)
    assert ours.item() == pytest.approx(found.loss.item(), abs=1e-5)
    for wrong in ([[0]], [[5] * 7]):
        with pytest.raises(MinipeftError, match=r"of sequence 0 are not 7 numbers below 5\. Give each token a label"):
            problem.targets(wrong, (7,), 5)


@pytest.mark.parametrize("sizes", [FINE, COARSE])
def test_dummy_sequences_have_no_label(sizes: Any, tmp_path: Path) -> None:
    reference_of("bert").save_pretrained(tmp_path)
    model = load_pretrained(tmp_path, 5)
    batch = pack(ragged(LENGTHS), labels_of(LENGTHS), config=model.config)
    filled = pad_to_bucket(batch, model.config, sizes=sizes)
    assert filled.labels is not None and len(filled.labels) == filled.total_tokens > batch.total_tokens
    problem = TokenLabels(tuple(NAMES))
    with torch.no_grad():
        loss, padded_loss = (problem.losses(model(one), one.labels).sum() for one in (batch, filled))
    assert loss.item() == pytest.approx(padded_loss.item(), rel=1e-5)


def test_a_prompt_has_no_logits(tmp_path: Path) -> None:
    reference_of("roberta").save_pretrained(tmp_path)
    model = apply(load_pretrained(tmp_path, 5), PromptTuning(3)).eval()
    ids = ragged(LENGTHS)
    with torch.no_grad():
        logits = model(pack(ids, config=model.config))
        alone = torch.cat([model(pack([row], config=model.config)) for row in ids])
    assert logits.shape == (sum(LENGTHS), 5) and largest(logits, alone) < 1e-5


TARGETS = {  # the layers of query and value by their names in transformers
    "distilbert": ["q_lin", "v_lin"],
    "deberta-v2": ["query_proj", "value_proj"],
    "modernbert": ["Wqkv"],
}


def peft_model(folder: Path, model_type: str, **settings: Any) -> Any:
    targets = TARGETS.get(model_type, ["query", "value"])
    config = LoraConfig(task_type=TaskType.TOKEN_CLS, r=4, lora_alpha=8, target_modules=targets, **settings)
    return get_peft_model(AutoModelForTokenClassification.from_pretrained(folder, num_labels=5), config)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_adapter_of_pefts_opens_and_ours_opens_there(model_type: str, tmp_path: Path) -> None:
    reference_of(model_type).save_pretrained(tmp_path / "base")
    theirs = peft_model(tmp_path / "base", model_type).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_(std=0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    ids = ragged(LENGTHS)
    model = load_adapter(load_pretrained(tmp_path / "base", 5), tmp_path / "theirs").eval()
    padding = model.config.pad_token_id
    with torch.no_grad():
        expected = tokens(theirs(**padded(ids, padding)).logits)
        assert largest(model(pack(ids, config=model.config)), expected) < 1e-5
        save_adapter(model, tmp_path / "ours")
        base = AutoModelForTokenClassification.from_pretrained(tmp_path / "base", num_labels=5)
        again = PeftModel.from_pretrained(base, tmp_path / "ours").eval()
        assert largest(tokens(again(**padded(ids, padding)).logits), expected) < 1e-5
    assert json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["task_type"] == "TOKEN_CLS"
    reference_model(model_type, 5).save_pretrained(tmp_path / "sequences")
    with pytest.raises(MinipeftError, match="Load the model with problem_type='token_classification'"):
        load_adapter(load_pretrained(tmp_path / "sequences", 5), tmp_path / "theirs")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_twenty_lora_steps_are_pefts(model_type: str, tmp_path: Path) -> None:
    """Both stay in the mode of evaluation, which has no dropout. ModernBERT's head has a layer that peft freezes."""
    reference_of(model_type).save_pretrained(tmp_path / "base")
    whole_head = {"modules_to_save": ["head"]} if model_type == "modernbert" else {}
    wrapped = peft_model(tmp_path / "base", model_type, **whole_head).eval()
    wrapped.save_pretrained(tmp_path / "start")
    model = load_adapter(load_pretrained(tmp_path / "base", 5), tmp_path / "start").eval()
    problem = TokenLabels(tuple(NAMES))
    optimizers = [
        torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
        for one in (model, wrapped)
    ]
    for step in range(20):
        lengths = tuple(3 + 7 * ((step + number) % 5) for number in range(6))
        ids, labels = ragged(lengths, seed=step), labels_of(lengths, seed=step)
        rows = torch.tensor([row + [IGNORE_INDEX] * (max(lengths) - len(row)) for row in labels])
        batch = pack(ids, labels, config=model.config)
        assert batch.labels is not None
        loss = problem.losses(model(batch), batch.labels).sum() / problem.total_weight(labels)
        reference = wrapped(**padded(ids, model.config.pad_token_id), labels=rows).loss
        assert abs(loss.item() - reference.item()) < 1e-4, step
        for optimizer, value in zip(optimizers, (loss, reference), strict=True):
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
