"""What the tests share: small random checkpoints in Hugging Face's format, real data and a real tokenizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("MINIPEFT_SHARED", REPOSITORY.parent / "shared"))

# A small shape a family; hidden sizes and head counts are odd on purpose.
SMALL: dict[str, Any] = {"vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3,
                         "intermediate_size": 80, "max_position_embeddings": 514, "layer_norm_eps": 1e-5}


def shared(*parts: str) -> Path:
    """A file of the data that comes beside a checkout; the test is skipped where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(parts)} is not here: set MINIPEFT_SHARED to a folder that holds it")
    return path


def reference_model(model_type: str = "roberta", num_labels: int = 2, seed: int = 0, kind: str = "classification",
                    **shape: Any) -> Any:
    """A transformers model with random weights; larger ones than its own initialisation's, so that logits differ."""
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification

    torch.manual_seed(seed)
    bert = model_type == "bert"
    config = AutoConfig.for_model(model_type, **{
        **SMALL, "num_labels": num_labels, "pad_token_id": 0 if bert else 1, "type_vocab_size": 2 if bert else 1,
        **({"max_position_embeddings": 512} if bert else {}), **shape})
    auto = AutoModelForSequenceClassification if kind == "classification" else AutoModelForMaskedLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "embeddings" not in name:
                parameter.mul_(2.0)
    return model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small random roberta classifier in a folder; it has no tokenizer."""
    folder = tmp_path / "checkpoint"
    reference_model().save_pretrained(folder)
    return folder
