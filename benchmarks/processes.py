"""Measure training with several processes, and the all-reduce that each of their steps waits for.

    python benchmarks/processes.py --data ../shared/glue --tokenizer ../shared/tokenizers/roberta-base

Each training is train.py under torchrun: LoRA of rank 2 on RTE, without dropout, in fp32, in steps of 64 examples, with
one thread per process and gloo on the loopback interface. The weights are random, in roberta-base's shape. The numbers
of processes alternate (1 2 4 1 2 4). A training evaluates 8 examples after each step, so that metrics.jsonl has the
seconds of every step without start-up and evaluation; the first step is the warm-up. The speedup is that of a round
against the same round's training with one process. The machine may have fewer cores than processes.

A second program measures all-reduces of float32 in as many processes: of one number, of as many as a step of LoRA
sends, and as many as a step of full fine-tuning. Latency and bandwidth, from the first and the last of these with two
processes, are the constants of

    step(N) = compute(1) / min(N, cores) + all_reduce(N)
    all_reduce(N) = 2 (N - 1) / N * bytes / bandwidth + 2 (N - 1) * latency

`--output` adds the rows, measured and predicted, to a JSON file, under the machine's name (machine.py).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from checkpoint import add_flags, make_checkpoint
from machine import describe_machine, write_rows

import minipeft
from minipeft.files import read_json_lines
from minipeft.training.threads import count_cores

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = (1, 2, 4)
STEP = 64  # examples: 16 x 4
ONE, LORA, FULL = "one number", "lora", "full"  # what an all-reduce sends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    flag = parser.add_argument
    flag("--steps", type=int, default=4, help="of each training, the warm-up included [4]")
    flag("--rounds", type=int, default=3)
    flag("--output", help="JSON file to which the rows are added")
    wanted = parser.parse_args()
    seconds: dict[int, list[float]] = {count: [] for count in PROCESSES}
    reduced: dict[int, list[dict[str, float]]] = {count: [] for count in PROCESSES[1:]}
    with tempfile.TemporaryDirectory() as name:
        model = make_checkpoint(Path(name) / "model", Path(wanted.tokenizer), wanted.layers)
        sizes = message_sizes(model)
        for number in range(wanted.rounds):
            for count in PROCESSES:
                seconds[count].append(train(count, model, Path(wanted.data), wanted.steps, Path(name) / "run"))
                print(f"round {number + 1}: {count} processes, {STEP / seconds[count][-1]:.2f} samples/s", flush=True)
            for count in PROCESSES[1:]:
                reduced[count].append(all_reduce_seconds(count, sizes))
                print(f"all-reduce with {count} processes, s: {reduced[count][-1]}", flush=True)
            rows = make_rows(sizes, seconds, reduced, count_cores())
            if wanted.output:  # after each round, so that a benchmark that is stopped has written something
                write_rows(Path(wanted.output), describe_machine("cpu"), rows, ("processes",))
    print(json.dumps(rows, indent=2))


def message_sizes(folder: Path) -> dict[str, int]:
    """Return how many float32 a step's all-reduce sends: gradients, the loss, and whether a tensor has a gradient."""
    sizes = {ONE: 1}
    for name, method in ((LORA, minipeft.LoRA(rank=2)), (FULL, minipeft.Full())):
        model = minipeft.apply(minipeft.load_pretrained(folder), method)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        sizes[name] = sum(parameter.numel() for parameter in trained) + len(trained) + 1
    return sizes


def train(count: int, model: Path, data: Path, steps: int, folder: Path) -> float:
    """Return the mean seconds of a training's steps after the first."""
    words = ["train.py", "--task", "rte", "--method", "lora", "--rank", "2", "--dropout", "0", "--precision", "fp32"]
    words += ["--device", "cpu", "--model", str(model), "--data", str(data.resolve()), "--epochs", "1", "--quiet"]
    words += ["--train-limit", str(steps * STEP), "--eval-limit", "8", "--eval-every", "1", "--report-to", "none"]
    torchrun(count, [*words, "--output", str(folder)])
    rows = read_json_lines(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    shutil.rmtree(folder)
    return statistics.mean(row["seconds"] for row in rows[1:])


def all_reduce_seconds(count: int, sizes: dict[str, int]) -> dict[str, float]:
    """Return the median seconds of an all-reduce of each size."""
    seconds: dict[str, float] = json.loads(torchrun(count, [__file__, *map(str, sizes.values())]).splitlines()[-1])
    return dict(zip(sizes, seconds, strict=True))


def torchrun(count: int, words: Sequence[str]) -> str:
    """Start a program in `count` processes of one thread each; return what it prints."""
    variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    if sys.platform == "linux":
        variables["GLOO_SOCKET_IFNAME"] = "lo"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *words]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def time_all_reduces(sizes: Sequence[int]) -> None:
    """Print, on rank 0, the median seconds of an all-reduce of each size; torchrun starts this in every process."""
    dist.init_process_group("gloo")
    medians = []
    for size in sizes:
        message, seconds = torch.zeros(size), list[float]()
        for _ in range(1 + max(5, min(200, 20_000_000 // size))):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(message)
            seconds.append(time.perf_counter() - start)
        medians.append(statistics.median(seconds[1:]))  # the first is the warm-up
    if dist.get_rank() == 0:
        print(json.dumps(medians))
    dist.destroy_process_group()


def all_reduce(count: int, size: int, bandwidth: float, latency: float) -> float:
    """Return the seconds that the formula gives for an all-reduce of `size` bytes."""
    return 2 * (count - 1) / count * size / bandwidth + 2 * (count - 1) * latency


def make_rows(
    sizes: dict[str, int], seconds: dict[int, list[float]], reduced: dict[int, list[dict[str, float]]], cores: int
) -> list[dict[str, Any]]:
    """Return a row for each number of processes.

    Args:
        sizes: how many float32 each kind of all-reduce sends.
        seconds: of a step, by the number of processes, one per round.
        reduced: seconds of an all-reduce of each kind, by the number of processes, one per round.
        cores: of the machine.
    """
    measured = {
        count: {name: statistics.median(one[name] for one in rounds) for name in sizes}
        for count, rounds in reduced.items()
    }
    # The formula for two processes is bytes / bandwidth + 2 * latency.
    bandwidth = 4 * (sizes[FULL] - sizes[ONE]) / (measured[2][FULL] - measured[2][ONE])
    latency = (measured[2][ONE] - 4 * sizes[ONE] / bandwidth) / 2
    compute, rows = statistics.median(seconds[1]), []
    for count, rounds in seconds.items():
        speedups = [one / other for one, other in zip(seconds[1], rounds, strict=True)]
        row: dict[str, Any] = {
            "processes": count,
            "cores": cores,
            "samples_per_second": STEP / statistics.median(rounds),
            "speedup": {"median": statistics.median(speedups), "min": min(speedups), "max": max(speedups)},
            "rounds": len(rounds),
            "seconds_per_step": statistics.median(rounds),
        }
        if count > 1:
            predicted = {name: all_reduce(count, 4 * size, bandwidth, latency) for name, size in sizes.items()}
            row |= {
                "bytes": {name: 4 * size for name, size in sizes.items()},
                "all_reduce_seconds": measured[count],
                "bandwidth": bandwidth,
                "latency": latency,
                "predicted_all_reduce_seconds": predicted,
                "predicted_seconds_per_step": compute / min(count, cores) + predicted[LORA],
            }
        rows.append(row)
    return rows


if __name__ == "__main__":
    if "RANK" in os.environ:
        time_all_reduces([int(size) for size in sys.argv[1:]])
    else:
        main()
