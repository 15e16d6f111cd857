"""File formats: what is written is read again, whatever the texts hold; errors name the line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from table_formats import COMPRESS

from minipeft import MinipeftError
from minipeft.data.tables import json_rows
from minipeft.data.tables.lines import ending_of, stem_of
from minipeft.data.tables.open_table import open_table

FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.text(
    st.one_of(st.sampled_from(",;\t\"'\\[]{}: \n"), st.characters(codec="utf-8", exclude_characters="\r\0"))
)
ROWS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8)
PACKED = st.sampled_from(["", *COMPRESS])


def write(path: Path, content: str, bom: bool = False) -> Path:
    data = content.encode("utf-8-sig" if bom else "utf-8")
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(data))
    return path


def rows_of(path: Path) -> list[tuple[str, list[Any]]]:
    """(line, values) of each row."""
    table = open_table(path)
    return [(place.removeprefix(f"{path}, line "), list(values)) for place, values in table.read(["first", "second"])]


@FUZZ
@given(ROWS, st.sampled_from([",", ";", "\t"]), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans(), PACKED)
def test_csv_is_read_as_it_was_written(
    tmp_path: Path,
    rows: list[tuple[str, str]],
    separator: str,
    line_end: str,
    bom: bool,
    quote_all: bool,
    packed: str,
) -> None:
    content = io.StringIO()
    quoting = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    writer = csv.writer(content, delimiter=separator, lineterminator=line_end, quoting=quoting)
    writer.writerow(["first", "second"])
    expected = []
    for row in rows:
        before = content.getvalue()
        writer.writerow(row)
        if '"' in content.getvalue()[len(before) :] or any(value.strip() for value in row):
            expected.append((str(before.count("\n") + 1), [value or None for value in row]))
    path = write(tmp_path / f"a.csv{packed}", content.getvalue(), bom)
    assert rows_of(path) == expected


@FUZZ
@given(ROWS, st.sampled_from([None, 1, "\t"]), st.booleans(), st.integers(1, 40), PACKED)
def test_json_lists_are_read_as_they_were_written(
    tmp_path: Path, rows: list[tuple[str, str]], indent: Any, ascii_only: bool, chunk: int, packed: str
) -> None:
    objects = [{"first": first, "second": second, "more": [{"a": 1}, []]} for first, second in rows]
    content = json.dumps(objects, indent=indent, ensure_ascii=ascii_only)
    path = write(tmp_path / f"a.json{packed}", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "CHUNK", chunk)
        read = rows_of(path)
    assert [values for _, values in read] == [[*row] for row in rows]
    lines = content.split("\n")
    assert all(lines[int(line) - 1].lstrip().startswith(("{", "[{")) for line, _ in read)
    jsonl = write(tmp_path / f"a.jsonl{packed}", "".join(json.dumps(row) + "\n" for row in objects))
    assert [values for _, values in rows_of(jsonl)] == [[*row] for row in rows]


@FUZZ
@given(st.text(st.sampled_from('[]{},:"\\ \n1ab'), max_size=30), st.integers(1, 9))
def test_a_json_list_is_accepted_if_and_only_if_python_accepts_it(tmp_path: Path, text: str, chunk: int) -> None:
    path = tmp_path / "a.json"
    path.write_text("[" + text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "CHUNK", chunk)
        try:
            found = [json.loads(element) for _, element in json_rows._elements(str(path))]
        except (MinipeftError, ValueError):
            found = None
    try:
        expected = json.loads("[" + text)
    except ValueError:
        expected = None
    assert found == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"first": "a"},\n{"first": }]', r"line 2: Expecting value"),
        ("a.json", '[{"first": "a"},\n{"first": "b"}', r"line 2: the list has no end; is the file complete\?"),
        ("a.json", '[{"first": "a"}]\n\n"more"', r"line 3: text after the list|line 1: text after"),
        ("a.json", '[{"first": "a"},\n\n  3]', "line 3: not a JSON object"),
        ("a.json", "[]", "the file is empty"),
        ("a.json", '{"first": "a"}\n{"first": 1\n', "line 2: Expecting"),
        ("a.csv", "first,second\na,b,c\n", "line 2: 3 fields"),
        ("a.csv", 'first;"a,b";c,d\n', "may be separated by commas or semicolons; put the column names in double"),
        ("a.tsv", "first,second\n", "a tsv file needs tabs: save it with them, or as csv"),
        ("a.csv", 'first,second\na,b\n"x\ny","c\nd,e\nf,g\n', "a.csv, line 4: a quote opens here and is not closed"),
        ("a.csv", 'first,second\na,"b ""c"\n"d ""e,f\ng,h\n', "a.csv, line 3: a quote opens here"),
        ("a.csv", 'first,second\na,b\n"c,d\ne,"f"\ng,h\n', "a.csv, line 3: a quote opens here"),
        ("a.csv", 'first,second\na,b\n"c"d,e\n', r"not readable as csv \(line 3: ',' expected after '\"'\)"),
        ("a.csv", 'first,second\na,b\n"c', r"not readable as csv \(line 3: unexpected end of data\)"),
        (
            "a.jsonl",
            '{"second": 1}\n{"third": 2}\n',
            r"no column 'first' \(there are second, third\)",
        ),
    ],
)
def test_an_error_names_the_line(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(MinipeftError, match=message) as caught:
        rows_of_first(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def rows_of_first(path: Path) -> list[Any]:
    table = open_table(path)
    if "first" not in table.columns:
        raise table.missing("first", "name another")
    return list(table.read(["first"]))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_what_a_spreadsheet_adds_to_fill_a_rectangle_is_left_out(name: str, tmp_path: Path) -> None:
    separators = {"a.csv": ",", "a.tsv": "\t"}[name]
    lines = [",,,", "first,second,,", "a,b,,", ",,,", "c,d", "e,f,,,,", "   ", " , ,", "g,,,", ",,,", ""]
    (tmp_path / name).write_text("\r\n".join(lines).replace(",", separators))
    table = open_table(tmp_path / name)
    assert table.columns == ("first", "second") and len(table.head(["first"])) == 4
    assert rows_of(tmp_path / name) == [("3", ["a", "b"]), ("5", ["c", "d"]), ("6", ["e", "f"]), ("9", ["g", None])]
    (tmp_path / name).write_text("\n".join([*lines[:6], "h,i,,j"]).replace(",", separators))
    assert rows_of(tmp_path / name)[-1] == ("7", ["h", "i"])  # a column without a name, such as pandas' index
    (tmp_path / name).write_text("\n".join([*lines[:6], "h,i,,j,k"]).replace(",", separators))
    with pytest.raises(MinipeftError, match="line 7: 5 fields, but the header has 4; fix the line"):
        rows_of(tmp_path / name)


def test_a_quoted_empty_field_is_a_row_and_an_empty_line_is_none(tmp_path: Path) -> None:
    """As csv writers write one column with an empty value; without it the rows after it would be shifted."""
    path = tmp_path / "a.csv"
    path.write_text('text\n"a"\n""\n\n  \nb\n')
    assert [(place[-1], *values) for place, values in open_table(path).read(["text"])] == [
        ("2", "a"),
        ("3", None),
        ("5", "  "),
        ("6", "b"),
    ]
    path.write_text('text,label\n"",""\na,b\n')
    assert [values for _, values in open_table(path).read(["text", "label"])] == [[None, None], ["a", "b"]]


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_a_column_may_begin_in_a_later_object(ending: str, tmp_path: Path) -> None:
    rows = [{"first": "a"}, {"first": "b", "second": "c"}, {"third": 1}]
    path = tmp_path / f"a.{ending}"
    path.write_text(json.dumps(rows) if ending == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    table = open_table(path)
    assert table.columns == ("first", "second", "third") and table.head(["second"]) == [[None], ["c"], [None]]
    assert [values for _, values in table.read(["second", "third"])] == [[None, None], ["c", None], [None, 1]]
    path.write_text(json.dumps([{"first": "a"}] * 100 + [{"fourth": 1}]))
    with pytest.raises(MinipeftError, match=r"no column 'fourth' in the first 100 rows \(there are first\)"):
        raise open_table(path, "json").missing("fourth", "name another")


def test_a_hundred_thousand_columns_are_read_in_seconds(tmp_path: Path) -> None:
    names = [f"column {number}" for number in range(100_001)]
    for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
        row = separator.join(map(str, range(len(names))))
        (tmp_path / name).write_text(f"{separator.join(names)}\n{row}\n")
        table = open_table(tmp_path / name)
        assert len(table.columns) == len(names) and next(table.read([names[-1]]))[1] == ["100000"]
    with pytest.raises(MinipeftError, match="two columns are called 'column 7'; rename one"):
        (tmp_path / "a.csv").write_text(",".join([*names, "column 7"]) + "\n")
        open_table(tmp_path / "a.csv")


def test_a_separator_inside_quotes_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('first;"a, b"\nx;"y;z"\n')
    table = open_table(tmp_path / "a.csv")
    assert table.columns == ("first", "a, b") and [row for _, row in table.read(table.columns)] == [["x", "y;z"]]


@pytest.mark.parametrize("packed", [*COMPRESS])
def test_a_damaged_compressed_file_gives_one_line(packed: str, tmp_path: Path) -> None:
    content = COMPRESS[packed](b"first,second\n" + b"".join(b"%d,b\n" % (n * n) for n in range(50_000)))
    for damaged in (content[: len(content) // 2], b"first,second\na,b\n", content[:9] + b"\0" * 99 + content[108:]):
        path = tmp_path / f"a.csv{packed}"
        path.write_bytes(damaged)
        with pytest.raises(MinipeftError, match=r"a\.csv.*cannot be read|not UTF-8|not readable") as caught:
            rows_of(path)
        assert "\n" not in str(caught.value)


def test_several_compressed_streams_are_one_file(tmp_path: Path) -> None:
    for packed, compress in COMPRESS.items():
        path = tmp_path / f"a.csv{packed}"
        path.write_bytes(compress(b"first,second\na,b\n") + compress(b"c,d\n"))
        assert [values for _, values in rows_of(path)] == [["a", "b"], ["c", "d"]], packed


def test_endings_and_names() -> None:
    for path, ending, stem in (
        ("/a/reviews.csv", ".csv", "reviews"),
        ("reviews.v2.CSV.GZ", ".csv", "reviews.v2"),
        ("https://host/x/my%20data.json.xz?raw=true#top", ".json", "my data"),
        ("hf://datasets/owner/name/train.parquet", ".parquet", "train"),
        ("reviews", "", "reviews"),
        ("reviews.gz", "", "reviews"),
    ):
        assert (ending_of(path), stem_of(path)) == (ending, stem)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's figures of memory")
def test_a_large_json_list_on_one_line_takes_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    def parts() -> Iterator[str]:
        for number in range(3000):
            yield ("[" if number == 0 else ", ") + json.dumps({"first": "x" * 10_000, "second": str(number)})
        yield "]"

    with open(tmp_path / "a.json", "w") as file:
        file.writelines(parts())
    tracemalloc.start()
    count = sum(1 for _ in open_table(tmp_path / "a.json").read(["second"]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 3000 and peak < 2 << 20 < (tmp_path / "a.json").stat().st_size
