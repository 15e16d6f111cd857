"""The tables of README.md and of the site are what benchmarks/results/*.json hold."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import REPOSITORY

DOCS = REPOSITORY / "docs"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    """The script that fills the tables, which is no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(DOCS), *sys.path])
        importlib.import_module("picture")
        return importlib.import_module("tables")


def test_every_table_is_what_the_json_says(tables: ModuleType) -> None:
    texts = {page: page.read_text(encoding="utf-8") for page in tables.pages()}
    for page, text in texts.items():
        assert tables.fill(text) == text, f"{page.name}: run python docs/tables.py"
    marked = {name for text in texts.values() for _, name, _ in tables.MARKED.findall(text)}
    assert marked == set(tables.TABLES), "a result is on no page"


def test_the_front_page_is_short_and_its_links_lead_somewhere() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert link.startswith("https://") or (REPOSITORY / link.partition("#")[0]).exists(), link


def test_a_table_follows_its_json_and_a_new_machine_gets_its_own(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads((tables.RESULTS / "cpu.json").read_text(encoding="utf-8"))
    (name, entry) = next(iter(content.items()))
    slow = json.loads(json.dumps(entry["rows"][0])) | {"method": "lora", "mode": "training", "precision": "fp32"}
    slow |= {"peer_precision": "fp32", "group_by_length": False}
    slow["ratio"] = {"median": 1.23, "min": 1.1, "max": 1.3}
    machine = entry["machine"] | {"cpu": "CPU B", "date": "2026-01-02", "command": "python other.py"}
    grouped = slow | {"group_by_length": True, "ratio": {"median": 0.82, "min": 1.0, "max": 1.1}}
    content["CPU B"] = {"machine": machine, "rows": [slow, grouped]}
    (tmp_path / "cpu.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "recorded.json").write_bytes((tables.RESULTS / "recorded.json").read_bytes())
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    names = ("speed", "why", "fastest-peer")
    text = tables.fill("".join(f"<!-- table: {name} -->\nold\n<!-- end -->\n" for name in names))
    for wanted in (
        f"**{name}**",
        "**CPU B**",
        "1.23 (1.10 to 1.30)",
        "2026-01-02",
        "python other.py",
        "is 0.82, with the peer at\n  its best (batches grouped by length; CPU B)",
        "is 1.2 to 4.9 times as fast",
    ):
        assert wanted in text
    assert "old" not in text


def test_the_picture_is_what_the_json_says(tables: ModuleType) -> None:
    picture = importlib.import_module("picture")
    assert picture.PICTURE.read_text(encoding="utf-8") == picture.draw(), "run python docs/picture.py"


def test_a_result_names_its_date_and_how_to_repeat_it(tables: ModuleType) -> None:
    for name, entry in tables.read("recorded").items():
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", entry["date"]), name
        assert entry["machine"]["cpu"], name
        assert all(len(row) == len(entry["columns"]) == len(entry["align"]) for row in entry["rows"]), name
        assert entry["command"] or all("python" in str(row[0]) for row in entry["rows"]), f"{name} has no command"
