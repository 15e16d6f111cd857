"""Equal texts: counted across splits, dropped on request, and on one side of every draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft import MinipeftError, train
from minipeft.data.tables.memory import read_memory
from minipeft.data.tasks.custom import inspect_custom_data
from minipeft.data.tasks.duplicates import Hashes, find_duplicates, is_duplicate
from minipeft.data.tasks.splits import read_split
from minipeft.data.tasks.task import Split, get_task

TEXTS = st.lists(st.tuples(st.sampled_from(["a b", "A  b", " a\tB", "ab", "b a", "ß", "SS", ""]), st.integers(0, 1)))
NONE: dict[str, Any] = dict.fromkeys(("text_column", "pair_column", "label_column", "validation"))


def fold(text: str) -> str:
    return " ".join(text.casefold().split())


def hashes_of(rows: list[tuple[str, int]]) -> Hashes:
    split = Split(get_task("sst2"), [text for text, _ in rows], None, [label for _, label in rows])
    hashes = Hashes()
    assert list(hashes.read([split])) == [split]
    return hashes


@given(train=TEXTS, other=TEXTS)
def test_duplicates_are_those_of_a_plain_search(train: list[tuple[str, int]], other: list[tuple[str, int]]) -> None:
    splits = {"train": hashes_of(train), "validation": hashes_of(other)}
    texts, others = [fold(text) for text, _ in train], [fold(text) for text, _ in other]
    expected = []
    if leaked := [index for index, text in enumerate(others) if text in texts]:
        expected.append((len(leaked), "validation", leaked[0], texts.index(others[leaked[0]])))
    first = [texts.index(text) for text in texts]
    if different := [index for index, place in enumerate(first) if train[index][1] != train[place][1]]:
        contradicted = {texts[index] for index in different}
        count = sum(text in contradicted for text in texts)
        expected.append((count, "train", different[0], first[different[0]]))
    assert list(find_duplicates(splits)) == expected
    kept = [index == first[index] and text not in others for index, text in enumerate(texts)]
    assert (~is_duplicate(splits)).tolist() == kept


@settings(deadline=None)
@given(st.lists(st.integers(0, 12), min_size=10, max_size=60), st.booleans())
def test_a_drawn_split_has_all_rows_of_a_text_or_none(numbers: list[int], paired: bool) -> None:
    rows = [
        {"text": f"{'Text' if n % 2 else 'TEXT'} {number}", "pair": "p", "label": "ab"[(number + n // 50) % 2]}
        for n, number in enumerate(numbers)
    ]
    names = NONE | ({"pair_column": "pair"} if paired else {})
    try:
        custom = inspect_custom_data("auto", read_memory(rows), label_type="classes", **names)
    except MinipeftError:  # one class
        return
    if len(set(numbers)) == 1:
        return  # one text, which cannot be on one side
    train, validation = (read_split(custom.task, split, custom.source) for split in ("train", "validation"))
    assert len(train) + len(validation) == len(rows) and len(train) and len(validation)
    assert not set(map(fold, train.texts)) & set(map(fold, validation.texts))


def test_a_run_names_its_duplicates_and_drops_them(
    tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {
        "train": [("good film", "a"), ("bad film", "b"), ("Good  Film", "b"), ("long film", "b"), ("fun", "a")],
        "validation": [("new film", "a"), ("LONG film", "b")],
        "test": [("fun", "a"), ("bad film", "b"), ("other", "b")],
    }
    for name, rows in files.items():
        lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    given = {"model": str(tiny_checkpoint), "data": str(tmp_path), "steps": 1, "device": "cpu", "report_to": "none"}
    train(**given, output=str(tmp_path / "run"))
    for line in (
        "1 validation rows have a text that occurs in training, such as row 2, which is training row 4: 'LONG film'",
        "2 test rows have a text that occurs in training, such as row 1, which is training row 5: 'fun'",
        "2 training rows have texts with different labels, such as rows 1 and 3: 'Good  Film'. "
        "--drop-duplicates keeps the first row of each text.",
    ):
        assert line in caplog.text
    caplog.clear()
    result = train(**given, output=str(tmp_path / "dropped"), drop_duplicates=True)
    assert "4 of 5 training rows have the text of an earlier row or of another split" in caplog.text
    assert result.job.config["drop_duplicates"] is True
    (tmp_path / "validation.jsonl").write_text((tmp_path / "train.jsonl").read_text())
    with pytest.raises(MinipeftError, match="--drop-duplicates: the text of every training row"):
        train(**given, output=str(tmp_path / "none"), drop_duplicates=True)
