"""A checkpoint in roberta-base's shape with random weights, and the flags that describe it."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add --data, --tokenizer and --layers."""
    flag = parser.add_argument
    flag("--data", required=True, help="folder with rte/train.parquet and rte/validation.parquet")
    flag("--tokenizer", required=True, help="folder with roberta-base's tokenizer")
    flag("--layers", type=int, default=12, help="of the encoder, which has random weights in roberta-base's shape [12]")


def make_checkpoint(folder: Path, tokenizer: Path, layers: int) -> Path:
    """Write random weights in roberta-base's shape with roberta-base's tokenizer."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    shape = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    RobertaForSequenceClassification(RobertaConfig(**shape, num_hidden_layers=layers)).save_pretrained(folder)
    for path in tokenizer.iterdir():
        shutil.copy(path, folder)
    return folder
