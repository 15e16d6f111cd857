"""Custom datasets: labels, columns and splits, and errors of one line that name the row."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from table_formats import COMPRESS

from minipeft import MinipeftError
from minipeft.data.tables.memory import read_memory
from minipeft.data.tables.open_table import Table
from minipeft.data.tables.parquet_rows import parquet_table
from minipeft.data.tables.remote_tables.hub_rows import dataset_table
from minipeft.data.tasks.custom import CustomData, custom_task, inspect_custom_data, is_custom
from minipeft.data.tasks.splits import read_split
from minipeft.data.tasks.task import Split
from minipeft.problems.labels import NUMBER, find_labels
from minipeft.problems.regression import Regression

ROWS = [{"text": f"text {number}", "label": ("b", "a", "c")[number % 3], "other": number} for number in range(30)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format of the file's ending."""
    from datasets import Dataset

    if path.suffix in COMPRESS:
        plain = write(path.with_suffix(""), rows)
        path.write_bytes(COMPRESS[path.suffix](plain.read_bytes()))
        plain.unlink()
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".csv":
        Dataset.from_list(rows).to_csv(path, index=False)
    else:
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    return path


def inspect(data: Path, **given: Any) -> CustomData:
    usual = {"text_column": None, "pair_column": None, "label_column": None, "label_type": "auto", "validation": None}
    return inspect_custom_data(given.pop("task", "auto"), str(data), **{**usual, **given})


def read(data: CustomData, split: str, limit: int | None = None) -> Split:
    return read_split(data.task, split, data.source, limit)


def labels_of(values: list[Any], label_type: str = "auto") -> tuple[str, ...]:
    rows = ((f"file, row {row}", [value]) for row, value in enumerate(values))
    table = Table("file", ("label",), lambda names: rows)
    return tuple(find_labels(table, "label", label_type)[0])


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


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet", "csv.gz", "json.xz", "jsonl.zst"])
def test_every_format_gives_the_same_task_and_splits(ending: str, tmp_path: Path) -> None:
    data = inspect(write(tmp_path / f"reviews.{ending}", ROWS))
    assert (data.task.name, data.task.labels, data.rows) == ("reviews", ("a", "b", "c"), 30)
    train, validation = read(data, "train"), read(data, "validation")
    assert len(validation) == 3 and sorted(train.texts + validation.texts) == sorted(row["text"] for row in ROWS)
    by_text = {row["text"]: row["label"] for row in ROWS}
    for split in (train, validation):
        assert [data.task.labels[label] for label in split.labels] == [by_text[text] for text in split.texts]
    first = inspect(write(tmp_path / "same.jsonl", ROWS))
    assert read(first, "validation").texts == validation.texts
    assert read(data, "train", limit=5).texts == train.texts[:5]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_whole_numbers_are_names_and_no_positions(ending: str, tmp_path: Path) -> None:
    """Stars from 1 to 5: the label 1 is class 0."""
    rows = [{"text": "a", "label": 1 + number % 5} for number in range(20)]
    data = inspect(write(tmp_path / f"stars.{ending}", rows), validation=str(write(tmp_path / "v.jsonl", rows)))
    assert data.task.labels == ("1", "2", "3", "4", "5")
    assert list(read(data, "train").labels) == list(read(data, "validation").labels) == [n % 5 for n in range(20)]


def test_numbers_with_a_fraction_are_regression(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": number / 4} for number in range(20)]
    for ending in ("csv", "tsv", "jsonl", "parquet"):
        data = inspect(write(tmp_path / f"scores.{ending}", rows), validation=str(write(tmp_path / "v.csv", rows[:4])))
        assert data.task.problem == Regression() and data.task.metrics == ("pearson", "spearman")
        assert "labels that are numbers" in data.describe()
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
    data = inspect(folder, text_column="first", pair_column="second", label_column="kind")
    assert data.task.name == "claims" and data.task.columns == ("first", "second")
    assert [len(read(data, split)) for split in ("train", "validation", "test")] == [30, 4, 2]
    assert read(data, "test").pairs == ["x", "x"]
    assert inspect(folder, task="mine", text_column="first", label_column="kind").task.name == "mine"
    with pytest.raises(MinipeftError, match="no dev split; there are train, validation, test"):
        read(data, "dev")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(10, 300))
def test_a_tenth_is_for_validation_and_no_row_is_lost(tmp_path: Path, rows: int) -> None:
    data = inspect(
        write(tmp_path / "a.jsonl", [{"text": f"text {number}", "label": number % 2} for number in range(rows)])
    )
    train, validation = read(data, "train").texts, read(data, "validation").texts
    assert len(validation) == max(2, round(rows / 10))  # a row of each class
    numbers = [[int(text.split()[1]) for text in texts] for texts in (train, validation)]
    assert sorted([*numbers[0], *numbers[1]]) == list(range(rows)) and numbers == [sorted(texts) for texts in numbers]


TABLE = "text,label\n" + "".join(f"text {number},{'ab'[number % 2]}\n" for number in range(12))


@pytest.mark.parametrize(
    ("content", "given", "message"),
    [
        (TABLE, {"text_column": "body"}, r"no column 'body' \(there are text, label\); --text-column names another"),
        (TABLE, {"pair_column": "b"}, r"no column 'b' \(there are text, label\); --pair-column"),
        (TABLE, {"label_column": "y"}, r"no column 'y' \(there are text, label\); --label-column"),
        (TABLE, {"label_type": "names"}, "unknown --label-type 'names'; one of auto, classes, numbers"),
        (
            TABLE,
            {"label_type": "numbers"},
            r"label 'a' \(.*a.csv, line 2\) is not a number; fix the row, or",
        ),
        (TABLE, {"task": "rte"}, "--task rte reads GLUE's columns.*leave --task out"),
        (TABLE, {"task": "../x"}, "'../x' cannot be the name"),
        (TABLE, {"validation": "absent.csv"}, "absent.csv is not a file"),
        (TABLE.replace("text 7,b", "text 7,"), {}, "a.csv, line 9: the label is missing. Add it or remove the row."),
        (TABLE.replace("text 7,b", "text 7"), {}, "a.csv, line 9: the label is missing. Add it or remove the row."),
        (TABLE.replace("text 7,b", "text, 7,b"), {}, "line 9: 3 fields, but the header has 2; fix the line"),
        (TABLE.replace(",b", ",a"), {}, "every label is 'a'; at least two different"),
        (TABLE.replace(",a", ",1.5").replace("text 7,b", "text 7,n/a").replace(",b", ",2"), {}, "1.5.*'n/a' .*line 9"),
        ("text,label\n", {}, "the file is empty"),
        ("", {}, "the file is empty"),
        ("text,label\na,1\nb,2\n", {}, "2 rows, and a validation split is drawn from at least 10; .*--validation"),
        (
            TABLE.replace("text 7,b", "text 7," + "b" * 2000),
            {},
            "line 9: label 'bbb.* is neither a name of up to",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(
    content: str, given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(MinipeftError, match=message) as caught:
        inspect(tmp_path / "a.csv", **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": "a", "label": "z"}', r"label 'z' is not one of the training file's \(a, b\); fix or remove the row"),
        ('{"text": "a", "label": 0}', "label 0 is not one of"),
        ('{"text": "a"}', "the label is missing. Add it"),
        ('{"text": "a", "label": ["a"]}', r"label \['a'\] is a list"),
        ('{"text": null, "label": "a"}', "text is null"),
    ],
)
def test_a_row_of_the_validation_file_that_does_not_fit_is_named(row: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(TABLE)
    (tmp_path / "v.jsonl").write_text(f'{{"text": "a", "label": "b"}}\n{row}\n')
    data = inspect(tmp_path / "a.csv", validation=str(tmp_path / "v.jsonl"))
    with pytest.raises(MinipeftError, match=rf"v\.jsonl, line 2: {message}"):
        read(data, "validation")


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    for ending in ("csv", "jsonl"):
        write(tmp_path / f"train.{ending}", ROWS)
    with pytest.raises(MinipeftError, match=r"holds train\.csv and train\.jsonl; leave one"):
        inspect(tmp_path)


def test_there_may_be_thousands_of_classes_but_not_without_end() -> None:
    assert len(labels_of([f"name {number // 2}" for number in range(10_000)])) == 5000
    with pytest.raises(MinipeftError, match="more than 100,000 classes; name another --label-column"):
        labels_of([f"name {number // 2}" for number in range(200_004)])


def test_a_column_with_nearly_a_class_per_row_is_refused() -> None:
    with pytest.raises(MinipeftError, match=r"300 classes in 300 rows; name another --label-column, or .* numbers"):
        labels_of(list(range(300)))
    with pytest.raises(MinipeftError, match=r"200 classes in 300 rows; name another --label-column \("):
        labels_of([f"title {number % 200}" for number in range(300)])
    assert labels_of(list(range(300)), "numbers") == () and len(labels_of(list(range(300)), "classes")) == 300
    assert len(labels_of([number % 150 for number in range(300)])) == 150


def test_the_rows_that_are_drawn_do_not_depend_on_who_reads_the_labels(tmp_path: Path) -> None:
    """At the inspection of a file, or later, for a run's config.json."""
    rows: list[dict[str, Any]] = [{"text": f"text {n}", "label": n % 7, "score": n / 8} for n in range(90)]
    path = write(tmp_path / "a.jsonl", [row | {"tags": ["x"] * (row["label"] == 3) + ["y"]} for row in rows])
    for column, label_type in (("label", "auto"), ("score", "numbers"), ("tags", "multilabel")):
        task = inspect(path, label_column=column, label_type=label_type).task
        assert task.train_rows is not None and task.validation_rows is not None
        later = replace(task, train_rows=None).validation_rows
        assert later is not None and task.validation_rows.tolist() == later.tolist()
        assert 8 <= later.sum() <= 10 and len(later) == task.train_rows[0] == 90


def test_the_drawn_validation_split_is_stratified(tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "label": "rare" if number % 20 == 0 else "usual"} for number in range(60)]
    data = inspect(write(tmp_path / "a.csv", rows))
    validation = read(data, "validation")
    assert len(validation) == 6 and validation.labels.count(data.task.labels.index("rare")) == 1
    assert data.class_counts == {"rare": 3, "usual": 57} and "(rare 3, usual 57)" in data.describe()


def test_a_recorded_run_has_the_task_and_the_rows_of_its_data(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ROWS)
    record = {"task": "a", "source": str(path), "text_column": "text", "label_column": "label", "label_type": "classes"}
    task = custom_task(record | {"labels": [*"abc"]})
    assert task is not None and task == inspect(path).task
    assert read_split(task, "validation", str(path)).texts == read(inspect(path), "validation").texts


@pytest.mark.parametrize("name", ["valid", "val", "dev", "eval"])
def test_a_validation_file_of_another_usual_name_is_used(name: str, tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / f"{name}.jsonl", ROWS[:4])
    data = inspect(tmp_path)
    assert read(data, "validation").texts == [row["text"] for row in ROWS[:4]] and len(read(data, "train")) == 30
    assert f"{name}.jsonl" in data.describe()
    assert f"--validation {tmp_path / name}.jsonl" in inspect(tmp_path / "train.csv").warnings[-1]
    write(tmp_path / "validation.csv", ROWS[:4])
    first, second = sorted([f"{name}.jsonl", "validation.csv"])
    with pytest.raises(MinipeftError, match=rf"holds {first} and {second}; leave one"):
        inspect(tmp_path)


@pytest.mark.parametrize("subfolder", ["", "data"])
def test_a_folder_from_the_hub_may_have_several_files_per_split(subfolder: str, tmp_path: Path) -> None:
    folder = tmp_path / subfolder
    folder.mkdir(exist_ok=True)
    for number in range(3):
        write(folder / f"train-{number:05d}-of-00003.parquet", ROWS[10 * number : 10 * number + 10])
    write(folder / "validation-00000-of-00001.parquet", ROWS[:5])
    data = inspect(tmp_path)
    assert read(data, "train").texts == [row["text"] for row in ROWS] and len(read(data, "validation")) == 5
    with pytest.raises(MinipeftError, match=r"train-00001-of-00003\.parquet, row 3: text is null"):
        write(folder / "train-00001-of-00003.parquet", [*ROWS[:2], {**ROWS[0], "text": None}])
        read(data, "train")
    (folder / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(MinipeftError, match=r"train-00001-of-00003\.parquet is missing"):
        inspect(tmp_path)


@pytest.mark.parametrize(
    ("column", "value"), [("sentence2", "x"), ("hypothesis", "x"), ("text2", "x"), ("notes", "one two three four five")]
)
def test_a_second_text_column_that_is_not_read_gives_a_warning(column: str, value: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [{**row, column: value} for row in ROWS])
    data = inspect(path)
    assert data.unread_columns == ("other", column) and column in data.describe_columns()
    assert len(data.warnings) == 1 and f"--pair-column {column}" in data.warnings[0] and "\n" not in data.warnings[0]
    assert not inspect(path, pair_column=column).warnings and not inspect(write(tmp_path / "b.csv", ROWS)).warnings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "1,a dull film,bad\n2,a fine film,good\n",
            r"\(there are 1, a dull film, bad\); the file seems to have no header",
        ),
        (
            "a film of great beauty,good\na dull film,bad\n",
            "no header: add a first line with the columns' names, such as",
        ),
        ("a fine film,good\na dull film,bad\na film,good\n", "the file seems to have no header: add a first line"),
        ("good,a fine film\nbad,a dull film\ngood,a film\n", "otherwise --text-column names another"),
        ("review,stars\na dull film,bad\n", r"\(there are review, stars\); --text-column names another"),
        (
            TABLE.replace("text,label", "Text,label"),
            r"\(there are Text, label\) \(did you mean Text\?\); --text-column",
        ),
        (
            TABLE.replace(",", "|"),
            r"no column 'text' \(there are text\|label\); the separator is '\|': save the file with",
        ),
        (
            TABLE.replace("text,label", "text;label,other"),
            "the header 'text;label,other' may be separated by commas or semi",
        ),
        (TABLE.replace("text ", ""), "column 'text' holds numbers, such as 0; name the texts by --text-column"),
    ],
)
def test_a_csv_file_of_another_kind_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(MinipeftError, match=message):
        inspect(tmp_path / "a.csv")


def test_an_error_names_the_line_where_a_row_of_several_lines_begins(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"two\nlines",a\n"more\nlines",\n')
    with pytest.raises(MinipeftError, match=r"a\.csv, line 4: the label is missing"):
        inspect(tmp_path / "a.csv")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_equal_numbers_are_one_class_in_every_format(ending: str, tmp_path: Path) -> None:
    labels: list[Any] = [1, 1.0, 2] if ending != "parquet" else [1.0, 1.0, 2.0]
    rows = [{"text": "a", "label": labels[number % 3]} for number in range(30)]
    path = tmp_path / f"a.{ending}"
    if ending == "csv":
        path.write_text("text,label\n" + "".join(f"a,{('1', '1.0', '2', '+1')[number % 4]}\n" for number in range(40)))
    else:
        write(path, rows)
    data = inspect(path, validation=str(write(tmp_path / "v.jsonl", [{"text": "a", "label": "1.00"}])))
    assert data.task.labels == ("1", "2") and list(data.class_counts.values()) in ([20, 10], [30, 10])
    assert list(read(data, "validation").labels) == [0] and list(read(data, "train").labels).count(0) in (20, 30)


def test_names_that_differ_in_white_space_or_case_give_a_warning_with_their_counts(tmp_path: Path) -> None:
    names = ["pos"] * 12 + ["pos "] * 3 + ["neg"] * 9 + ["Neg"] * 2
    data = inspect(write(tmp_path / "a.jsonl", [{"text": f"film {n}", "label": name} for n, name in enumerate(names)]))
    assert data.task.labels == ("Neg", "neg", "pos", "pos ")
    assert f"{tmp_path / 'a.jsonl'}: the label 'pos' (12 rows) and 'pos ' (3 rows) differ in white space" in str(
        data.warnings
    )
    assert "'Neg' (2 rows) and 'neg' (9 rows)" in str(data.warnings)
    rows = [{"text": f"film {n}", "label": [name, "x"]} for n, name in enumerate(names)]
    data = inspect(write(tmp_path / "b.jsonl", rows), label_type="multilabel")
    assert "'pos' (12 rows) and 'pos ' (3 rows)" in str(data.warnings)


@pytest.mark.parametrize("missing", [-1, None])
@pytest.mark.parametrize("kind", ["memory", "parquet"])
def test_rows_without_one_of_the_declared_classes_are_left_out_and_counted(
    missing: int | None, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in SNLI, whose ClassLabel has -1 where the annotators did not agree."""
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["yes", "no"])})
    labels = [(0, 1, missing)[number % 3] for number in range(60)]
    texts = [f"text {number}" for number in range(60)]
    rows = Dataset.from_dict({"text": texts, "label": labels}, features=features)
    source: Any = read_memory(rows)
    if kind == "parquet":
        rows.to_parquet(tmp_path / f"{missing}.parquet")
        source = tmp_path / f"{missing}.parquet"
    usual = dict.fromkeys(("text_column", "pair_column", "label_column", "validation"))
    data = inspect_custom_data("auto", source if kind == "memory" else str(source), label_type="auto", **usual)  # type: ignore[arg-type]
    assert data.task.labels == ("yes", "no") and data.class_counts == {"yes": 20, "no": 20}
    train, validation = read(data, "train"), read(data, "validation")
    kept = sorted(text for text, label in zip(texts, labels, strict=True) if label not in (-1, None))
    assert sorted(train.texts + validation.texts) == kept and len(validation) == 4
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] in (
        ["20 rows without a label are left out"],
        [],  # the warning of an earlier parameter, whose place has the same name
    )


@pytest.mark.parametrize(("kind", "wrong"), [("parquet", 2), ("parquet", 1.5), ("parquet", "no"), ("hub", 2)])
def test_a_label_that_is_no_declared_class_is_named(kind: str, wrong: Any, tmp_path: Path) -> None:
    import pyarrow
    from datasets import ClassLabel, Dataset, Features, Value
    from pyarrow import parquet

    path = str(tmp_path / "a.parquet")
    features = Features({"text": Value("string"), "label": ClassLabel(names=["yes", "no"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features).to_parquet(path)
    table = parquet.read_table(path)
    column = pyarrow.array([wrong, wrong])
    parquet.write_table(table.set_column(1, "label", column).replace_schema_metadata(table.schema.metadata), path)
    rows = (
        dataset_table(Dataset.from_parquet(path, cache_dir=str(tmp_path)), "rows")
        if kind == "hub"
        else parquet_table(path)
    )
    with pytest.raises(
        MinipeftError, match=f"from row 1 on: label {wrong!r} is not the number of one of the 2 declared"
    ):
        list(rows.read(["text", "label"]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["3,5", "4,25", "5"], "line 2: label '3,5' is a number with a comma, or a list. Write a decimal point"),
        (["1.234,5", "12,0", "7"], r"line 2: label '1\.234,5' is a number with a comma"),
        (["7", "1,234.5", "2"], r"line 3: label '1,234\.5' is a number with a comma"),
    ],
)
def test_numbers_as_europeans_export_them_are_named(labels: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text;label\n" + "".join(f"film {number};{labels[number % 3]}\n" for number in range(30)))
    with pytest.raises(MinipeftError, match=message):
        inspect(path)
    assert len(inspect(path, label_type="classes").task.labels) == 3


@pytest.mark.parametrize(
    "vectors",
    [
        ["[0, 1, 0]", "[1, 0, 0]"],
        ["[1, 0]", "[0, 1]"],
        ["[true, false, false]", "[false, true, false]"],
        ["[0.1, 0.9]", "[0.6, 0.4]"],
        ['["0", "1", "1"]', '["0", "0", "0"]'],
    ],
)
def test_vectors_of_zeros_and_ones_are_refused(vectors: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "a", "label": {vectors[number % 2]}}}\n' for number in range(20)))
    with pytest.raises(MinipeftError, match=r"line \d+: label .* is a vector\. Write the names or numbers"):
        inspect(path, label_type="multilabel")


def test_a_vector_in_the_validation_file_is_refused_and_lists_of_0_and_1_are_labels(tmp_path: Path) -> None:
    train, validation = tmp_path / "a.jsonl", tmp_path / "v.jsonl"
    lists = [[0, 1], [0], [], [2, 1]]
    train.write_text("".join(json.dumps({"text": "a", "label": lists[n % 4]}) + "\n" for n in range(20)))
    validation.write_text('{"text": "a", "label": [0, 1]}\n{"text": "a", "label": [0, 1, 0]}\n')
    data = inspect(train, label_type="multilabel", validation=str(validation))
    assert data.task.labels == ("0", "1", "2") and read(data, "train").labels[0] == (0, 1)
    with pytest.raises(MinipeftError, match=r"v\.jsonl, line 2: label \[0, 1, 0\] is a vector"):
        read(data, "validation")
