"""What the tests of the hub share: repositories, checkouts, child processes."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save

import minipeft.hub as hub
from minipeft.errors import MinipeftError

ROBERTA = "FacebookAI/roberta-base"
ROOT = Path(hub.__file__).parents[2]
GLUE_CARD = b"""---
configs:
- config_name: rte
  data_files:
  - split: train
    path: rte/train-*
  - split: validation
    path: rte/validation-*
---
"""


def checkpoint(megabytes: float = 1.0) -> dict[str, bytes]:
    """A repository with real safetensors of random weights, and files that are not to be downloaded."""
    torch.manual_seed(0)
    weights = {
        f"roberta.encoder.layer.{i}.output.dense.weight": torch.randn(256, int(256 * megabytes)) for i in (0, 1, 2, 3)
    }
    tokenizer = {"version": "1.0", "model": {"type": "BPE", "vocab": {"<s>": 0}, "merges": []}}
    return {
        "README.md": b"# a model card\n",
        "config.json": json.dumps({"model_type": "roberta", "hidden_size": 256}).encode(),
        "tokenizer.json": json.dumps(tokenizer).encode(),
        "model.safetensors": save(weights),
        "pytorch_model.bin": b"\x80\x02" + bytes(100_000),
        "onnx/model.onnx": b"onnx",
    }


def load_from(package: Path) -> ModuleType:
    """hub.py as if it were installed in the folder `package`."""
    (package / "hub").mkdir(parents=True)
    path = Path(shutil.copy(hub.__file__, package / "hub" / "hub.py"))
    spec = importlib.util.spec_from_file_location("hub_of_another_checkout", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def place(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_bytes(files[name])
    return folder


@contextmanager
def refused_address() -> Iterator[str]:
    """An address that refuses connections: its port is bound, so that nobody else gets it, but not listened on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def error_of(call: Callable[..., object], *args: object) -> str:
    """The message of the MinipeftError that the call raises, which is one line."""
    with pytest.raises(MinipeftError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message and 20 < len(message) < 400
    return message


def start_python(script: str, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=pipe, stderr=pipe, text=True)
