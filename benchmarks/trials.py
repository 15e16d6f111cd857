"""Run trainings one after the other and keep one row of each in a JSON file, so that a study can stop and continue.

A row holds the flags of `python train.py`, the model's name, the seed, result.json's figures and one entry an epoch.
A trial of another script, peer_accuracy.py, takes the same flags. Rows that the file has for this machine are not run
again.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import describe_machine, machine_name, write_rows

ROOT = Path(__file__).resolve().parent.parent
IDENTITY = ("part", "name", "model", "flags", "seed")  # of a row
EPOCH = ("epoch", "train_loss", "eval_loss", "accuracy", "pearson", "seconds")


@dataclass(frozen=True)
class Trial:
    """One training: the part of the study that it belongs to, its name there, and the flags of its script."""

    part: str
    name: str
    model: str
    flags: str
    seed: int
    script: str = "train.py"

    def command(self, data: str = "GLUE") -> str:
        return f"python {self.script} --data {data} --model {Path(self.model).name} {self.flags} --seed {self.seed}"


def run_trials(trials: Iterable[Trial], data: str, path: Path) -> None:
    """Run the trials that the file does not have, one after another, and add each as soon as it ends."""
    machine = describe_machine("cpu")
    for trial in trials:
        if any(key(row) == key(described(trial)) for row in read_rows(path, machine_name(machine))):
            continue
        row = described(trial) | train(trial, data)
        write_rows(path, machine, [row], IDENTITY)
        print(f"{trial.command()}: {row['best']['value']:.4f}, {row['train_seconds']:.0f} s", flush=True)


def described(trial: Trial) -> dict[str, Any]:
    """Return the fields of a row that identify it."""
    return {name: getattr(trial, name) for name in IDENTITY} | {"model": Path(trial.model).name}


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in IDENTITY)


def read_rows(path: Path, machine: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of a file, of one machine or of all."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [row for name, entry in content.items() if machine in (None, name) for row in entry["rows"]]


def train(trial: Trial, data: str) -> dict[str, Any]:
    """Run the script in a process of its own, which leaves nothing on the disk, and return its figures."""
    command = [sys.executable, str(ROOT / trial.script), "--data", data, "--model", trial.model, *trial.flags.split()]
    command += ["--seed", str(trial.seed)]
    if trial.script != "train.py":  # peer_accuracy.py: a JSON line with the number of parameters, then one per epoch
        process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        _, *epochs = map(json.loads, process.stdout.splitlines())
        points = [{"epoch": entry["epoch"], "value": entry.get("accuracy", entry.get("pearson"))} for entry in epochs]
        return {
            "best": max(points, key=lambda point: point["value"]),
            "last": points[-1],
            "parameters": None,
            "train_seconds": sum(entry["seconds"] for entry in epochs),
            "samples_per_second": epochs[-1]["samples_per_second"],
            "epochs": epochs,
        }
    with tempfile.TemporaryDirectory() as name:
        output = Path(name, "run")
        subprocess.run([*command, "--output", str(output), "--quiet"], check=True)
        result = json.loads((output / "result.json").read_text(encoding="utf-8"))
        lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = [{name: entry[name] for name in EPOCH if name in entry} for entry in map(json.loads, lines)]
    kept = ("best", "last", "parameters", "train_seconds", "samples_per_second")
    return {name: result[name] for name in kept} | {"epochs": epochs}
