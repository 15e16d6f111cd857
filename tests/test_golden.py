"""The files of the first release of format 1 open for ever, and predict what they predicted then."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, contents
from safetensors.torch import load

import minipeft
from minipeft.cli.cli import main

GOLDEN = REPOSITORY / "tests" / "golden"
FOLDERS = ("model", "run-glue", "run-reviews", "adapters/lora", "adapters/bitfit", "adapters/peft", "merged")


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = shutil.copytree(GOLDEN, tmp_path / "golden")
    for path in folder.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("/tmp/minipeft-golden", folder.as_posix()), encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def test_every_folder_predicts_what_it_did(golden: Path) -> None:
    spec = importlib.util.spec_from_file_location("make", golden / "make.py")
    assert spec is not None and spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    expected, found = json.loads((golden / "expected.json").read_text()), make.predictions()
    assert found.keys() == expected.keys() == set(FOLDERS) - {"model"}
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, rtol=0, err_msg=name)


@pytest.mark.parametrize(("name", "more"), [("glue", {"task": "rte", "data": "data"}), ("reviews", {})])
def test_a_finished_run_resumes_with_the_result_that_it_had(name: str, more: dict[str, str], golden: Path) -> None:
    """Its checkpoint is read as well: adapter/ is written again from it, with the same tensors."""
    run = golden / f"run-{name}"
    before = contents(run)
    shutil.rmtree(run / "adapter")
    settings = {**({"data": "data/reviews.csv"} | more), "model": "model", "resume": True, "quiet": True}
    result = minipeft.train(output=f"run-{name}", report_to="none", device="cpu", **settings)
    assert result.content == json.loads(before["result.json"])
    after = contents(run)
    for name, tensor in load(before["adapter/adapter_model.safetensors"]).items():
        assert tensor.equal(load(after["adapter/adapter_model.safetensors"])[name])
    assert after["metrics.jsonl"] == before["metrics.jsonl"]


def test_the_command_line_opens_them(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "run-reviews", "--text", "a film"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] in ("bad", "good")
    assert main(["evaluate", "run-glue", "--data", "data", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    best = json.loads((golden / "run-glue" / "result.json").read_text())["best"]["value"]
    assert figures["accuracy"] == pytest.approx(best, abs=1e-6)


def test_they_are_small() -> None:
    for name in FOLDERS:
        files = [path for path in (GOLDEN / name).rglob("*") if path.is_file()]
        assert files and sum(path.stat().st_size for path in files) < 300_000, name
