"""The built wheel, away from the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY


@pytest.mark.full
def test_the_wheel_brings_the_bundled_encoder_and_trains_outside_the_repository(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
        assert f"minipeft/weights/roberta-mini/{name}" in names
    assert {"minipeft/py.typed", "minipeft/compare/page.html.j2"} <= set(names)
    assert not [name for name in names if any(part.startswith(".") for part in name.split("/"))]  # no hidden files

    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    command = [
        sys.executable,
        "-c",
        "import sys; from minipeft.cli.cli import main; sys.exit(main())",
        "train",
        "--task",
        "rte",
        "--method",
        "bitfit",
        "--epochs",
        "1",
        "--train-limit",
        "64",
        "--eval-limit",
        "32",
    ]
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = elsewhere.glob("runs/*/result.json")
    content = json.loads(result.read_text())
    assert "roberta-mini" in content["model"] and "stand-in" in content["data"]
    assert "stand-in" in done.stderr
