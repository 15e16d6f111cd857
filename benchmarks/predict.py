"""Measure prediction as users run it: minipeft, ONNX Runtime and transformers' pipeline, each in a process of its own.

    python benchmarks/predict.py --data ../shared/glue --tokenizer ../shared/tokenizers/roberta-base --rows 2000
    python benchmarks/predict.py --data ../shared/glue --model roberta-mini --rows 20000

The texts are those of SST-2's training split, repeated if --rows asks for more. Each process loads the model from the
disk, reads the texts from a JSON file, writes its predictions, and says how long all of that took; imports are not
counted. ONNX Runtime and the pipeline take batches of 32 in the order of the file, minipeft what `minipeft predict`
does. The latency is the median time of a call with 1 and with 32 texts. Without --model the weights are random, in
roberta-base's shape: they do not affect the time. The labels of each are compared with those of the first.
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
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import torch
from machine import describe_machine, write_rows

import minipeft
from minipeft.data.tasks.splits import read_split
from minipeft.data.tasks.task import get_task
from minipeft.device import peak_memory

BATCH = 32
SIDES = ("minipeft fp32", "minipeft bf16", "ONNX fp32", "ONNX int8", "transformers pipeline fp32")
Predict = Callable[[list[str]], list[str]]  # texts → labels


def load_minipeft(folder: Path, precision: str) -> Predict:
    run = minipeft.load_run(folder, "cpu", precision)
    return lambda texts: [row["label"] for row in run.predict(texts)]


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

    return predict


def load_pipeline(folder: Path) -> Predict:
    from transformers import pipeline

    classify = pipeline("text-classification", str(folder), device="cpu", batch_size=BATCH)
    return lambda texts: [row["label"] for row in classify(texts, truncation=True)]


def measure(side: str, folder: Path, threads: int) -> None:
    """Print the figures of one side; runs in a process of its own."""
    torch.set_num_threads(threads)
    loaders: dict[str, Callable[[], Predict]] = {
        "minipeft fp32": lambda: load_minipeft(folder / "merged", "fp32"),
        "minipeft bf16": lambda: load_minipeft(folder / "merged", "bf16"),
        "ONNX fp32": lambda: load_onnx(folder / "onnx" / "model.onnx", threads),
        "ONNX int8": lambda: load_onnx(folder / "onnx" / "model_int8.onnx", threads),
        "transformers pipeline fp32": lambda: load_pipeline(folder / "merged"),
    }
    if side.startswith("transformers"):
        import transformers.pipelines  # noqa: F401 - imports are not counted
    if side.startswith("ONNX"):
        import onnxruntime  # noqa: F401
    start = time.perf_counter()
    predict = loaders[side]()
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    size = {"minipeft": 4096, "ONNX": BATCH}.get(side.split()[0], len(texts))  # of a call; the pipeline makes batches
    labels = [label for part in parts(texts, size) for label in predict(part)]
    (folder / f"{side}.json").write_text(json.dumps(labels), encoding="utf-8")
    seconds = time.perf_counter() - start
    latency = {count: median_seconds(predict, texts[:count]) for count in (1, BATCH)}
    figures = {
        "rows_per_second": len(texts) / seconds,
        "peak_memory_bytes": peak_memory("cpu"),
        "latency_1_seconds": latency[1],
        "latency_32_seconds": latency[BATCH],
    }
    print(json.dumps(figures))


def parts(texts: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


def median_seconds(predict: Predict, texts: list[str], calls: int = 20) -> float:
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        predict(texts)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def prepare(folder: Path, wanted: argparse.Namespace) -> None:
    """Write the merged checkpoint, its ONNX programs and the texts."""
    if wanted.model is None:
        torch.manual_seed(0)
        model = minipeft.SequenceClassifier(minipeft.EncoderConfig()).eval()
        model.folder = Path(wanted.tokenizer)
    else:
        model = minipeft.load_pretrained(wanted.model)
    minipeft.export(model, folder / "merged")
    minipeft.load_run(folder / "merged", "cpu", "fp32").export_onnx(folder / "onnx", int8=True)
    texts = read_split(get_task("sst2"), "train", wanted.data, wanted.rows).texts
    (folder / "texts.json").write_text(json.dumps(list(islice(cycle(texts), wanted.rows))), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--data", help="folder with sst2/")
    flag("--tokenizer", help="folder with roberta-base's tokenizer, for random weights")
    flag("--model", help="a name or a folder [random weights in roberta-base's shape]")
    flag("--rows", type=int, default=2000, help="[2000]")
    flag("--threads", type=int, default=2, help="[2]")
    flag("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    flag("--output", help="JSON file to which the rows are added")
    flag("--side", help=argparse.SUPPRESS)
    flag("--folder", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.side:
        return measure(wanted.side, Path(wanted.folder), wanted.threads)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, wanted)
        for side in wanted.sides:
            command = [sys.executable, __file__, "--side", side, "--folder", name, "--threads", str(wanted.threads)]
            variables = {**os.environ, "OMP_NUM_THREADS": str(wanted.threads), "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)
            labels, first = (
                json.loads((folder / f"{one}.json").read_text(encoding="utf-8")) for one in (side, wanted.sides[0])
            )
            file = "onnx/model_int8.onnx" if side == "ONNX int8" else "onnx/model.onnx"
            file = file if side.startswith("ONNX") else "merged/model.safetensors"
            row = {
                "side": side,
                "model": wanted.model or "roberta-base's shape, random weights",
                "rows": wanted.rows,
                **json.loads(done.stdout.splitlines()[-1]),
                "file_bytes": (folder / file).stat().st_size,
                "agreement": sum(a == b for a, b in zip(labels, first, strict=True)) / len(labels),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    print("\n" + table(rows))
    if wanted.output:
        torch.set_num_threads(wanted.threads)
        write_rows(Path(wanted.output), describe_machine("cpu"), rows, ("side", "model"))


def table(rows: list[dict[str, float]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| | rows/s | 1 text, ms | 32 texts, ms | peak memory, MB | file, MB | same labels as the first |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['side']} | {row['rows_per_second']:.1f} | {1e3 * row['latency_1_seconds']:.1f} "
            f"| {1e3 * row['latency_32_seconds']:.1f} | {row['peak_memory_bytes'] / 1e6:.0f} "
            f"| {row['file_bytes'] / 1e6:.0f} | {row['agreement']:.2%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
