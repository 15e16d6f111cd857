"""Tables made to harm, and files that claim or become gigabytes: one line that names the row, and bounded memory."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import run_command
from hostile import FUZZ, damaged, refused, survived
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft import MinipeftError, load_pretrained
from minipeft.data.tables.open_table import open_table
from minipeft.data.tasks.splits import read_chunks, read_examples
from minipeft.data.tasks.task import get_task


@given(data=st.data(), ending=st.sampled_from(["jsonl", "csv", "tsv", "parquet", "txt"]))
@settings(FUZZ, max_examples=150)
def test_no_change_of_bytes_in_a_table_gives_anything_but_one_line(
    data: st.DataObject, ending: str, tables: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"in.{ending}"
    path.write_bytes(damaged(data, (tables / path.name).read_bytes()))

    def use() -> None:
        table = open_table(path)
        labelled = ending != "txt"
        for text, _, label in read_examples(get_task("sst2"), table, table.columns[:1], "fix it", labelled):
            assert isinstance(text, str) and label in ((0, 1) if labelled else (None,))

    survived(use)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from datasets import Dataset

    folder = tmp_path_factory.mktemp("tables")
    rows = Dataset.from_dict({"sentence": ["good", 'a "bad" one', "naïve 😀", "a\tb"], "label": [1, 0, 1, 0]})
    rows.to_json(folder / "in.jsonl")
    rows.to_csv(folder / "in.csv", index=False)
    rows.to_csv(folder / "in.tsv", index=False, sep="\t")
    rows.to_parquet(folder / "in.parquet")
    (folder / "in.txt").write_text("\n".join(rows["sentence"]))
    return folder


LABELS = ["1e999", "-1", '"x"', "[0]", "{}", "null", "1" * 400, "NaN", '"' + "9" * 5000 + '"', "0.5"]


@pytest.mark.parametrize("task", ["sst2", "stsb"])
@pytest.mark.parametrize("label", LABELS, ids=lambda label: label[:9])
def test_a_hostile_label_is_refused_with_its_row(task: str, label: str, tmp_path: Path) -> None:
    if task == "stsb" and label in ("0.5", "-1"):
        pytest.skip("a score like any other")
    (tmp_path / task).mkdir()
    texts = "".join(f'"{name}": "a", ' for name in get_task(task).columns)
    (tmp_path / task / "train.jsonl").write_text(f'{{{texts}"label": 1}}\n{{{texts}"label": {label}}}\n')
    refused(lambda: list(read_chunks(get_task(task), "train", str(tmp_path))), "train.jsonl, line 2")


# -- memory: what claims, or becomes, more than a machine has --

LIMIT = 1 << 30  # bytes that reading a bomb may add to what the process has


def make_bombs(folder: Path) -> None:
    """Files of little room on the disk that are, or become, gigabytes."""
    import pyarrow
    from pyarrow import parquet

    for name in ("line.jsonl", "line.csv", "line.tsv", "line.txt"):
        with open(folder / name, "wb") as file:
            file.write(b'text,label\n"' if name.endswith("csv") else b"text\n" if name.endswith("tsv") else b"")
            file.truncate(8 << 30)  # a hole: no room on the disk
    with open(folder / "quote.csv", "w") as file:
        file.write('text,label\n"never closed\n' + ("x" * 1023 + "\n") * (40 << 10))
    (folder / "deep.jsonl").write_bytes(b"[" * (15 << 20) + b"\n")
    (folder / "long.txt").write_bytes(b"a b " * (1 << 20) + b"\n")
    text = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 4000, pyarrow.int32()), pyarrow.array(["x" * 50_000_000])
    )
    parquet.write_table(
        pyarrow.table({"text": text}),
        folder / "once.parquet",  # 2 KB that stand for 200 GB
        store_schema=False,
        dictionary_pagesize_limit=1 << 30,
        compression="zstd",
        write_statistics=False,
    )
    (folder / "bomb").mkdir()
    with zipfile.ZipFile(folder / "bomb" / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", b"")
        with archive.open("archive/data/0", "w", force_zip64=True) as file:
            for _ in range(1200):
                file.write(bytes(1 << 20))
    (folder / "expanded").mkdir()
    name = "roberta.embeddings.word_embeddings.weight"
    torch.save({name: torch.zeros(1).expand(1 << 24, 1 << 20)}, folder / "expanded" / "pytorch_model.bin")
    for name in ("bomb", "expanded"):
        config = {"model_type": "roberta", "vocab_size": 1 << 24, "hidden_size": 1 << 20, "num_hidden_layers": 1}
        (folder / name / "config.json").write_text(json.dumps(config | {"num_attention_heads": 1}))


def read_bombs(folder: Path) -> None:
    """Read each with the memory limited, and print the message; run in a separate process."""
    import resource

    torch.zeros(4) @ torch.zeros(4)
    import pyarrow.parquet  # noqa: F401

    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + LIMIT, size + LIMIT))
    for path in sorted(folder.iterdir()):
        try:
            if path.is_dir():
                load_pretrained(path)
            else:
                list(read_examples(get_task("sst2"), open_table(path), ["text"], "fix it", labelled=False))
            print(json.dumps([path.name, "read"]))
        except MinipeftError as error:
            print(json.dumps([path.name, str(error)]))


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_no_file_takes_more_memory_than_there_is_for_it(tmp_path: Path) -> None:
    make_bombs(tmp_path)
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    script = (
        f"import sys; sys.path[:0] = {paths}; import test_hostile_tables as t; t.read_bombs(t.Path({str(tmp_path)!r}))"
    )
    done = run_command("-c", script, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    said = dict(json.loads(line) for line in done.stdout.splitlines())
    assert set(said) == {path.name for path in tmp_path.iterdir()}
    for name, words in {
        "line.jsonl": "longer than 16 MiB",
        "line.csv": "longer than 16 MiB",
        "line.tsv": "longer than 16 MiB",
        "line.txt": "longer than 16 MiB",
        "quote.csv": "line 2: a quote opens here and is not closed",
        "deep.jsonl": "nested too deeply",
        "long.txt": "line 1: text has 4,194,304 characters",
        "once.parquet": "row 1: text has 50,000,000 characters",
        "bomb": "it is compressed",
        "expanded": "claims more numbers than the file holds",
    }.items():
        assert words in said[name] and str(tmp_path / name) in said[name], said[name]
