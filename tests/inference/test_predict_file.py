"""Predictions and metrics over files: every format, the columns, the order, and what is refused."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft import MinipeftError, train
from minipeft.cli.cli import main
from minipeft.data.tasks.splits import CHUNK_CHARACTERS, CHUNK_ROWS, chunk_examples
from minipeft.inference.predict import LoadedRun, load_run

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def single(small_runs: dict[str, Path]) -> LoadedRun:
    return load_run(small_runs["sst2"], "cpu")


def write(path: Path, rows: Rows) -> Path:
    """The rows in the format of the file's ending."""
    from datasets import Dataset

    columns = Dataset.from_list(rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(write(path.parent.parent / path.stem, rows).read_bytes()))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        columns.to_parquet(path)
    elif path.suffix == ".csv":
        columns.to_csv(path, index=False)
    else:
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    return path


def predicted(capsys: pytest.CaptureFixture[str], *arguments: object) -> Rows:
    capsys.readouterr()
    assert main(["predict", *map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


SENTENCES = [
    "A quiet film, not a bad one.",
    'He said: "no, never"',
    "2020-01-01",
    "12",
    "null",
    "# a",
    "naïve 😀 שלום",
    " ",
]
PAIRS: Rows = [
    {"sentence1": text, "sentence2": SENTENCES[-1 - place], "label": place % 2} for place, text in enumerate(SENTENCES)
]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet", "json", "csv.gz"])
@pytest.mark.parametrize("task", ["sst2", "rte"])
def test_every_format_gives_what_the_texts_give_in_their_order(
    task: str, ending: str, small_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("sentence",) if task == "sst2" else ("sentence1", "sentence2")
    rows = [{**dict(zip(names, row.values(), strict=False)), "label": row["label"]} for row in PAIRS]
    path = write(tmp_path / f"in.{ending}", rows)
    expected = load_run(small_runs[task], "cpu").predict(
        [row[names[0]] for row in rows], [row[names[1]] for row in rows] if task == "rte" else None
    )
    assert predicted(capsys, small_runs[task], "--input", path) == expected
    assert predicted(capsys, small_runs[task], "--input", path, "--output", tmp_path / "out.jsonl") == []
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == expected
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [path.name, "out.jsonl"]  # no part is left


def test_a_plain_text_has_a_text_a_line_an_empty_one_too(
    small_runs: dict[str, Path], single: LoadedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["one", "", "two  ", '{"text": 3}', ""]
    (tmp_path / "in.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(texts).encode() + b"\r\n")
    assert predicted(capsys, small_runs["sst2"], "--input", tmp_path / "in.txt") == single.predict(texts)


@pytest.mark.parametrize(
    ("content", "texts"),
    [("good\n\nbad", ["good", "", "bad"]), ('{"text": "good"}\n\n{"text": "bad", "x": 1}\n', ["good", "bad"])],
    ids=["plain text", "jsonl"],
)
def test_standard_input_is_plain_text_or_jsonl(
    content: str,
    texts: list[str],
    small_runs: dict[str, Path],
    single: LoadedRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for more in ([], ["--output", tmp_path / "out.jsonl"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
        lines = predicted(capsys, small_runs["sst2"], "--input", "-", *more)
    assert lines == []
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == single.predict(texts)


def test_the_files_of_a_folder_come_in_the_order_of_their_names(
    small_runs: dict[str, Path], single: LoadedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "b.txt").write_text("second\n")
    write(folder / "c.parquet", [{"text": "third", "sentence": "the task's own column comes first"}])
    write(folder / "a.jsonl", [{"text": "first"}])
    (folder / ".hidden").write_text("?")
    expected = single.predict(["first", "second", "the task's own column comes first"])
    assert predicted(capsys, small_runs["sst2"], "--input", folder) == expected
    (folder / "d.zip").write_bytes(b"")
    assert "d.zip is not one of" in refused(["predict", small_runs["sst2"], "--input", folder], tmp_path, capsys)


def test_columns_go_by_the_names_that_are_given(
    small_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"premise": "A dog sleeps.", "text": "x", "claim": "It rests.", "pair": "y", "label": "entailment"}]
    path = write(tmp_path / "in.csv", rows)
    run = load_run(small_runs["rte"], "cpu")
    flags = ["--input", path, "--text-column", "premise"]
    assert predicted(capsys, small_runs["rte"], *flags, "--pair-column", "claim") == run.predict(
        ["A dog sleeps."], ["It rests."]
    )
    assert predicted(capsys, small_runs["rte"], *flags) == run.predict(["A dog sleeps."], ["y"])
    assert predicted(capsys, small_runs["rte"], "--input", path) == run.predict(["x"], ["y"])


def test_evaluating_a_file_gives_the_metrics_of_the_split(
    small_runs: dict[str, Path], small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(small_runs["rte"])]) == 0
    assert main(["evaluate", str(small_runs["rte"]), "--input", str(small_data / "rte" / "validation.jsonl")]) == 0
    split, file = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert file == split
    write(tmp_path / "in.jsonl", [{"sentence1": "a", "sentence2": "b"}])
    error = refused(["evaluate", small_runs["rte"], "--input", tmp_path / "in.jsonl"], tmp_path, capsys)
    assert "no column 'label'" in error


@pytest.mark.parametrize("separator", [",", "\t"], ids=["csv", "tsv"])
def test_a_table_on_standard_input_needs_a_format(
    separator: str,
    small_runs: dict[str, Path],
    single: LoadedRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = ["good", "bad, truly"] if separator == "\t" else ["good", "bad"]
    content = "".join(f"{number}{separator}{text}\n" for number, text in [("id", "sentence"), *enumerate(texts)])

    def given_input() -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))

    run = small_runs["sst2"]
    given_input()
    assert "--format" in refused(["predict", run, "--input", "-"], tmp_path, capsys)
    name = "csv" if separator == "," else "tsv"
    given_input()
    assert predicted(capsys, run, "--input", "-", "--format", name) == single.predict(texts)
    given_input()
    assert predicted(capsys, run, "--input", "-", "--format", "txt") == single.predict(content.splitlines())
    (tmp_path / "in.data").write_text(content)
    assert predicted(capsys, run, "--input", tmp_path / "in.data", "--format", name) == single.predict(texts)
    assert "one of txt, csv, tsv, jsonl" in refused(
        ["predict", run, "--input", tmp_path / "in.data", "--format", "xml"], tmp_path, capsys
    )


@pytest.mark.parametrize("text", ["A quiet film, not a bad one.", "good", "Well; no", '"No," he said, "never."'])
def test_a_sentence_on_standard_input_is_not_a_header(
    text: str, small_runs: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert len(predicted(capsys, small_runs["sst2"], "--input", "-")) == 1


def test_an_output_may_be_csv_and_is_named_with_its_rows(
    small_runs: dict[str, Path], single: LoadedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.txt").write_text("good\nbad\n")
    output = tmp_path / "out.csv"
    assert main(["predict", str(small_runs["sst2"]), "--input", str(tmp_path / "in.txt"), "--output", str(output)]) == 0
    assert f"{output}: 2 predictions" in capsys.readouterr().err
    rows = list(csv.DictReader(output.open(newline="")))
    for row, expected in zip(rows, single.predict(["good", "bad"]), strict=True):
        assert row.pop("label") == expected["label"]
        assert {name: float(value) for name, value in row.items()} == {
            f"probability_{name}": value for name, value in expected["probabilities"].items()
        }
        assert all(value == round(value, 6) for value in expected["probabilities"].values())


def test_a_run_without_a_finished_epoch_says_how_to_continue(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"task": "sst2", "model": str(tiny_checkpoint), "data": str(small_data), "output": str(tmp_path / "run")}
    with pytest.raises(MinipeftError, match="no epoch was finished, so there is no checkpoint"):
        train(**settings, lr=1e38, warmup_steps=0, batch_size=8, grad_accum=1, epochs=1, device="cpu", quiet=True)
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("no epoch is finished, so there is no adapter. Continue with train.py --resume.")


def test_a_run_that_was_interrupted_gives_a_warning(
    small_runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_run(small_runs["rte"], "cpu")
    assert "not finished" not in caplog.text
    run = shutil.copytree(small_runs["rte"], tmp_path / "run")
    (run / "result.json").unlink()
    epochs = json.loads((run / "config.json").read_text())["epochs"]
    load_run(run, "cpu")
    assert f"of {epochs} epochs): the adapter is from epoch " in caplog.text and "--resume" in caplog.text
    (run / "metrics.jsonl").unlink()
    caplog.clear()
    load_run(run, "cpu")
    assert "not finished (? of 1 epochs)" in caplog.text


def test_an_export_needs_no_training_data_and_leaves_nothing_after_an_error(
    small_runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(small_runs["rte"], tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"source": str(tmp_path / "moved")}))
    loaded = load_run(run, "cpu", "fp32")
    (tmp_path / "full").mkdir()
    with monkeypatch.context() as patch, pytest.raises(MinipeftError, match="No space left"):
        patch.setattr(os, "replace", no_space)
        loaded.export(tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "run"] and not [*(tmp_path / "full").iterdir()]
    assert loaded.export(tmp_path / "full")["examples"] > 0 and (tmp_path / "full" / "model.safetensors").is_file()


def no_space(*paths: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@given(
    lengths=st.lists(st.sampled_from([0, 1, 50, CHUNK_CHARACTERS // 3, CHUNK_CHARACTERS]), max_size=12),
    short=st.integers(0, 2 * CHUNK_ROWS + 1),
)
@settings(max_examples=20, deadline=None)
def test_windows_hold_every_row_once_in_order_and_are_bounded(lengths: list[int], short: int) -> None:
    from minipeft.data.tasks.task import get_task

    texts = [*("x" * length for length in lengths), *map(str, range(short))]
    windows = list(chunk_examples(get_task("sst2"), ((text, None, None) for text in texts)))
    assert [text for window in windows for text in window.texts] == texts
    for window in windows:
        assert 1 <= len(window) <= CHUNK_ROWS and sum(map(len, window.texts[:-1])) < CHUNK_CHARACTERS


# -- refusals --


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"sentence": "b"}\n', "a.jsonl, line 1: sentence is null"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 12}\n', "a.jsonl, line 2: text is 12"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', "a.jsonl: not readable as JSON (line 2: "),
        ("a.jsonl", b'{"text": \n', "a.jsonl: not readable as JSON (line 1: Expecting value, column 9)"),
        (
            "a.json",
            b'[{"text": "a"},\n\n {"text":\n b}]',
            "a.json: not readable as JSON (line 4: Expecting value, column 2)",
        ),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "a.jsonl, line 2: not a JSON object"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}\n', r"a.jsonl, line 2: text is '\ud800', not valid Unicode"),
        ("a.jsonl", b'{"body": "a"}\n', "no column 'sentence' (there are body); --text-column can name another"),
        ("a.jsonl", b"", "the file is empty"),
        ("a.csv", b"text,label\na,1\n,0\n", "a.csv, line 3: text is null"),
        ("a.csv", b'text,label\na,1\n"b,0\n', "a.csv: not readable as csv (line 3: "),
        ("a.csv", b"text,label\na,1\nb,0,7\n", "a.csv, line 3: 3 fields, but the header has 2"),
        ("a.csv", b"text,text\na,1\n", "two columns are called 'text'"),
        ("a.csv", b"text,label\n", "at least one row"),
        ("a.tsv", b"text\tlabel\nb\t\xff\n", "a.tsv, line 2: not UTF-8"),
        ("a.txt", "ä".encode("utf-16"), "a.txt, line 1: not UTF-8"),
        ("a.parquet", b"PAR1 and no more", "not readable as parquet"),
        ("a.json", b'[{"text": "a"},\n{"text": 1}]', "a.json, line 2: text is 1"),
        ("a.zip", b"{}", "unknown ending '.zip'"),
        ("a", b"text", "unknown ending 'none'"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(
    name: str,
    content: bytes,
    expected: str,
    small_runs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / name).write_bytes(content)
    for more in ([], ["--output", tmp_path / "out.jsonl"]):
        assert expected in refused(["predict", small_runs["sst2"], "--input", tmp_path / name, *more], tmp_path, capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "nothing to predict"),
        (["--text", "a", "--output", "b"], "--output has no meaning with --text"),
        (["--text", "a", "--input", "b"], "--text has no meaning with --input"),
        (["--input", "absent.txt"], "absent.txt is not a file"),
        (["--input", "-", "--pair-column", "b"], "--pair-column 'b'"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    arguments: list[str], expected: str, small_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(["predict", small_runs["sst2"], *arguments], tmp_path, capsys)


def test_an_output_that_is_there_is_never_overwritten(
    small_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    (tmp_path / "out.jsonl").write_text("mine")
    flags = ["predict", small_runs["sst2"], "--input", tmp_path / "in.txt", "--output"]
    assert "is there already" in refused([*flags, tmp_path / "out.jsonl"], tmp_path, capsys)
    assert "has no folder" in refused([*flags, tmp_path / "absent" / "out.jsonl"], tmp_path, capsys)
