"""Texts that no one expects, in training data, on the command line and in files: predicted, or refused with the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import contents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minipeft
from minipeft import MinipeftError
from minipeft.cli.cli import main
from minipeft.inference.predict import LoadedRun, load_run

ODD = {
    "nothing": "",
    "a space": " ",
    "one token": "a",
    "100,000 words": "word " * 100_000,
    "one word of 500,000 letters": "x" * 500_000,
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 \U0001f9ff",
    "right to left": "שלום \u202eعالم\u202c",
    "NUL": "a\0b\0",
    "control characters": "\x01\x1b[31m\x7f\x85\u2028\ufeff",
    "combining marks": "a" + "\u0301" * 1000,
    "private and unassigned": "\ue000\U000e0001\U0010ffff",
    "special tokens": "<s></s><pad><mask><unk>",
    "a date": "2020-01-01T00:00:00",
}
HALF = "half \ud83d a character"


def train(data: Path, model: Path, output: Path) -> Any:
    return minipeft.train(
        task="sst2",
        model=str(model),
        data=str(data),
        epochs=1,
        batch_size=4,
        grad_accum=1,
        device="cpu",
        quiet=True,
        output=str(output),
    )


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def run(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    """A run that was trained and evaluated on all of them."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "sst2").mkdir()
    rows = lines([{"sentence": text, "label": number % 2} for number, text in enumerate(ODD.values())])
    for split in ("train", "validation"):
        (folder / "sst2" / f"{split}.jsonl").write_text(rows)
    train(folder, tiny_checkpoint, folder / "run")
    return load_run(folder / "run", "cpu")


@pytest.fixture(scope="module")
def expected(run: LoadedRun) -> dict[str, list[dict[str, Any]]]:
    """What the run predicts for each in Python, as the second of two texts."""
    return {name: run.predict(["first", text]) for name, text in ODD.items()}


def folder_of(run: LoadedRun) -> str:
    return str(Path(run.settings["output"]))


@pytest.mark.parametrize("name", ODD)
def test_the_command_line_predicts_it(name: str, run: LoadedRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", folder_of(run), "--text", ODD[name]]) == 0
    assert json.loads(capsys.readouterr().out) == run.predict([ODD[name]])[0]


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv", "tsv", "txt"])
@pytest.mark.parametrize("name", ODD)
def test_a_file_predicts_it_or_names_the_row(
    name: str,
    ending: str,
    run: LoadedRun,
    expected: dict[str, list[dict[str, Any]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An empty field of csv and tsv is a missing text."""
    import csv

    from datasets import Dataset

    path, text = tmp_path / f"in.{ending}", ODD[name]
    if ending == "jsonl":
        path.write_text(lines([{"text": "first"}, {"text": text}]))
    elif ending == "parquet":
        Dataset.from_dict({"text": ["first", text]}).to_parquet(path)
    elif ending == "csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["text", "n"], ["first", 1], [text, 2]])
    else:
        header = "text\tn\n" if ending == "tsv" else ""
        more = "\t2" if ending == "tsv" else ""
        path.write_text(f"{header}first{more}\n{text}{more}\n", encoding="utf-8")
    status = main(["predict", folder_of(run), "--input", str(path)])
    out, error = capsys.readouterr()
    if text == "" and ending in ("csv", "tsv"):
        assert status == 2 and f"{path}, line 3: text is null" in error and out == ""
    else:
        assert status == 0, error
        assert [json.loads(line) for line in out.splitlines()] == expected[name]


@pytest.mark.parametrize("ending", ["jsonl", "txt"])
def test_half_a_character_in_a_file_is_refused_with_its_place(
    ending: str, run: LoadedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"in.{ending}"
    bad = json.dumps({"text": HALF}).encode() if ending == "jsonl" else HALF.encode("utf-8", "surrogatepass")
    path.write_bytes((b'{"text": "a"}' if ending == "jsonl" else b"a") + b"\n" + bad + b"\n")
    assert main(["predict", folder_of(run), "--input", str(path)]) == 2
    out, error = capsys.readouterr()
    assert out == "" and len(error.splitlines()) == 1
    assert f"{path}, line 2: " in error


def test_half_a_character_in_training_data_is_refused_with_its_row(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    for split in ("train", "validation"):
        path = tmp_path / "sst2" / f"{split}.jsonl"
        path.write_text(lines([{"sentence": "a", "label": 0}, {"sentence": HALF, "label": 1}]))
    before = contents(tmp_path)
    with pytest.raises(MinipeftError, match=r"train\.jsonl, line 2: sentence is 'half .*not valid Unicode"):
        train(tmp_path, tiny_checkpoint, tmp_path / "run")
    assert contents(tmp_path) == before


def test_bytes_that_are_no_text_on_the_command_line_are_refused(
    run: LoadedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", folder_of(run), "--text", b"caf\xe9".decode("utf-8", "surrogateescape")]) == 2
    out, error = capsys.readouterr()
    assert out == "" and len(error.splitlines()) == 1 and "not valid Unicode" in error


@given(texts=st.lists(st.text(max_size=60), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_text_in_jsonl_is_read_as_it_is(texts: list[str], run: LoadedRun, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(lines([{"text": text} for text in texts]))
    chunks = list(run.read_chunks(str(path)))
    assert [text for chunk in chunks for text in chunk.texts] == texts
