"""Checkpoints that are not one file of safetensors: shards with an index, and pickles of tensors alone."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from minipeft.errors import MinipeftError, first_line, short_repr
from minipeft.files import parse_json, read_small


def read_shards_or_pickle(folder: Path, read_safetensors: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Read the tensors of a folder without model.safetensors; see `read_weights`."""
    for name, read in (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_pickled)):
        if (folder / name).is_file():
            return read(folder / name)
        if (index := folder / f"{name}.index.json").is_file():
            return {tensor_name: tensor for shard in _shards(index) for tensor_name, tensor in read(shard).items()}
    raise MinipeftError(
        f"{folder}: no weights (model.safetensors or pytorch_model.bin, or their shards with an index). "
        "Put them there or name another folder"
    )


def _shards(index: Path) -> list[Path]:
    """Return the files that an index names."""
    try:
        names = sorted(set(parse_json(read_small(index))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MinipeftError(f"{index}: no weight_map in it ({first_line(error)}); fetch the checkpoint again") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise MinipeftError(f"{index}: shard {name!r} is not a plain file name; fetch the checkpoint again")
        if not (index.parent / name).is_file():
            raise MinipeftError(f"{index.parent}: shard {name} is missing; fetch the checkpoint again")
    return [index.parent / name for name in names]


def read_pickled(path: Path) -> dict[str, Tensor]:
    """Read a file of torch.save that holds tensors only; nothing else in it is unpickled."""
    try:
        _check_uncompressed(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load lets through the errors of zip, pickle and storage alike
        raise MinipeftError(f"{path}: not readable as tensors alone ({first_line(error)}); use safetensors") from None
    if not isinstance(content, dict):
        raise MinipeftError(f"{path}: holds no table of tensors; use safetensors")
    # An entry that is not a tensor, such as a module's _extra_state, is never used; the empty tensor keeps its name.
    tensors = {str(name): value if isinstance(value, Tensor) else torch.empty(0) for name, value in content.items()}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise MinipeftError(f"{path}: {short_repr(name)} claims more numbers than the file holds; use safetensors")
    return tensors


def _check_uncompressed(path: Path) -> None:
    """torch never compresses what it saves; what would grow on reading may grow beyond the memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("it is compressed")
