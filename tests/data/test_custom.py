"""A user's own file: its labels, its columns, its splits; and what of it is refused, in one line that names the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minipeft import MinipeftError
from minipeft.data.custom import CustomData, inspect_custom_data, is_custom
from minipeft.data.labels import NUMBER, find_labels
from minipeft.data.rows import Table
from minipeft.data.splits import read_split
from minipeft.data.tasks import Split

ROWS = [{"text": f"text {number}", "label": ("b", "a", "c")[number % 3], "other": number} for number in range(30)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format of the file's ending."""
    from datasets import Dataset

    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".csv":
        Dataset.from_list(rows).to_csv(path, index=False)
    else:
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    return path


def own(data: Path, **given: Any) -> CustomData:
    usual = {"text_column": None, "pair_column": None, "label_column": None, "label_type": "auto", "validation": None}
    return inspect_custom_data(given.pop("task", "auto"), str(data), **{**usual, **given})


def read(data: CustomData, split: str, limit: int | None = None) -> Split:
    return read_split(data.task, split, data.source, limit)


def labels_of(values: list[Any], label_type: str = "auto") -> tuple[str, ...]:
    return find_labels(Table("file", ("label",), lambda names: ([value] for value in values)), "label", label_type)[0]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["b", "a", "b"], ("a", "b")),
        ([10, 9, 10], ("9", "10")),  # in the order of the numbers
        (["10", "9"], ("9", "10")),
        ([1.0, 0.0], ("0", "1")),
        ([True, False], ("false", "true")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["Ä", "a", "Z"], ("Z", "a", "Ä")),  # in the order of the characters
        ([0.5, 1, 2], ()),
        (["-1.5e-3", "2"], ()),
        (["nan", "inf", "1"], ("1", "inf", "nan")),
        (["1_0", "2"], ("1_0", "2")),
    ],
)
def test_labels_are_classes_or_numbers_as_they_look(values: list[Any], names: tuple[str, ...]) -> None:
    assert labels_of(values) == names


def test_the_label_type_may_be_said() -> None:
    assert labels_of([1, 2, 5], "numbers") == ()
    assert labels_of(["1.5", "2"], "classes") == ("1.5", "2")
    assert labels_of(["1.5", "beta"], "classes") == ("1.5", "beta")


@given(st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=5), st.booleans()), min_size=1))
def test_any_labels_become_sorted_names_or_numbers_or_one_line(values: list[Any]) -> None:
    try:
        names = labels_of(values)
    except MinipeftError as error:
        assert "\n" not in str(error) and "file" in str(error)
        return
    if names:
        assert len(set(names)) == len(names) >= 2 and labels_of(list(reversed(values))) == names
        whole = all(NUMBER.fullmatch(name) for name in names) and not any(isinstance(v, bool) for v in values)
        assert list(names) == (sorted(names, key=lambda name: (float(name), name)) if whole else sorted(names))
    else:
        assert all(float(value) == float(value) for value in values) and len(set(map(float, values))) > 1


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_task_and_splits(ending: str, tmp_path: Path) -> None:
    data = own(write(tmp_path / f"reviews.{ending}", ROWS))
    assert (data.task.name, data.task.labels, data.rows) == ("reviews", ("a", "b", "c"), 30)
    train, validation = read(data, "train"), read(data, "validation")
    assert len(validation) == 3 and sorted(train.texts + validation.texts) == sorted(row["text"] for row in ROWS)
    by_text = {row["text"]: row["label"] for row in ROWS}
    for split in (train, validation):
        assert [data.task.labels[label] for label in split.labels] == [by_text[text] for text in split.texts]
    first = own(write(tmp_path / "same.jsonl", ROWS))
    assert read(first, "validation").texts == validation.texts
    assert read(data, "train", limit=5).texts == train.texts[:5]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_whole_numbers_are_names_and_no_positions(ending: str, tmp_path: Path) -> None:
    """Stars from 1 to 5: the label 1 is class 0."""
    rows = [{"text": "a", "label": 1 + number % 5} for number in range(20)]
    data = own(write(tmp_path / f"stars.{ending}", rows), validation=str(write(tmp_path / "v.jsonl", rows)))
    assert data.task.labels == ("1", "2", "3", "4", "5")
    assert list(read(data, "train").labels) == list(read(data, "validation").labels) == [n % 5 for n in range(20)]


def test_numbers_with_a_fraction_are_regression(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": number / 4} for number in range(20)]
    for ending in ("csv", "tsv", "jsonl", "parquet"):
        data = own(write(tmp_path / f"scores.{ending}", rows), validation=str(write(tmp_path / "v.csv", rows[:4])))
        assert data.task.is_regression and data.task.metrics == ("pearson", "spearman") and "numbers" in data.words
        assert list(read(data, "validation").labels) == [0, 0.25, 0.5, 0.75]


def test_a_folder_holds_the_splits_and_columns_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "claims"
    folder.mkdir()
    rows = [{"kind": row["label"], "second": "x", "first": row["text"]} for row in ROWS]
    (
        write(folder / "train.csv", rows),
        write(folder / "validation.tsv", rows[:4]),
        write(folder / "test.jsonl", rows[:2]),
    )
    assert is_custom("auto", str(folder)) and not is_custom("rte", str(folder)) and not is_custom("auto", str(tmp_path))
    data = own(folder, text_column="first", pair_column="second", label_column="kind")
    assert data.task.name == "claims" and data.task.columns == ("first", "second")
    assert [len(read(data, split)) for split in ("train", "validation", "test")] == [30, 4, 2]
    assert read(data, "test").pairs == ["x", "x"]
    assert own(folder, task="mine", text_column="first", label_column="kind").task.name == "mine"
    with pytest.raises(MinipeftError, match="no dev split; there are train, validation, test"):
        read(data, "dev")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(10, 300))
def test_a_tenth_is_for_validation_and_no_row_is_lost(tmp_path: Path, rows: int) -> None:
    data = own(write(tmp_path / "a.jsonl", [{"text": str(number), "label": number % 2} for number in range(rows)]))
    train, validation = read(data, "train").texts, read(data, "validation").texts
    assert len(validation) == round(rows / 10)
    assert sorted(train + validation, key=int) == list(map(str, range(rows)))
    assert train == sorted(train, key=int) and validation == sorted(validation, key=int)


TABLE = "text,label\n" + "".join(f"text {number},{'ab'[number % 2]}\n" for number in range(12))


@pytest.mark.parametrize(
    ("content", "given", "message"),
    [
        (TABLE, {"text_column": "body"}, r"no column 'body' \(there are text, label\); --text-column names another"),
        (TABLE, {"pair_column": "b"}, r"no column 'b' \(there are text, label\); --pair-column"),
        (TABLE, {"label_column": "y"}, r"no column 'y' \(there are text, label\); --label-column"),
        (TABLE, {"label_type": "names"}, "unknown --label-type 'names'; one of auto, classes, numbers"),
        (TABLE, {"label_type": "numbers"}, "row 0's 'a' is no number; mend the row, or pass --label-type classes"),
        (TABLE, {"task": "rte"}, "--task rte reads GLUE's columns.*leave --task out"),
        (TABLE, {"task": "../x"}, "'../x' cannot name"),
        (TABLE, {"validation": "absent.csv"}, "absent.csv is no file"),
        (TABLE.replace("text 7,b", "text 7,"), {}, "a.csv, row 7: no label; fill it in or remove the row"),
        (TABLE.replace("text 7,b", "text 7"), {}, "a.csv, row 7: no label; fill it in or remove the row"),
        (TABLE.replace("text 7,b", "text, 7,b"), {}, "line 9: 3 fields, but the header has 2; mend the line"),
        (TABLE.replace(",b", ",a"), {}, "every label is 'a'; at least two that differ"),
        (TABLE.replace(",a", ",1.5").replace("text 7,b", "text 7,n/a").replace(",b", ",2"), {}, "1.5.*row 7's 'n/a'"),
        ("text,label\n", {}, "the file is empty"),
        ("", {}, "the file is empty"),
        ("text,label\na,1\nb,2\n", {}, "2 rows, and a validation split is drawn from at least 10; .*--validation"),
        (TABLE.replace("text 7,b", "text 7," + "b" * 2000), {}, "row 7: label 'bbb.* is no name of up to 1,000"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(
    content: str, given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(MinipeftError, match=message) as caught:
        own(tmp_path / "a.csv", **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": "a", "label": "z"}', r"label 'z' is none of the training file's \(a, b\); mend or remove the row"),
        ('{"text": "a", "label": 0}', "label 0 is none of"),
        ('{"text": "a"}', "no label; fill it in"),
        ('{"text": "a", "label": ["a"]}', r"label \['a'\] is no name"),
        ('{"text": null, "label": "a"}', "text is null"),
    ],
)
def test_a_row_of_the_validation_file_that_does_not_fit_is_named(row: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(TABLE)
    (tmp_path / "v.jsonl").write_text(f'{{"text": "a", "label": "b"}}\n{row}\n')
    data = own(tmp_path / "a.csv", validation=str(tmp_path / "v.jsonl"))
    with pytest.raises(MinipeftError, match=rf"v\.jsonl, row 1: {message}"):
        read(data, "validation")


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    for ending in ("csv", "jsonl"):
        write(tmp_path / f"train.{ending}", ROWS)
    with pytest.raises(MinipeftError, match=r"holds train\.csv and train\.jsonl; leave one"):
        own(tmp_path)


def test_there_may_be_thousands_of_classes_but_not_one_a_row_without_end() -> None:
    assert len(labels_of([f"name {number}" for number in range(5000)])) == 5000
    with pytest.raises(MinipeftError, match="more than 100,000 classes; name another --label-column"):
        labels_of([f"name {number}" for number in range(100_002)])
