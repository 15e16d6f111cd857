"""Rows in memory: every kind gives the rows of the same file, and what is no table is refused."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from conftest import run_command
from datasets import ClassLabel, Dataset, DatasetDict

from minipeft import MinipeftError
from minipeft.data.tables.memory import MemoryData, is_in_memory, read_memory
from minipeft.data.tables.remote_tables.hub_rows import open_split
from minipeft.data.tasks.custom import inspect_custom_data
from minipeft.data.tasks.splits import read_split

ROWS = [{"text": f"film number {n}", "label": ("bad", "good", "so so")[n % 3], "id": n} for n in range(40)]
COLUMNS = {name: [row[name] for row in ROWS] for name in ("text", "label", "id")}


def frame() -> pandas.DataFrame:
    """Rows whose index is not their number."""
    return pandas.DataFrame(COLUMNS, index=range(100, 140))


def class_labels() -> Dataset:
    numbers = {"bad": 0, "good": 1, "so so": 2}
    rows = Dataset.from_dict(COLUMNS | {"label": [numbers[label] for label in COLUMNS["label"]]})
    return rows.cast_column("label", ClassLabel(names=list(numbers)))


KINDS: dict[str, Callable[[], Any]] = {
    "list of dicts": lambda: ROWS,
    "dict of lists": lambda: COLUMNS,
    "dict of arrays": lambda: {name: np.array(values) for name, values in COLUMNS.items()},
    "DataFrame": frame,
    "Dataset": lambda: Dataset.from_list(ROWS),
    "Dataset of tensors": lambda: Dataset.from_list(ROWS).with_format("numpy"),
    "Dataset with a ClassLabel": class_labels,
    "DatasetDict": lambda: DatasetDict(train=Dataset.from_list(ROWS)),
}


def inspect(data: Any, task: str = "auto", **settings: Any) -> Any:
    given = dict.fromkeys(("text_column", "pair_column", "label_column", "validation")) | settings
    return inspect_custom_data(task, data, label_type="auto", **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_rows_classes_and_draw_of_the_same_file(kind: str, tmp_path: Path) -> None:
    Dataset.from_list(ROWS).to_json(tmp_path / "data.jsonl")
    file, memory = inspect(str(tmp_path / "data.jsonl")), inspect(read_memory(KINDS[kind]()))
    assert memory.task.name == "data" and memory.task.labels == file.task.labels == ("bad", "good", "so so")
    assert memory.class_counts == file.class_counts and memory.rows == 40
    for split in ("train", "validation"):
        one, other = (read_split(found.task, split, found.source) for found in (file, memory))
        assert (one.texts, one.labels) == (other.texts, other.labels)


def test_a_missing_value_of_a_frame_is_missing_and_its_row_is_named() -> None:
    rows = frame()
    rows.loc[103, "label"] = None
    with pytest.raises(MinipeftError, match=r"rows in memory \(train\), index 3: the label is missing"):
        inspect(read_memory(rows))


def test_splits_have_the_names_that_files_may_have() -> None:
    train, rest = Dataset.from_list(ROWS[:30]), Dataset.from_list(ROWS[30:])
    for data in (
        DatasetDict(train=train, dev=rest, test=rest),
        {"train": ROWS[:30], "dev": ROWS[30:], "test": frame()},
    ):
        task = inspect(read_memory(data)).task
        assert len(read_split(task, "train", "")) == 30 and len(read_split(task, "validation", "")) == 10
        assert set(dict(task.files)) == {"train", "validation", "test"}
    task = inspect(read_memory(ROWS[:30], validation=frame()[30:])).task
    assert read_split(task, "validation", "").texts == [row["text"] for row in ROWS[30:]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["a text", "another"], "data, train: builtins.list is not supported. Pass a list of dicts"),
        (3, "data, train: builtins.int is not supported"),
        (Dataset.from_list(ROWS).to_iterable_dataset(), "IterableDataset is not supported"),
        ({"text": ["a", "b"], "label": [1]}, "data, train: the rows are not a table"),
        ([{"text": "a", "label": 1}, {"text": 2, "label": {}}], "data, train: the rows are not a table"),
        (DatasetDict(test=Dataset.from_list(ROWS)), r"data: no split train \(there are test\)"),
    ],
    ids=["texts alone", "a number", "a stream", "columns of two lengths", "mixed types", "no training split"],
)
def test_what_is_no_table_is_refused_in_one_line(data: Any, message: str) -> None:
    assert is_in_memory(data)
    with pytest.raises(MinipeftError, match=message) as caught:
        read_memory(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (ROWS, {"text_column": "body"}, r"rows in memory \(train\): no column 'body' \(there are text, label, id\)"),
        (ROWS, {"text_column": "id"}, "column 'id' holds numbers"),
        (ROWS[:4], {}, "4 rows, and a validation split is drawn from at least 10"),
        (ROWS, {"task": "rte"}, "--data rows in memory"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused_as_those_of_a_file(
    data: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(MinipeftError, match=message):
        inspect(read_memory(data), **settings)


def test_a_name_is_not_in_memory() -> None:
    assert not any(map(is_in_memory, ("rte", Path("a"), None, MemoryData({}))))


def test_the_splits_travel_between_processes_and_are_not_copied_with_settings() -> None:
    data = read_memory(ROWS)
    assert copy.deepcopy(data) is data and str(data) == "rows in memory"
    task = pickle.loads(pickle.dumps(inspect(data).task))
    (place, values), *_ = open_split(dict(task.files)["train"]).read(["text", "id"])
    assert (place, tuple(values)) == ("rows in memory (train), index 0", ("film number 0", 0))


def test_pandas_is_imported_by_nobody_for_data_in_files() -> None:
    done = run_command(
        "-c",
        "import sys, minipeft.training.run, minipeft.inference.predict, minipeft.data.tables.memory\n"
        "assert not {'pandas', 'datasets', 'sklearn'} & set(sys.modules)",
    )
    assert done.returncode == 0, done.stderr
    assert "pandas" in sys.modules  # and yet this test's own process has it
