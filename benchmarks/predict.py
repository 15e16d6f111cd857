"""Measure prediction as users run it: `minipeft predict`, ONNX Runtime and transformers' pipeline.

    python benchmarks/predict.py --data ../shared/glue --tokenizer ../shared/tokenizers/roberta-base --rows 2000
    python benchmarks/predict.py --data ../shared/glue --model roberta-mini --rows 100000 --rounds 3

A LoRA run of one step is trained, merged and exported by minipeft's commands. Then each side predicts the file of
texts, SST-2's training split, repeated if --rows asks for more, in a process of its own; the sides alternate:

    minipeft fp32, bf16    minipeft predict RUN --input texts.jsonl --output predictions.jsonl
    ONNX fp32, int8        a script that tokenizes and predicts batches of 32 in the order of the file
    pipeline               a script that calls pipeline(…, batch_size=32) on the merged checkpoint

The time is that of the whole process: start, imports, loading, reading and writing. The latency is the median time of
a call with 1 and with 32 texts, in further processes. Without --model the weights are random, in roberta-base's shape:
they do not affect the time. The labels of each side are compared with those of the first one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

BATCH = 32
PIPELINE = "transformers pipeline fp32"
SIDES = ("minipeft fp32", "minipeft bf16", "ONNX fp32", "ONNX int8", PIPELINE)
ONNX_FILES = {"ONNX fp32": "onnx/model.onnx", "ONNX int8": "onnx/model_int8.onnx"}
FIGURE = "figures: "  # the start of a child's line
COMMAND = f"""
import sys
from minipeft.cli.cli import main
status = main(sys.argv[1:])
from minipeft.device import peak_memory
print({FIGURE!r} + '{{"peak_memory_bytes": %d}}' % peak_memory("cpu"))
sys.exit(status)
"""
Predict = Callable[[list[str]], list[str]]  # texts → labels


def load_minipeft(run: Path) -> Predict:
    import minipeft

    loaded = minipeft.load_run(run, "cpu")
    return lambda texts: [row["label"] for row in loaded.predict(texts)]


def load_onnx(path: Path, threads: int) -> Predict:
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(path.parent / "tokenizer.json"))
    tokenizer.enable_truncation(min(512, config["max_position_embeddings"] - 2))
    tokenizer.enable_padding(pad_id=config["pad_token_id"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options)
    columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}

    def predict(texts: list[str]) -> list[str]:
        rows = tokenizer.encode_batch(texts)
        inputs = {one.name: np.array([getattr(row, columns[one.name]) for row in rows]) for one in session.get_inputs()}
        return [config["id2label"][str(label)] for label in session.run(["logits"], inputs)[0].argmax(1)]

    return lambda texts: [label for start in range(0, len(texts), BATCH) for label in predict(texts[start:][:BATCH])]


def load_pipeline(folder: Path, threads: int) -> Predict:
    import torch
    from transformers import pipeline

    torch.set_num_threads(threads)
    classify = pipeline("text-classification", str(folder), device="cpu", batch_size=BATCH)
    return lambda texts: [row["label"] for row in classify(texts, truncation=True)]


def load(side: str, folder: Path, threads: int) -> Predict:
    if side in ONNX_FILES:
        return load_onnx(folder / ONNX_FILES[side], threads)
    return load_pipeline(folder / "merged", threads) if side == PIPELINE else load_minipeft(folder / side.split()[1])


def read_texts(folder: Path) -> list[str]:
    with open(folder / "texts.jsonl", encoding="utf-8") as file:
        return [json.loads(line)["sentence"] for line in file]


def predict_texts(side: str, folder: Path, threads: int) -> dict[str, float]:
    """Predict the file of texts by a peer, in a process of its own; returns its peak memory."""
    labels = load(side, folder, threads)(read_texts(folder))
    with open(folder / f"{side}.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"label": label}) + "\n" for label in labels)
    from minipeft.device import peak_memory  # imports no torch

    return {"peak_memory_bytes": peak_memory("cpu")}


def measure_latency(side: str, folder: Path, threads: int, calls: int = 20) -> dict[str, float]:
    """Return the median seconds of a call with 1 and with 32 texts, in a process of its own."""
    predict, texts, figures = load(side, folder, threads), read_texts(folder), {}
    for count in (1, BATCH):
        seconds = []
        for _ in range(calls):
            start = time.perf_counter()
            predict(texts[:count])
            seconds.append(time.perf_counter() - start)
        figures[f"latency_{count}_seconds"] = statistics.median(seconds)
    return figures


def run_child(arguments: list[str], threads: int) -> tuple[float, dict[str, float]]:
    """Run Python in a new process; returns its seconds and the figures that it prints."""
    root = str(Path(__file__).resolve().parent.parent)
    variables = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": root}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env=os.environ | variables, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    lines = [line for line in done.stdout.splitlines() if line.startswith(FIGURE)]
    return seconds, json.loads(lines[-1].removeprefix(FIGURE)) if lines else {}


def prepare(folder: Path, wanted: argparse.Namespace) -> None:
    """Write the runs, the merged checkpoint, the ONNX programs and the texts."""
    from checkpoint import make_checkpoint

    from minipeft.data.tasks.splits import read_split
    from minipeft.data.tasks.task import get_task

    model = wanted.model or str(make_checkpoint(folder / "base", Path(wanted.tokenizer), 12))
    train = ["-m", "minipeft", "train", "--task", "sst2", "--data", wanted.data, "--model", model, "--method", "lora"]
    train += ["--steps", "1", "--train-limit", "16", "--eval-limit", "16", "--device", "cpu", "--quiet"]
    commands = [
        [*train, "--precision", "fp32", "--output", str(folder / "fp32")],
        [*train, "--precision", "bf16", "--output", str(folder / "bf16")],
        ["-m", "minipeft", "merge", str(folder / "fp32"), str(folder / "merged")],
        ["-m", "minipeft", "export", str(folder / "fp32"), str(folder / "onnx"), "--format", "onnx", "--int8"],
    ]
    for command in commands:
        run_child(command, wanted.threads)
    texts = read_split(get_task("sst2"), "train", wanted.data, wanted.rows).texts
    with open(folder / "texts.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"sentence": text}) + "\n" for text in islice(cycle(texts), wanted.rows))


def measure(side: str, folder: Path, threads: int) -> dict[str, float]:
    """Predict the file of texts and measure the latency, in two processes; returns the figures."""
    output = folder / f"{side}.jsonl"
    output.unlink(missing_ok=True)
    child = [__file__, "--side", side, "--folder", str(folder), "--threads", str(threads), "--data", ""]
    command = [*child, "--child", "predict"]
    if side.startswith("minipeft"):
        files = ["--input", str(folder / "texts.jsonl"), "--output", str(output)]
        command = ["-c", COMMAND, "predict", str(folder / side.split()[1]), *files, "--device", "cpu"]
    seconds, figures = run_child(command, threads)
    return {"seconds": seconds, **figures, **run_child([*child, "--child", "latency"], threads)[1]}


def rows_of(figures: dict[str, list[dict[str, float]]], folder: Path, wanted: argparse.Namespace) -> list[Any]:
    """Return a row for each side: medians over the rounds, and the speedup over the pipeline of the same round."""
    labels = {
        side: [json.loads(line)["label"] for line in (folder / f"{side}.jsonl").read_text("utf-8").splitlines()]
        for side in figures
    }
    first, rows = next(iter(labels.values())), []
    for side, rounds in figures.items():
        median = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        peers = zip(figures.get(PIPELINE, []), rounds, strict=False)
        row = {
            "side": side,
            "model": Path(wanted.model).name if wanted.model else "roberta-base's shape, random weights",
            "rows": wanted.rows,
            **median,
            "rows_per_second": wanted.rows / median["seconds"],
            "speedups": sorted(peer["seconds"] / one["seconds"] for peer, one in peers),
            "file_bytes": (folder / ONNX_FILES.get(side, "merged/model.safetensors")).stat().st_size,
            "agreement": sum(a == b for a, b in zip(labels[side], first, strict=True)) / len(first),
        }
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--data", required=True, help="folder with sst2/")
    flag("--tokenizer", help="folder with roberta-base's tokenizer, for random weights")
    flag("--model", help="a name or a folder [random weights in roberta-base's shape]")
    flag("--rows", type=int, default=2000, help="[2000]")
    flag("--rounds", type=int, default=1, help="[1]")
    flag("--threads", type=int, default=2, help="[2]")
    flag("--sides", nargs="+", choices=SIDES, help="[all; minipeft bf16 where the CPU is fast in it]")
    flag("--output", help="JSON file to which the rows are added")
    for name in ("--side", "--folder", "--child"):
        flag(name, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.child:
        act = predict_texts if wanted.child == "predict" else measure_latency
        print(FIGURE + json.dumps(act(wanted.side, Path(wanted.folder), wanted.threads)))
        return
    import torch
    from machine import describe_machine, write_rows

    from minipeft.device import has_fast_bf16

    torch.set_num_threads(wanted.threads)
    sides = wanted.sides or [side for side in SIDES if has_fast_bf16("cpu") or "bf16" not in side]
    figures: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), wanted)
        for number in range(wanted.rounds):
            for side in sides:
                figures[side].append(measure(side, Path(name), wanted.threads))
                print(f"round {number + 1}: {side}: {json.dumps(figures[side][-1])}", flush=True)
        rows = rows_of(figures, Path(name), wanted)
    print("\n" + table(rows))
    if wanted.output:
        write_rows(Path(wanted.output), describe_machine("cpu"), rows, ("side", "model"))


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| | rows/s | pipeline's time / this | 1 text, ms | 32 texts, ms | peak memory, MB | file, MB | same labels |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        ratio = f"{statistics.median(row['speedups']):.2f}" if row["speedups"] else ""
        lines.append(
            f"| {row['side']} | {row['rows_per_second']:.1f} | {ratio} | {1e3 * row['latency_1_seconds']:.1f} "
            f"| {1e3 * row['latency_32_seconds']:.1f} | {row['peak_memory_bytes'] / 1e6:.0f} "
            f"| {row['file_bytes'] / 1e6:.0f} | {row['agreement']:.2%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
