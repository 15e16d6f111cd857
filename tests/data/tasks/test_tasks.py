"""The GLUE table and reading its splits: real ones, copies in every format, and files that do not fit."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import shared
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minipeft import MinipeftError
from minipeft.data.tasks.splits import choose_data, read_split
from minipeft.data.tasks.task import TASKS, Split, get_task

PAIR = {"sentence1": ["a b", "c", "d"], "sentence2": ["e", "f", "g"], "label": [0, 1, 1]}


def write(folder: Path, task: str, columns: dict[str, list[Any]], ending: str = "jsonl", split: str = "train") -> str:
    """A --data folder with one split, as the datasets library writes it."""
    from datasets import Dataset

    path = folder / task / f"{split}.{ending}"
    path.parent.mkdir(exist_ok=True)
    rows = Dataset.from_dict(columns)
    if ending == "parquet":
        rows.to_parquet(path)
    elif ending == "jsonl":
        rows.to_json(path)
    else:  # plain lines: tsv has no quoting here
        lines = [list(columns), *zip(*columns.values(), strict=True)]
        path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")
    return str(folder)


# GLUE's own sizes (Wang et al. 2019, table 1, and the data's cards)
@pytest.mark.parametrize(
    ("name", "split", "size"),
    [
        ("rte", "train", 2490),
        ("rte", "validation", 277),
        ("sst2", "validation", 872),
        ("mrpc", "train", 3668),
        ("mrpc", "validation", 408),
        ("stsb", "train", 5749),
        ("stsb", "validation", 1500),
        ("cola", "validation", 1043),
        ("wnli", "validation", 71),
    ],
)
def test_real_glue_is_read_whole(name: str, split: str, size: int) -> None:
    from pyarrow import parquet

    task = get_task(name)
    rows = read_split(task, split, str(shared("glue")))
    table = parquet.read_table(shared("glue", name, f"{split}.parquet"))
    assert len(rows) == size == len(rows.labels) == table.num_rows
    assert rows.texts == table[task.columns[0]].to_pylist()
    assert rows.pairs == (table[task.columns[1]].to_pylist() if len(task.columns) == 2 else None)
    assert list(rows.labels) == pytest.approx(table["label"].to_pylist(), abs=0)
    assert all(isinstance(label, float if name == "stsb" else int) for label in rows.labels)


def test_sst2_train_is_read_whole_and_by_its_start() -> None:
    task, glue = get_task("sst2"), str(shared("glue"))
    start, whole = read_split(task, "train", glue, limit=10), read_split(task, "train", glue)
    assert len(whole) == 67_349 and len(start) == 10 and start.texts == whole.texts[:10]


def test_labels_of_regression_lie_between_0_and_5() -> None:
    labels = read_split(get_task("stsb"), "train", str(shared("glue"))).labels
    assert min(labels) == 0.0 and max(labels) == 5.0 and get_task("stsb").num_labels == 1


@pytest.mark.parametrize("ending", ["jsonl", "tsv", "parquet"])
@pytest.mark.parametrize("name", ["rte", "sst2", "mrpc", "stsb"])
def test_copies_in_every_format_read_the_same(name: str, ending: str, tmp_path: Path) -> None:
    task = get_task(name)
    real = read_split(task, "validation", str(shared("glue")))
    columns = {task.columns[0]: real.texts, "label": list(real.labels), "idx": list(range(len(real)))}
    if real.pairs is not None:
        columns[task.columns[1]] = real.pairs
    copy = read_split(task, "validation", write(tmp_path, name, columns, ending, "validation"))
    assert (copy.texts, copy.pairs) == (real.texts, real.pairs)
    assert list(copy.labels) == pytest.approx(list(real.labels), abs=1e-9)  # jsonl is written with ten digits


LINE = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1)


@given(texts=st.lists(LINE, min_size=1, max_size=5))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_tsv_line_is_taken_as_it_stands(texts: list[str], tmp_path: Path) -> None:
    """Quotes, 'NA', 'null' and numbers are text in a text column."""
    source = write(tmp_path, "sst2", {"sentence": texts, "label": [1] * len(texts)}, "tsv")
    assert read_split(get_task("sst2"), "train", source).texts == texts


@pytest.mark.parametrize("ending", ["tsv", "jsonl"])
@pytest.mark.parametrize(
    "texts",
    [
        ['say "hi', 'a" b"'],
        ["NA", "null"],
        ["12", "13"],
        ["1.50", "2.00"],
        ["true", "False"],
        ["'", '"'],
        ["# a", " b "],
    ],
    ids=str,
)
def test_text_stays_text(texts: list[str], ending: str, tmp_path: Path) -> None:
    source = write(tmp_path, "sst2", {"sentence": texts, "label": [0, 1]}, ending)
    assert read_split(get_task("sst2"), "train", source).texts == texts


@pytest.mark.parametrize("ending", ["jsonl", "tsv", "parquet"])
def test_labels_may_be_names(ending: str, tmp_path: Path) -> None:
    source = write(tmp_path, "rte", PAIR | {"label": ["not_entailment", "entailment", "entailment"]}, ending)
    assert read_split(get_task("rte"), "train", source).labels == [1, 0, 0]


def test_columns_may_stand_in_any_order_with_others_between(tmp_path: Path) -> None:
    columns = {"label": [1, 0, 1], "sentence2": ["e", "f", "g"], "from": ["x", "y", "z"], "sentence1": ["a", "b", "c"]}
    split = read_split(get_task("rte"), "train", write(tmp_path, "rte", columns))
    assert split == Split(get_task("rte"), ["a", "b", "c"], ["e", "f", "g"], [1, 0, 1])


def test_a_later_limit_cuts_before_the_bad_row(tmp_path: Path) -> None:
    source = write(tmp_path, "rte", PAIR | {"sentence2": ["e", "f", None]})
    assert len(read_split(get_task("rte"), "train", source, limit=2)) == 2


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "tsv"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentence2": None}, r"no column 'sentence2' \(there are .*label.*\)"),
        ({"label": None}, "no column 'label'"),
        ({"label": [0, 1, 2]}, "row 2: label 2 is not one of rte's: 0 entailment, 1 not_entailment"),
        ({"label": [0, -1, 1]}, r"row 1: label -1 .*hides the labels"),
        ({"label": ["entailment", "maybe", "entailment"]}, "row 1: label 'maybe'"),
        ({"label": [0.0, 1.0, 0.5]}, r"row 2: label 0\.5"),
    ],
)
def test_columns_and_labels_that_do_not_fit_are_named(
    change: dict[str, Any], message: str, ending: str, tmp_path: Path
) -> None:
    columns = {name: values for name, values in (PAIR | change).items() if values is not None}
    message = re.sub(r"row (\d)", lambda found: place_of(int(found[1]), ending), message)
    with pytest.raises(MinipeftError, match=rf"train\.{ending}.*{message}") as caught:
        read_split(get_task("rte"), "train", write(tmp_path, "rte", columns, ending))
    assert "\n" not in str(caught.value)


def place_of(row: int, ending: str) -> str:
    """A row, counted from 0, in messages: its line in a text file, after a header line, or its number from 1."""
    return f"row {row + 1}" if ending == "parquet" else f"line {row + (2 if ending == 'tsv' else 1)}"


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_null_sentence_or_label_is_named_by_its_row(ending: str, tmp_path: Path) -> None:
    for column in ("sentence1", "sentence2"):
        source = write(tmp_path, "rte", PAIR | {column: ["a", None, "b"]}, ending)
        with pytest.raises(MinipeftError, match=rf"train\.{ending}, {place_of(1, ending)}: {column} is null"):
            read_split(get_task("rte"), "train", source)
    with pytest.raises(MinipeftError, match=f"{place_of(2, ending)}: label None"):
        read_split(get_task("rte"), "train", write(tmp_path, "rte", PAIR | {"label": [0, 1, None]}, ending))


def test_a_field_that_is_empty_in_tsv_is_null(tmp_path: Path) -> None:
    source = write(tmp_path, "rte", PAIR, "tsv")
    path = tmp_path / "rte" / "train.tsv"
    path.write_text("sentence1\tsentence2\tlabel\na\tb\t0\nc\t\t1\n")
    with pytest.raises(MinipeftError, match="line 3: sentence2 is null"):
        read_split(get_task("rte"), "train", source)


@pytest.mark.parametrize("label", [None, math.nan, math.inf, "four"])
def test_regression_takes_finite_numbers_alone(label: Any, tmp_path: Path) -> None:
    source = write(tmp_path, "stsb", PAIR | {"label": [label] * 3}, "parquet")
    with pytest.raises(MinipeftError, match=r"row 1: label .* not a finite number"):
        read_split(get_task("stsb"), "train", source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", "", "empty"),
        ("train.tsv", "", "empty"),
        ("train.parquet", "", "empty"),
        ("train.tsv", "sentence\tlabel\n", "empty"),
        ("train.jsonl", "\n\n", "train.jsonl"),
        ("train.jsonl", "{not json}\n", "jsonl"),
        ("train.jsonl", '{"sentence": "a", "label": 0}\n{"sentence": ', "jsonl"),
        ("train.parquet", "PAR1 no", "parquet"),
        ("train.tsv", "sentence\tlabel\na\t0\nb\t1\t2\t3\n", "tsv"),
        ("train.jsonl", "[1, 2]\n", "train.jsonl"),
        ("train.jsonl", '{"sentence": {"a": 1}, "label": 0}\n', "not a text"),
        ("train.tsv", "\xff\x00\n", "tsv"),
        ("train.csv", "sentence,label\na,0\n", r"no train\.parquet, train\.jsonl or train\.tsv"),
    ],
)
def test_files_that_cannot_be_read_are_named_in_one_line(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(MinipeftError, match=message) as caught:
        read_split(get_task("sst2"), "train", str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_parquet_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MinipeftError, match="the split is empty"):
        read_split(get_task("rte"), "train", write(tmp_path, "rte", {name: [] for name in PAIR}, "parquet"))


def test_an_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(MinipeftError, match=r"'rt'; one of rte, sst2, cola, mrpc, stsb, qnli, qqp, mnli, wnli"):
        get_task("rt")


def test_a_folder_without_the_task_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path, "rte", PAIR)
    assert choose_data(get_task("rte"), source)[0] == source
    with pytest.raises(MinipeftError, match="no folder sst2"):
        choose_data(get_task("sst2"), source)
    with pytest.raises(MinipeftError, match=r"absent: no such file or folder"):
        choose_data(get_task("sst2"), f"{source}/absent")


def test_the_table_has_glues_labels_in_order() -> None:
    assert {name: get_task(name).num_labels for name in TASKS} == {
        "rte": 2,
        "sst2": 2,
        "cola": 2,
        "mrpc": 2,
        "stsb": 1,
        "qnli": 2,
        "qqp": 2,
        "mnli": 3,
        "wnli": 2,
    }
