"""A model → a checkpoint in Hugging Face's format, through its family's table of names."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from minipeft.files import write_atomically, write_json
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.families import family_of
from minipeft.model.pretrained import tensor_names
from minipeft.problems import problem_row


def save_checkpoint(model: Any, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write config.json and model.safetensors as transformers reads them; `folder` must exist."""
    save_config(model, folder, dtype)
    tensors = model.state_dict()
    names = tensor_names(model, model.config)
    state = {theirs: tensors[ours].to(dtype).contiguous() for ours, theirs in names.items()}
    write_atomically(folder / "model.safetensors", lambda path: save_file(state, path, metadata={"format": "pt"}))


def save_config(model: Any, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write config.json alone, for weights of `dtype`."""
    config = model.config
    of_labels = problem_row(config.problem_type, config.num_labels).architecture
    kind = of_labels if isinstance(model, SequenceClassifier) else "ForMaskedLM"
    architectures = [family_of(config).architecture + kind]
    content = {"architectures": architectures, "dtype": str(dtype).removeprefix("torch.")}
    write_json(folder / "config.json", config.to_dict() | content)
