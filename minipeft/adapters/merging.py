"""A method put into the frozen weights, taken out again, and exported as a whole checkpoint."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from minipeft.data.tokens.tokenizer import load_tokenizer
from minipeft.errors import MinipeftError
from minipeft.files import check_ownership, make_folder, user_path
from minipeft.hub.names import TOKENIZER_FILES
from minipeft.methods import METHODS, method_name
from minipeft.methods.adapted import adapted_layers
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.saved_checkpoint import save_checkpoint
from minipeft.staging import staging_folder


@torch.no_grad()
def merge(model: SequenceClassifier) -> SequenceClassifier:
    """Put the method of `model` into its frozen weights, summed in float32; returns the same model.

    Prediction costs nothing more then: W + s · B A is one weight (Hu et al. 2021, section 4.1).
    Methods that train existing tensors of the encoder have nothing to merge.

    Raises:
        MinipeftError: for a method that is more than a change of weights.
    """
    if model.method is not None and not METHODS[method_name(model.method)].merges:
        raise MinipeftError(
            f"{model.method!r} is not a change of the encoder's weights, so it cannot be merged. "
            "Export the run with --format onnx, or share its adapter folder."
        )
    for part in adapted_layers(model):
        part.merge()
    return model


@torch.no_grad()
def unmerge(model: SequenceClassifier) -> SequenceClassifier:
    """Undo `merge`: the frozen weights of `model` are bitwise what they were; returns it."""
    for part in adapted_layers(model):
        part.unmerge()
    return model


def export(model: SequenceClassifier, folder: str | Path) -> SequenceClassifier:
    """Write a checkpoint with the adapter merged, which transformers loads, and the tokenizer's files.

    Args:
        model: The model; it does not change.
        folder: A new or empty folder. It appears when every file is complete.

    Returns:
        The merged copy, in float32 on the CPU.

    Raises:
        MinipeftError: for a folder that is not empty or cannot be written to, and for a method that cannot be merged.
    """
    check_export_folder(folder)
    merged = merged_copy(model)
    save_merged(merged, folder)
    return merged


def check_export_folder(folder: str | Path) -> None:
    """Raise MinipeftError unless the folder is new or empty."""
    folder = user_path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MinipeftError(f"{folder} is not {'empty' if folder.is_dir() else 'a folder'}; export to a new folder")


def merged_copy(model: SequenceClassifier) -> SequenceClassifier:
    """Return a merged copy of the model, in float32 on the CPU."""
    merged = merge(copy.deepcopy(model).cpu().float())
    merged.encoder.dtype = torch.float32
    return merged


def save_merged(merged: SequenceClassifier, folder: str | Path) -> None:
    """Write a merged model and its tokenizer's files: an error leaves nothing there."""

    def write(model: Path) -> None:
        save_checkpoint(merged, model)
        save_tokenizer(merged, model)

    write_folder(user_path(folder), write)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder next to the new or empty one, then rename it: an error leaves nothing there."""
    with staging_folder(folder) as staging:
        check_export_folder(folder)  # again, now that no other process writes it
        model = staging / "model"
        try:
            make_folder(model)
            write(model)
            if folder.is_dir():
                folder.rmdir()  # it is empty, and a rename onto it fails on Windows
            check_ownership(model)
            model.rename(folder)
        except OSError as error:
            raise MinipeftError(f"{folder}: cannot be written ({error.strerror or error}); choose another") from None


def save_tokenizer(model: SequenceClassifier, target: Path) -> None:
    """Write the tokenizer of a model's checkpoint as one tokenizer.json, or copy files that minipeft cannot read."""
    if (source := model.folder) is None:
        return
    try:
        load_tokenizer(source).save(target)
    except MinipeftError:
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
