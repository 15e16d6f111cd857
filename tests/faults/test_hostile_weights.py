"""Weights made to harm: refused in one line that names them; no pickle runs, no path leads out of the folder."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import contents
from hostile import FUZZ, damaged, refused, safetensors, survived
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import minipeft
from minipeft import load_adapter, load_pretrained
from minipeft.cli.cli import main


@pytest.fixture
def run(small_runs: dict[str, Path]) -> Path:
    return small_runs["sst2"]


def tensor(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


EIGHT = b"\0" * 8
HEADERS = {
    "no byte": b"",
    "half a length": b"\1\2",
    "a header of no byte": safetensors(b""),
    "a header of a terabyte": safetensors(b"{}", claimed=1 << 40),
    "a header of 2^64 - 1 bytes": safetensors(b"{}", claimed=(1 << 64) - 1),
    "no JSON": safetensors(b"nope"),
    "lists in lists": safetensors(b"[" * 100_000),
    "objects in objects": safetensors(b'{"a":' * 50_000),
    "a list": safetensors([]),
    "no UTF-8": safetensors(b'{"\xff": 1}'),
    "offsets beyond the file": safetensors({"a": tensor(data_offsets=[0, 1 << 40])}, EIGHT),
    "negative offsets": safetensors({"a": tensor(data_offsets=[-8, 0])}, EIGHT),
    "offsets backwards": safetensors({"a": tensor(data_offsets=[8, 0])}, EIGHT),
    "two tensors in one place": safetensors({"a": tensor(), "b": tensor()}, EIGHT),
    "a gap": safetensors({"a": tensor(), "b": tensor(data_offsets=[16, 24])}, 3 * EIGHT),
    "a shape of 2^124 numbers": safetensors({"a": tensor(shape=[1 << 62, 1 << 62])}, EIGHT),
    "a shape of none and many": safetensors({"a": tensor(shape=[0, 1 << 60], data_offsets=[0, 0])}),
    "a negative shape": safetensors({"a": tensor(shape=[-2])}, EIGHT),
    "a dtype of objects": safetensors({"a": tensor(dtype="OBJECT")}, EIGHT),
    "a dtype that torch lacks": safetensors({"a": tensor(dtype="F6_E2M3", shape=[4], data_offsets=[0, 3])}, b"abc"),
    "half a byte": safetensors({"a": tensor(dtype="F4", shape=[1], data_offsets=[0, 1])}, b"a"),
    "complex numbers": safetensors({"a": tensor(dtype="C64", shape=[1])}, EIGHT),
    "numbers in the metadata": safetensors({"__metadata__": {"minipeft": 5}, "a": tensor()}, EIGHT),
    "more data than tensors": safetensors({"a": tensor()}, 9 * EIGHT),
}


@pytest.mark.parametrize("damage", HEADERS)
def test_hostile_weights_are_refused(damage: str, model: Path) -> None:
    (model / "model.safetensors").write_bytes(HEADERS[damage])
    refused(lambda: load_pretrained(model), str(model))


@pytest.mark.parametrize("damage", HEADERS)
def test_a_hostile_adapter_is_refused(damage: str, run: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(run / "adapter", tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").write_bytes(HEADERS[damage])
    refused(lambda: load_adapter(load_pretrained(tiny_checkpoint), adapter), str(adapter))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.uint8])
def test_weights_that_are_no_floating_point_numbers_are_refused(dtype: torch.dtype, model: Path) -> None:
    state = load_file(model / "model.safetensors")
    name = next(name for name in state if name.endswith("query.weight"))
    save_file(state | {name: torch.zeros(state[name].shape, dtype=dtype)}, model / "model.safetensors")
    refused(lambda: load_pretrained(model), str(model), name.removeprefix("roberta."), str(dtype))


@given(data=st.data())
@FUZZ
def test_no_change_of_bytes_in_weights_gives_anything_but_one_line(
    data: st.DataObject, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model", dirs_exist_ok=True)
    (folder / "model.safetensors").write_bytes(
        damaged(data, (tiny_checkpoint / "model.safetensors").read_bytes(), 9000)
    )
    survived(lambda: load_pretrained(folder))


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "old format", "bare pickle"])
@pytest.mark.parametrize("place", ["pytorch_model.bin", "checkpoint"])
def test_a_pickle_runs_nothing(
    place: str, kind: str, model: Path, tiny_checkpoint: Path, small_data: Path, run: Path, tmp_path: Path
) -> None:
    whole = shutil.copytree(run, tmp_path / "run")
    paths = [model / place] if place == "pytorch_model.bin" else sorted((whole / place).glob("step-*.safetensors"))
    content = {"weights": {}, "harmless": Malicious(tmp_path / "owned")}
    for path in paths:
        if kind == "bare pickle":
            path.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    if place == "pytorch_model.bin":
        (model / "model.safetensors").unlink()
        refused(lambda: load_pretrained(model), str(path))
    else:
        settings_of_run = json.loads((whole / "config.json").read_text())
        names = ("task", "batch_size", "grad_accum", "epochs")
        again = {name: settings_of_run[name] for name in names}
        before = contents(whole)
        refused(
            lambda: minipeft.train(
                **again,
                model=str(tiny_checkpoint),
                data=str(small_data),
                device="cpu",
                quiet=True,
                output=str(whole),
                resume=True,
            ),
            str(whole / place),
        )
        assert {name: data for name, data in contents(whole).items() if name != "config.json"} == {
            name: data for name, data in before.items() if name != "config.json"
        }
    assert not (tmp_path / "owned").exists()
    if kind == "bare pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert (tmp_path / "owned").exists()  # the pickle was a working one


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 5, None])
def test_a_shard_outside_the_folder_is_not_read(shard: Any, model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {"roberta.embeddings.word_embeddings.weight": shard}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(lambda: load_pretrained(model), str(model))


def test_export_writes_into_its_folder_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels, of which names in files could be made, may hold anything."""
    whole = shutil.copytree(run, tmp_path / "run")
    path = whole / "adapter" / "adapter_model.safetensors"
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        details = json.loads(file.metadata()["minipeft"])
    details["labels"] = ["../../evil", "/etc/evil\n\ud800"]
    save_file(load_file(path), path, metadata={"format": "pt", "minipeft": json.dumps(details)})
    before = contents(tmp_path)
    assert main(["predict", str(whole), "--text", "a"]) == 2  # these are not the labels of the run's task
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(["export", str(whole / "adapter"), str(tmp_path / "out")]) == 0
    after = contents(tmp_path)
    assert {name for name in after if name not in before} == {
        f"out/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }
    assert main(["predict", str(whole / "adapter"), "--text", "a"]) == 0
    assert "evil" in capsys.readouterr().out
