"""Measure the time from the command to the end of the first optimizer step: minipeft and the Trainer.

    python benchmarks/startup.py --data ../shared/glue --tokenizer ../shared/tokenizers/roberta-base

Each run is a new process that trains LoRA on RTE (16 x 4 sequences per step) and ends after its first optimizer step.
The two alternate, after one run of each that warms the disk cache. Weights and data are on disk; neither uses the
network. minipeft runs train.py in fp32 and with its default precision; the peer runs the usual script in fp32:
load_dataset, map, Trainer, with dynamic padding. Most of the time is the first step itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from checkpoint import add_flags, make_checkpoint
from machine import describe_machine, write_rows

from minipeft.device import choose_device

STOP = """
import os, time
from torch.optim.optimizer import register_optimizer_step_post_hook
def stop(*_):
    print("first step at", time.time(), flush=True)
    os._exit(0)
register_optimizer_step_post_hook(stop)
"""
OURS = """
import sys
from minipeft.cli.cli import main_train
sys.argv = ["train.py", "--task", "rte", "--method", "lora", "--rank", "2", "--model", {folder!r}, "--data", {data!r},
    "--device", {device!r}, "--precision", {precision!r}, "--output", {output!r}, "--quiet"]
sys.exit(main_train())
"""
PEER = """
from datasets import load_dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer,
    TrainingArguments)
tokenizer = AutoTokenizer.from_pretrained({folder!r})
rows = load_dataset("parquet", data_files={{s: {data!r} + "/rte/" + s + ".parquet" for s in ("train", "validation")}},
    cache_dir={cache!r})
rows = rows.map(lambda r: tokenizer(r["sentence1"], r["sentence2"], truncation=True, max_length=512), batched=True)
rows = rows.rename_column("label", "labels").remove_columns(["sentence1", "sentence2", "idx"])
model = AutoModelForSequenceClassification.from_pretrained({folder!r}, num_labels=2)
model = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, r=2, lora_alpha=8, lora_dropout=0.01))
arguments = TrainingArguments({output!r}, per_device_train_batch_size=16, gradient_accumulation_steps=4,
    learning_rate=5e-4, warmup_steps=100, weight_decay=0.01, report_to="none", use_cpu={device!r} == "cpu")
Trainer(model, arguments, train_dataset=rows["train"], eval_dataset=rows["validation"],
    data_collator=DataCollatorWithPadding(tokenizer)).train()
"""


def seconds(script: str, names: dict[str, Any], offline: dict[str, str]) -> float:
    """Return the seconds until a new process has finished its first optimizer step."""
    with tempfile.TemporaryDirectory() as output:
        began = time.time()
        text = STOP + script.format(**names, output=output + "/run")
        done = subprocess.run([sys.executable, "-c", text], env=offline, capture_output=True, text=True)
        for line in done.stdout.splitlines():
            if line.startswith("first step at"):
                return float(line.split()[-1]) - began
        raise SystemExit(f"no optimizer step was taken:\n{done.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    flag = parser.add_argument
    flag("--precisions", nargs="+", default=["fp32", "auto"], help="minipeft's [fp32 auto]")
    flag("--rounds", type=int, default=5)
    flag("--device", default="auto")
    flag("--output", help="JSON file to which the row is added, under the machine's name (machine.py)")
    wanted = parser.parse_args()
    root = str(Path(__file__).resolve().parent.parent)
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": root, "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as name:
        folder = make_checkpoint(Path(name) / "weights", Path(wanted.tokenizer), wanted.layers)
        data, cache = str(Path(wanted.data).resolve()), f"{name}/cache"
        names = {"folder": str(folder), "data": data, "cache": cache, "device": choose_device(wanted.device)}
        took: dict[str, list[float]] = {"peer": [], **{precision: [] for precision in wanted.precisions}}
        for _ in range(wanted.rounds + 1):
            for side, values in took.items():
                values.append(seconds(PEER if side == "peer" else OURS, {**names, "precision": side}, offline))
    print(
        "| from the command to the first step | peer | minipeft | minipeft / peer (median, min to max) |\n"
        "|---|---|---|---|"
    )
    rows = []
    for precision in wanted.precisions:
        both = {"peer": took["peer"][1:], "minipeft": took[precision][1:]}
        ratios = [a / b for a, b in zip(both["minipeft"], both["peer"], strict=True)]
        ratio = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        rows.append({"layers": wanted.layers, "precision": precision, "seconds": both, "ratio": ratio})
        medians = {side: statistics.median(values) for side, values in both.items()}
        print(
            f"| RTE, LoRA, {names['device']}, {precision} | {medians['peer']:.1f} s | {medians['minipeft']:.1f} s "
            f"| {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) |"
        )
    if wanted.output:
        write_rows(Path(wanted.output), describe_machine(names["device"]), rows, ("layers", "precision"))


if __name__ == "__main__":
    main()
