"""Data sets of the hub as custom data: a server on 127.0.0.1, the real `datasets` library, online and then offline."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import run_command
from hub_server import COMMIT, HubServer
from hub_support import start_python

from minipeft import MinipeftError
from minipeft.data.tables.remote_tables import hub_rows as hub_data
from minipeft.data.tasks.custom import inspect_custom_data, is_custom
from minipeft.data.tasks.splits import read_split

pytest_plugins = ["hub_fixtures"]

CARD = """---
dataset_info:
- config_name: plain_text
  features:
  - name: review
    dtype: string
  - name: stars
    dtype: int64
  - name: sentiment
    dtype:
      class_label:
        names:
          '0': positive
          '1': negative
configs:
- config_name: plain_text
  data_files:
  - split: train
    path: plain_text/train-*
  - split: test
    path: plain_text/test-*
  - split: unsupervised
    path: plain_text/unsupervised-*
"""
OTHER = """- config_name: other
  data_files:
  - split: train
    path: plain_text/train-*
"""


def parquet(rows: int, start: int = 0, label: int | None = None) -> bytes:
    from datasets import ClassLabel, Dataset, Features, Value

    numbers = range(start, start + rows)
    columns = {
        "review": [f"a {'fine' if number % 2 else 'dull'} film, number {number}" for number in numbers],
        "stars": [number % 5 for number in numbers],
        "sentiment": [1 - number % 2 if label is None else label for number in numbers],
    }
    kinds = {
        "review": Value("string"),
        "stars": Value("int64"),
        "sentiment": ClassLabel(names=["positive", "negative"]),
    }
    file = io.BytesIO()
    Dataset.from_dict(columns, features=Features(kinds)).to_parquet(file)
    return file.getvalue()


@pytest.fixture
def imdb(server: HubServer) -> HubServer:
    """A data set in two shards, called owner/imdb now and imdb formerly."""
    server.renamed = {"datasets/imdb": "datasets/owner/imdb"}
    server.repos["datasets/owner/imdb"] = {
        "README.md": f"{CARD}---\n".encode(),
        "plain_text/train-00000-of-00002.parquet": parquet(30),
        "plain_text/train-00001-of-00002.parquet": parquet(10, 30),
        "plain_text/test-00000-of-00001.parquet": parquet(12, 100),
        "plain_text/unsupervised-00000-of-00001.parquet": parquet(4, 200, label=-1),
    }
    return server


def minipeft(cache: Path, *commands: list[Any], **variables: str) -> list[str]:
    """Run commands in a process with the test's caches; return the status and output of each."""
    script = (
        "import contextlib, io, json; from minipeft.cli.cli import main\n"
        f"for arguments in {[[str(word) for word in command] for command in commands]!r}:\n"
        "    out = io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):\n"
        "        status = main(arguments)\n"
        "    print(json.dumps(f'{status} {out.getvalue()}'))"
    )
    home = {"HF_HOME": str(cache.parent), "HF_DATASETS_CACHE": str(cache.parent / "datasets")}
    out, errors = start_python(script, **home, **variables).communicate(timeout=200)
    said = [json.loads(line) for line in out.splitlines()]
    assert len(said) == len(commands), errors
    return said


@pytest.mark.full
def test_a_run_on_a_data_set_of_the_hub_resumes_and_predicts_offline(
    imdb: HubServer, cache: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    columns = ["--text-column", "review", "--label-column", "sentiment", "--validation", "test"]
    rest = ["--model", tiny_checkpoint, "--method", "head", "--epochs", 1, "--output", run, "--precision", "fp32"]
    (said,) = minipeft(cache, ["train", "--data", "imdb", *columns, *rest])
    assert said.startswith("0 ")
    assert f"owner/imdb:plain_text[train] (Hugging Face hub, commit {COMMIT[:12]}): 40 rows" in said
    assert "2 classes (positive 20, negative 20)" in said and "not read: stars" in said
    config, result = (json.loads((run / f"{name}.json").read_text()) for name in ("config", "result"))
    assert config["source"] == "owner/imdb:plain_text" and config["validation"] == "owner/imdb:plain_text[test]"
    assert config["labels"] == ["positive", "negative"] and config["task"] == "imdb"
    assert result["data"].startswith("owner/imdb:plain_text[train]")
    requests = len(imdb.requests)

    resumed, without_columns, unlabelled, evaluated = minipeft(
        cache,
        ["train", "--data", "owner/imdb", "--resume", *columns, *rest],
        ["train", "--data", "owner/imdb:plain_text", "--resume", *columns[2:], *rest],
        ["evaluate", run, "--split", "unsupervised"],
        ["evaluate", run],
        HF_HUB_OFFLINE="1",
    )
    assert resumed.startswith("0 ")
    assert without_columns.startswith("0 ")  # the columns that are not given are the run's
    assert (
        unlabelled.startswith("2 ")
        and "plain_text[unsupervised]: 4 rows without a sentiment are left out" in unlabelled
    )
    assert json.loads(evaluated.split(" ", 1)[1])["accuracy"] == result["best"]["value"]
    assert len(imdb.requests) == requests


@pytest.mark.full
def test_two_processes_read_the_data_set_that_rank_zero_chose(
    imdb: HubServer, cache: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    flags = ["--data", "imdb", "--text-column", "review", "--label-column", "sentiment", "--method", "head"]
    flags += ["--model", tiny_checkpoint, "--epochs", 1, "--device", "cpu", "--output", tmp_path / "run", "--quiet"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    home = {"HF_HOME": str(cache.parent), "HF_DATASETS_CACHE": str(cache.parent / "datasets")}
    done = run_command(*torchrun, *flags, HF_HUB_OFFLINE="0", OMP_NUM_THREADS="1", **home)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["source"] == "owner/imdb:plain_text"
    assert len(imdb.asked("hub", "train-00000-of-00002.parquet")) <= 2  # one download: HEAD and GET
    done = run_command(*torchrun, *flags, "--text-column", "body", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", **home)
    assert done.returncode != 0 and done.stderr.count("no column 'body'") == 1


READ = """
import json
from minipeft.data.tasks.custom import inspect_custom_data
from minipeft import errors
from minipeft.data.tasks.splits import read_split
from minipeft.errors import MinipeftError
errors.names_flags = True  # as on the command line
columns = {"text_column": "review", "pair_column": None, "label_column": "sentiment", "label_type": "auto"}
for name, validation in CALLS:
    try:
        data = inspect_custom_data("auto", name, validation=validation, **columns)
        texts = read_split(data.task, "validation", data.source).texts
        print(json.dumps([data.source, len(read_split(data.task, "train", data.source)), texts[:1], data.origin]))
    except MinipeftError as error:
        print(json.dumps(str(error)))
"""


def read(cache: Path, calls: list[tuple[str, str | None]], **variables: str) -> list[Any]:
    home = {"HF_HOME": str(cache.parent), "HF_DATASETS_CACHE": str(cache.parent / "datasets")}
    out, errors = start_python(f"CALLS = {calls!r}{READ}", **home, **variables).communicate(timeout=200)
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == len(calls), errors
    return found


@pytest.mark.full
def test_names_configs_and_splits(imdb: HubServer, cache: Path, tmp_path: Path) -> None:
    imdb.repos["datasets/owner/two"] = {
        **imdb.repos["datasets/owner/imdb"],
        "README.md": f"---\n{CARD[CARD.index('configs:') :]}{OTHER}---\n".encode(),
    }
    (tmp_path / "valid.csv").write_text("review;sentiment\nfrom a file;positive\n")
    origin = f" (Hugging Face hub, commit {COMMIT[:12]})"
    calls = [
        ("owner/imdb", "tset"),
        ("owner/two", None),
        ("owner/two:other", "test"),
        ("owner/two:other", None),
        ("owner/none", None),
        ("nothing", None),
        ("imdb:plain_text", str(tmp_path / "valid.csv")),
        (address := "hf://datasets/owner/imdb/plain_text/train-00000-of-00002.parquet", None),
    ]
    found = read(cache, calls)
    assert "--validation tset: no split of owner/imdb:plain_text (there are test, train, unsupervised)" in found[0]
    assert (
        "--data owner/two: no such file or folder, and no data set" in found[1] and "Config name is missing" in found[1]
    )
    assert "--validation test: no split of owner/two:other (there are train)" in found[2]
    assert found[3][:2] == ["owner/two:other", 36] and found[3][3] == origin
    assert "--data owner/none: no such file or folder, and no data set of the hub can be loaded" in found[4]
    assert "--data nothing: no such file or folder, and no data set of the hub can be loaded" in found[5]
    assert found[6] == ["owner/imdb:plain_text", 40, ["from a file"], origin]
    assert found[7][:2] == [address, 27]

    calls = [("imdb", "test"), ("owner/two", None), ("owner/two:plain_text", None), ("owner/none", None), calls[7]]
    imdb.requests.clear()
    found = read(cache, calls, TRANSFORMERS_OFFLINE="1")
    assert found[0] == ["owner/imdb:plain_text", 40, ["a dull film, number 100"], origin]
    assert found[1][:2] == ["owner/two:other", 36]  # the only one in the cache
    assert "no such data set in the cache (there are owner/two:other); TRANSFORMERS_OFFLINE is set" in found[2]
    assert "--data owner/none: no such file or folder, and no such data set in the cache; TRANSF" in found[3]
    assert found[4][:2] == [address, 27]
    assert not imdb.requests


def test_classes_are_read_by_name_alone_and_in_lists() -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    label = ClassLabel(names=["b", "a"])
    kinds = {"text": Value("string"), "label": label, "labels": [label]}
    columns = {"text": ["x", "y", "z"], "label": [1, -1, None], "labels": [[1, 0], [], None]}
    table = hub_data.dataset_table(Dataset.from_dict(columns, features=Features(kinds)), "place")
    assert table.classes == {"label": ("b", "a"), "labels": ("b", "a")}
    assert [tuple(values) for _, values in table.read(["labels", "label", "text"])] == [
        (["a", "b"], "a", "x"),
        ([], None, "y"),
        (None, None, "z"),
    ]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("imdb", True),
        ("owner/name", True),
        ("owner/name:config-1.en", True),
        ("auto", False),
        ("standin", False),
        ("reviews.csv", False),
        ("data/reviews.jsonl.gz", False),
        ("./imdb", False),
        ("a/b/c", False),
        ("a b", False),
        ("../x", False),
        ("", False),
    ],
)
def test_what_may_be_the_name_of_a_data_set(
    data: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_data.is_hub_name(data) == is_custom("auto", data) == expected
    assert not is_custom("rte", data)
    if expected and "/" not in data:
        (tmp_path / data).mkdir()
        assert not is_custom("auto", data)


def test_a_damaged_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, and in this process: the layout is that of the data set that the test above downloads."""
    from datasets import Dataset

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "owner___name" / "default" / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    rows = {"text": [f"text {number}" for number in range(4000)], "label": [number % 2 for number in range(4000)]}
    Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    file = next((tmp_path / "saved").glob("*.arrow"))
    for number in range(2):
        (folder / f"name-train-0000{number}-of-00002.arrow").write_bytes(file.read_bytes())
    usual = {"text_column": None, "pair_column": None, "label_column": None, "label_type": "auto", "validation": None}
    data = inspect_custom_data("auto", "owner/name", **usual)
    assert data.rows == 8000  # each text twice: the two stay in one part, so that a tenth is met only nearly
    assert len(read_split(data.task, "train", data.source)) == pytest.approx(7200, abs=80)
    (folder / "name-train-00001-of-00002.arrow").write_bytes(file.read_bytes()[:-500])
    with pytest.raises(MinipeftError, match=r"name-train-00001-of-00002\.arrow: damaged .*; delete the folder"):
        inspect_custom_data("auto", "owner/name", **usual)
    (folder / "name-train-00001-of-00002.arrow").unlink()
    with pytest.raises(MinipeftError, match="no such data set in the cache; HF_HUB_OFFLINE is set"):
        inspect_custom_data("auto", "owner/name", **usual)
