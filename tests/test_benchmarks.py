"""The JSON files of the benchmarks hold one entry per machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from conftest import REPOSITORY

sys.path.append(str(REPOSITORY / "benchmarks"))
from machine import machine_name, write_rows


def test_a_new_machine_is_added_and_a_repeated_row_replaces_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "cpu.json"
    one = {"cpu": "CPU A", "cpu_family": "6", "cpu_model": "207", "threads": 2, "gpu": None}
    other = {**one, "cpu": "CPU B"}
    assert machine_name(one) == "CPU A, family 6, model 207, 2 threads"
    write_rows(file, one, [{"task": "rte", "speed": 1}, {"task": "sst2", "speed": 2}], ("task",))
    write_rows(file, other, [{"task": "rte", "speed": 3}], ("task",))
    write_rows(file, one, [{"task": "rte", "speed": 4}], ("task",))
    content = json.loads(file.read_text())
    assert content[machine_name(one)]["rows"] == [{"task": "sst2", "speed": 2}, {"task": "rte", "speed": 4}]
    assert content[machine_name(other)] == {"machine": other, "rows": [{"task": "rte", "speed": 3}]}
