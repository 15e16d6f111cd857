"""The JSON files of the benchmarks hold one entry per machine."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from fake_cuda import needs_fake_cuda

sys.path.append(str(REPOSITORY / "benchmarks"))
import gpu
from machine import machine_name, write_rows
from processes import FULL, LORA, ONE, all_reduce, make_rows


def test_a_new_machine_is_added_and_a_repeated_row_replaces_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "cpu.json"
    one = {
        "cpu": "CPU A",
        "cpu_family": "6",
        "cpu_model": "207",
        "threads": 2,
        "gpu": None,
        "command": "python x.py",
        "date": "2026-11-28",
    }
    other = {**one, "cpu": "CPU B"}
    assert machine_name(one) == "CPU A, family 6, model 207, 2 threads"
    write_rows(file, one, [{"task": "rte", "speed": 1}, {"task": "sst2", "speed": 2}], ("task",))
    write_rows(file, other, [{"task": "rte", "speed": 3}], ("task",))
    write_rows(file, one, [{"task": "rte", "speed": 4}], ("task",))
    content = json.loads(file.read_text())
    described = {"command": one["command"], "date": one["date"]}
    rows = [{"task": "sst2", "speed": 2} | described, {"task": "rte", "speed": 4} | described]
    assert content[machine_name(one)] == {"machine": one, "rows": rows}
    assert content[machine_name(other)] == {"machine": other, "rows": [{"task": "rte", "speed": 3} | described]}


def test_bandwidth_and_latency_are_fitted_to_two_processes_and_predict_the_other_all_reduces() -> None:
    """On a machine that follows the formula, every prediction is what was measured."""
    sizes, bandwidth, latency, cores = {ONE: 1, LORA: 665_858, FULL: 124_647_170}, 1e9, 1e-4, 2
    reduced = {
        count: [{name: all_reduce(count, 4 * size, bandwidth, latency) for name, size in sizes.items()}]
        for count in (2, 4)
    }
    seconds = {1: [8.0], 2: [4.0 + reduced[2][0][LORA]], 4: [4.0 + reduced[4][0][LORA]]}
    one, *several = make_rows(sizes, seconds, reduced, cores)
    assert one["speedup"]["median"] == 1 and one["samples_per_second"] == 8
    for row in several:
        assert row["predicted_all_reduce_seconds"] == pytest.approx(row["all_reduce_seconds"], rel=1e-6)
        assert row["predicted_seconds_per_step"] == pytest.approx(row["seconds_per_step"], rel=1e-6)
        assert row["speedup"]["median"] == pytest.approx(8 / row["seconds_per_step"])


@needs_fake_cuda
def test_the_parts_of_the_gpu_benchmark_run_on_a_fake_device() -> None:
    """In a separate process, because the fake device stays registered in torch."""
    command = [sys.executable, "-m", "pytest", "-n", "0", str(Path(__file__).with_name("gpu_benchmark.py"))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]


def test_the_gpu_benchmark_measures_training_steps_and_a_whole_run(tiny_checkpoint: Path, small_data: Path) -> None:
    """On the CPU, with a tiny encoder, without the peer."""
    wanted = argparse.Namespace(
        device="cpu", data=str(small_data), tokenizer=str(tiny_checkpoint), max_tokens=None, peers=False
    )
    rows = list(gpu.throughput(wanted, tiny_checkpoint, tasks=("rte",), rounds=1))
    assert [row["name"] for row in rows] == [f"rte, {method}, minipeft" for method in ("lora", "bitfit", "full")]
    assert all(row["samples_per_second"] > 0 and row["peak_memory_bytes"] > 0 for row in rows), rows
    wanted.peers = True
    names = list(gpu._sides(wanted, tiny_checkpoint, gpu.peer.Row("roberta", "rte", "lora", "training", "bf16", 0.1)))
    assert names[:3] == ["minipeft", "peer, sdpa", "peer, sdpa, grouped by length"] and len(names) in (5, 9)
    (run,) = gpu.end_to_end(wanted, tiny_checkpoint, epochs=1)
    assert run["seconds"] > 0 and run["name"] == "RTE, LoRA, 1 epochs"
    for row in gpu.attention("cpu"):  # in fp32 the difference is that of the order of the sums
        assert row["difference"] < (1e-5 if row["precision"] == "fp32" else 0.05), row


def test_the_peer_is_measured_with_grouped_batches_of_all_lengths_and_with_random_ones() -> None:
    lengths = [(7 * number) % 101 + 3 for number in range(1000)]
    random = gpu.peer.choose_steps(lengths, "random", 3)
    assert random == [list(range(64 * step, 64 * step + 64)) for step in range(3)]
    warm_up, *grouped = gpu.peer.choose_steps(lengths, "grouped", 4)
    assert len(grouped) == 3 and all(len(indices) == 64 for indices in [warm_up, *grouped])
    padded = [max(lengths[index] for index in indices) for indices in grouped]
    assert padded == sorted(padded, reverse=True) and padded[0] > 80 and padded[-1] < 40
    for indices in grouped:  # the sequences of a batch are nearly equally long
        assert max(lengths[index] for index in indices) - min(lengths[index] for index in indices) < 15
    assert gpu.peer.choose_steps(lengths[:40], "grouped", 2)[1]  # less than a step
