"""Every file that is read again says its format, and the file of a newer version is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import details_of
from safetensors.torch import load_file, save_file
from small_runs import small_run

from minipeft import MinipeftError, load_run
from minipeft.adapters.adapter_file import WEIGHTS
from minipeft.files import read_json

NEWER = r": the file has format 2, and this version of minipeft reads format 1\. Install a newer minipeft"


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tiny_checkpoint, small_data, tmp_path_factory.mktemp("finished") / "run").output


def test_the_files_of_a_run_have_format_1(finished: Path) -> None:
    files = [finished / "config.json", finished / "result.json", *finished.glob("checkpoint/*.json")]
    assert len(files) == 4 and all(json.loads(path.read_text())["format"] == 1 for path in files)
    assert details_of(finished / "adapter")["format"] == 1


@pytest.mark.parametrize("name", ["config.json", "result.json", f"adapter/{WEIGHTS}"])
def test_a_newer_format_is_refused_by_name(
    name: str, finished: Path, tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    path = folder / name
    if path.suffix == ".json":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    else:
        details = details_of(path.parent) | {"format": 2}
        save_file(load_file(path), path, metadata={"minipeft": json.dumps(details)})
    with pytest.raises(MinipeftError, match=f"{path.name}{NEWER}"):
        if name == "result.json":
            small_run(tiny_checkpoint, small_data, folder, resume=True)
        else:
            load_run(folder, "cpu")


def test_a_format_that_is_not_minipefts_is_no_number_of_ours(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"format": "pt"}')
    assert read_json(tmp_path / "config.json") == {"format": "pt"}
