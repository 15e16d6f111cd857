"""Where GLUE's data come from: the hub, the cache of `datasets`, a folder from the hub, synthetic data."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import run_command
from hub_server import HubServer
from hub_support import GLUE_CARD

from minipeft import MinipeftError
from minipeft.data.tasks.splits import choose_data, read_split
from minipeft.data.tasks.task import Split, get_task
from minipeft.data.tokens.examples import Encoded
from minipeft.data.tokens.holdout import hold_out
from minipeft.data.tokens.token_table import TokenTable

RTE = get_task("rte")
CHOOSE_AND_READ = """
from minipeft.data.tasks.splits import choose_data, read_split
from minipeft.data.tasks.task import get_task
task = get_task("rte")
for _ in range(2):
    source, description = choose_data(task, "auto")
    print(source, len(read_split(task, "train", source)), "cache" in description)
"""


def columns(count: int, word: str = "text") -> dict[str, list[Any]]:
    texts = [f"{word} {number}" for number in range(count)]
    return {"sentence1": texts, "sentence2": texts, "label": [number % 2 for number in range(count)]}


def parquet(count: int) -> bytes:
    import pyarrow
    from pyarrow import parquet

    content = io.BytesIO()
    parquet.write_table(pyarrow.table(columns(count)), content)
    return content.getvalue()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of `datasets`, without a network."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


@pytest.mark.parametrize("variables", [{}, {"HF_HOME": "home"}, {"HF_HOME": "home", "HF_DATASETS_CACHE": "cache"}])
def test_the_cache_is_that_of_datasets(variables: dict[str, str], tmp_path: Path) -> None:
    script = (
        "from datasets import config\n"
        "from minipeft.hub import datasets_cache\n"
        "print(datasets_cache(), config.HF_DATASETS_CACHE)"
    )
    folders = {name: str(tmp_path / value) for name, value in variables.items()}
    usual = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", script], env={**usual, **folders}, capture_output=True, check=True)
    ours, theirs = done.stdout.split()
    assert ours == theirs


def write_cache(cache: Path, version: str, word: str = "text", count: int = 24) -> Path:
    from datasets import Dataset

    folder = cache / "nyu-mll___glue" / "rte" / "0.0.0" / version
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        Dataset.from_dict(columns(count, word)).to_parquet(folder / "rows.parquet")
        rows = Dataset.from_parquet(str(folder / "rows.parquet"), cache_dir=str(cache / "other"))
        rows.save_to_disk(folder / split)
        next((folder / split).glob("*.arrow")).rename(folder / f"glue-{split}.arrow")
    return folder


# -- the hub --


@pytest.fixture
def server() -> Iterator[HubServer]:
    server = HubServer({})
    server.start()
    yield server
    server.stop()


def choose_and_read(server: HubServer, files: dict[str, bytes], home: Path) -> subprocess.CompletedProcess[str]:
    server.repos["datasets/nyu-mll/glue"] = {"README.md": GLUE_CARD, **files}
    variables = {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_DATASETS_CACHE": str(home / "datasets")}
    return run_command("-c", CHOOSE_AND_READ, HF_HUB_OFFLINE="0", **variables)


def test_hub_and_cache_are_one_source(server: HubServer, tmp_path: Path) -> None:
    files = {f"rte/{split}-00000-of-00001.parquet": parquet(8) for split in ("train", "validation")}
    done = choose_and_read(server, files, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["nyu-mll/glue 8 False", "nyu-mll/glue 8 True"]


def test_a_download_that_fails_is_an_error_and_never_synthetic_data(server: HubServer, tmp_path: Path) -> None:
    done = choose_and_read(server, {}, tmp_path)
    assert done.returncode != 0 and done.stdout == ""
    error = done.stderr.splitlines()[-1]
    assert "nyu-mll/glue rte: the download from the hub failed" in error and "data standin" in error


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_the_data_are_synthetic(variable: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv(variable, "1")
    source, description = choose_data(RTE, "auto")
    assert source == "standin" and f"{variable} is set" in description
    with pytest.raises(MinipeftError, match=f"no data for cola: {variable} is set; pass --data"):
        choose_data(get_task("cola"), "auto")


# -- the cache --


def test_of_two_cached_versions_the_one_written_last_counts(cache: Path) -> None:
    older, newer = write_cache(cache, "bbbb", "old"), write_cache(cache, "aaaa", "new")
    os.utime(older, (1, 1))
    assert read_split(RTE, "train", choose_data(RTE, "auto")[0], 1).texts == ["new 0"]
    os.utime(newer, (0, 0))
    assert read_split(RTE, "train", choose_data(RTE, "auto")[0], 1).texts == ["old 0"]


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.6, 0.95])
def test_a_truncated_cache_gives_one_line(fraction: float, cache: Path) -> None:
    path = write_cache(cache, "aaaa", count=2000) / "glue-train.arrow"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])
    with pytest.raises(MinipeftError, match=r"glue-train\.arrow: damaged .*; delete the folder") as caught:
        read_split(RTE, "train", choose_data(RTE, "auto")[0])
    assert "\n" not in str(caught.value)


# -- a folder from the hub --


@pytest.mark.parametrize("layout", ["rte", ""])
def test_a_snapshot_of_the_hub_is_read(layout: str, tmp_path: Path) -> None:
    folder = tmp_path / layout
    folder.mkdir(exist_ok=True)
    (folder / "train-00000-of-00002.parquet").write_bytes(parquet(8))
    (folder / "train-00001-of-00002.parquet").write_bytes(parquet(4))
    (folder / "validation-00000-of-00001.parquet").write_bytes(parquet(2))
    source, _ = choose_data(RTE, str(tmp_path))
    assert read_split(RTE, "train", source).texts == columns(8)["sentence1"] + columns(4)["sentence1"]
    assert len(read_split(RTE, "validation", source)) == 2
    with pytest.raises(MinipeftError, match=r"no test\.parquet.*\(there are train, validation\)"):
        read_split(RTE, "test", source)
    (folder / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(MinipeftError, match=r"train-00000-of-00002\.parquet is missing"):
        choose_data(RTE, str(tmp_path))


# -- --holdout --


def test_a_holdout_is_stratified_by_class() -> None:
    labels = array("q", [int(number % 10 == 0) for number in range(100)])
    examples = Encoded(Split(RTE, [], None, labels), TokenTable.from_sequences([[number] for number in range(100)]))
    for seed in range(5):
        rest, held = hold_out(examples, 0.1, seed)
        assert sum(held.split.labels) == 1 and len(held) == 10 and sum(rest.split.labels) == 9
