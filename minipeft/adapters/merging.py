"""A method put into the frozen weights, taken out again, and exported as a whole checkpoint."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch

from minipeft.errors import MinipeftError
from minipeft.files import make_folder
from minipeft.methods import METHODS, method_name
from minipeft.methods.adapted import adapted_layers
from minipeft.model.checkpoint import save_checkpoint
from minipeft.model.classifier import SequenceClassifier


@torch.no_grad()
def merge(model: SequenceClassifier) -> SequenceClassifier:
    """Put the method of `model` into its frozen weights, summed in float32; returns the same model.

    Prediction costs nothing more then: W + s · B A is one weight (Hu et al. 2021, section 4.1).
    Raises MinipeftError for a method that is more than a change of weights. Methods that train the encoder's own
    tensors have nothing to merge.
    """
    if model.method is not None and not METHODS[method_name(model.method)].merges:
        raise MinipeftError(f"{model.method!r} is no change of the encoder's weights, so it cannot be merged")
    for part in adapted_layers(model):
        part.merge()
    return model


@torch.no_grad()
def unmerge(model: SequenceClassifier) -> SequenceClassifier:
    """Undo `merge`: the frozen weights of `model` are what they were, to the bit; returns it. Raises nothing."""
    for part in adapted_layers(model):
        part.unmerge()
    return model


def export(model: SequenceClassifier, folder: str | Path) -> SequenceClassifier:
    """Write a whole checkpoint, adapter merged, that transformers loads; the tokenizer's files come along.

    folder   a new or empty one
    Returns the merged copy, in float32 on the CPU; `model` stays as it is. Raises MinipeftError for a folder that is
    not empty or cannot be written to, and for a method that cannot be merged.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise MinipeftError(f"{folder} is not empty; export to a new folder")
    whole = merge(copy.deepcopy(model).cpu().float())
    whole.encoder.dtype = torch.float32
    make_folder(folder)
    save_checkpoint(whole, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"):
        if model.folder is not None and (model.folder / name).is_file():
            shutil.copyfile(model.folder / name, folder / name)
    return whole
