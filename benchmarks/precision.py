"""Measure the accuracy of LoRA in bf16 and in fp32 on real data: the same runs, once in each precision.

    python benchmarks/precision.py --data ../shared/glue --models roberta-mini FOLDER

FOLDER holds a checkpoint, for example all-MiniLM-L6-v2. Each run is train.py in a process of its own, with the flags
of COMMON and RUNS; the two precisions of a seed follow each other. The best epoch counts.
`--output` adds a row for each task and model to a JSON file, under the machine's name (machine.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import describe_machine, write_rows

from minipeft.data.tasks.splits import read_split
from minipeft.data.tasks.task import get_task

ROOT = Path(__file__).resolve().parent.parent
COMMON = ["--method", "lora", "--rank", "8", "--alpha", "16", "--warmup-steps", "20", "--max-length", "128", "--quiet"]
RUNS = {  # task → its flags
    "sst2": ["--epochs", "1", "--train-limit", "20000"],
    "rte": ["--epochs", "2"],
}
LEARNING_RATES = {"roberta-mini": "2e-3"}  # others: 1e-3
PRECISIONS = ("fp32", "bf16")
IDENTITY = ("task", "model")  # of a row


def train(data: str, task: str, model: str, precision: str, seed: int) -> dict[str, Any]:
    """Return result.json of one run, which leaves nothing on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), "--task", task, "--data", data, "--model", model, *COMMON]
        command += [*RUNS[task], "--lr", LEARNING_RATES.get(model, "1e-3"), "--precision", precision]
        subprocess.run([*command, "--seed", str(seed), "--output", f"{folder}/run"], check=True)
        content: dict[str, Any] = json.loads(Path(folder, "run", "result.json").read_text(encoding="utf-8"))
        return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--data", required=True, help="folder with GLUE's parquet files")
    flag("--models", nargs="+", default=["roberta-mini"], help="names or folders of checkpoints [roberta-mini]")
    flag("--tasks", nargs="+", default=list(RUNS), choices=list(RUNS))
    flag("--seeds", nargs="+", type=int, default=[42, 1, 2])
    flag("--output", help="JSON file to which the rows are added")
    wanted = parser.parse_args()
    data = str(Path(wanted.data).resolve())
    machine = describe_machine("cpu") if wanted.output else {}
    print("| task | model | seed | fp32 | bf16 |\n|---|---|---|---|---|", flush=True)
    for model in wanted.models:
        name = Path(model).name
        for task in wanted.tasks:
            accuracy: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
            for seed in wanted.seeds:
                for precision in PRECISIONS:
                    result = train(data, task, model, precision, seed)
                    accuracy[precision].append(result["best"]["value"])
                print(
                    f"| {task} | {name} | {seed} | {accuracy['fp32'][-1]:.4f} | {accuracy['bf16'][-1]:.4f} |",
                    flush=True,
                )
            mean = statistics.mean(accuracy["fp32"])
            difference = statistics.mean(accuracy["bf16"]) - mean
            rows = len(read_split(get_task(task), get_task(task).validation, data))
            row = {"task": task, "model": name, "seeds": wanted.seeds, "accuracy": accuracy, "difference": difference}
            row["standard_error"] = (mean * (1 - mean) / rows) ** 0.5  # of one run's accuracy: a binomial proportion
            print(
                f"{task}, {name}: bf16 - fp32 {difference:+.4f}, standard error {row['standard_error']:.4f}", flush=True
            )
            if wanted.output:
                write_rows(Path(wanted.output), machine, [row], IDENTITY)


if __name__ == "__main__":
    main()
