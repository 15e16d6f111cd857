"""Compare minipeft with transformers + peft on token classification: the entity F1, or accuracy, of several seeds.

    python benchmarks/tokens.py --data ../shared/tokens/wnut17 --label-column ner_tags --model FOLDER --method lora

Both train on the same rows with the same settings: AdamW, linear decay after the same warmup, batches of 16 sequences,
dropout on. The peer pads each batch to its longest sequence and computes its metrics with the same function. Each seed
prints a line, and with `--output FILE` adds its row to a JSON file (machine.py), so that a measurement can be taken in
parts; `python docs/tables.py` writes the mean and the standard error over the seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine, write_rows
from peft import LoraConfig, TaskType, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForTokenClassification, get_linear_schedule_with_warmup

import minipeft
from minipeft.data.batches.sampling import epoch_order, pack_examples
from minipeft.data.tasks.custom import inspect_custom_data
from minipeft.data.tasks.splits import read_chunks
from minipeft.data.tokens.examples import Encoded, encode_split
from minipeft.hub import resolve_model
from minipeft.model.families import load_config
from minipeft.problems.problem import IGNORE_INDEX
from minipeft.training.optimization.optimizer import parameter_groups

BATCH = 16
SETTINGS = ("data", "model", "method", "epochs", "lr", "max_length", "train_limit", "eval_limit")


def padded(examples: Encoded, chosen: list[int], config: Any) -> dict[str, torch.Tensor]:
    batch = pack_examples(examples, chosen, config)
    assert batch.labels is not None
    lengths = list(batch.lengths)
    rows = {"input_ids": (batch.input_ids, config.pad_token_id), "labels": (batch.labels, IGNORE_INDEX)}
    rows["attention_mask"] = (torch.ones_like(batch.input_ids), 0)
    return {
        name: pad_sequence(values.split(lengths), batch_first=True, padding_value=fill)
        for name, (values, fill) in rows.items()
    }


def train_peer(wanted: argparse.Namespace, seed: int, train: Encoded, validation: Encoded) -> float:
    """Return the value of the task's metric after the last epoch."""
    torch.manual_seed(seed)
    folder, _ = resolve_model(wanted.model)
    task = train.split.task
    config = load_config(folder).with_labels(list(task.labels), task.problem.name)
    model: Any = AutoModelForTokenClassification.from_pretrained(
        folder, num_labels=task.num_labels, dtype=torch.float32
    )
    if wanted.method == "lora":
        lora = LoraConfig(task_type=TaskType.TOKEN_CLS, r=8, lora_alpha=16, target_modules=["query", "value"])
        model = get_peft_model(model, lora)
    steps = wanted.epochs * -(-len(train) // BATCH)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=wanted.lr)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    for epoch in range(wanted.epochs):
        model.train()
        order = list(epoch_order(len(train), seed, epoch))
        for start in range(0, len(order), BATCH):
            model(**padded(train, order[start : start + BATCH], config)).loss.backward()
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()
    logits = torch.zeros(validation.num_outputs, task.num_labels)
    with torch.inference_mode():
        for start in range(0, len(validation), BATCH):
            chosen = list(range(start, min(start + BATCH, len(validation))))
            batch = padded(validation, chosen, config)
            found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            places, rows = validation.outputs(chosen)
            logits[rows] = found[batch["attention_mask"].bool()][places]
    assert validation.windows is not None
    scores = task.problem.score(validation.windows.pool(logits), validation.split.labels, task.metrics)
    return scores[task.metrics[0]]


def train_ours(wanted: argparse.Namespace, seed: int) -> float:
    options: dict[str, Any] = {"rank": 8, "alpha": 16.0, "dropout": 0.0} if wanted.method == "lora" else {}
    with tempfile.TemporaryDirectory() as folder:
        result = minipeft.train(
            data=wanted.data,
            label_type="tokens",
            label_column=wanted.label_column,
            model=wanted.model,
            method=wanted.method,
            **options,
            epochs=wanted.epochs,
            lr=wanted.lr,
            batch_size=BATCH,
            grad_accum=1,
            warmup_ratio=0.1,
            seed=seed,
            precision="fp32",
            max_length=wanted.max_length,
            train_limit=wanted.train_limit,
            eval_limit=wanted.eval_limit,
            output=str(Path(folder) / "run"),
            quiet=True,
        )
    return float(result.content["last"]["value"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--data", required=True)
    flag("--label-column", default="ner_tags")
    flag("--model", default="roberta-mini")
    flag("--name", help="name of the model in the results, where --model is a folder")
    flag("--method", default="lora", choices=["lora", "full"])
    flag("--epochs", type=int, default=10)
    flag("--lr", type=float, default=1e-3)
    flag("--seeds", type=int, nargs="+", default=[1, 2, 3])
    flag("--max-length", type=int, default=128)
    flag("--train-limit", type=int)
    flag("--eval-limit", type=int)
    flag("--output", help="JSON file to which a row per seed is added")
    wanted = parser.parse_args()
    columns: dict[str, Any] = dict.fromkeys(("text_column", "pair_column", "validation"))
    data = inspect_custom_data("auto", wanted.data, label_type="tokens", label_column=wanted.label_column, **columns)
    folder, _ = resolve_model(wanted.model)
    tokenizer, config = minipeft.load_tokenizer(folder), load_config(folder)
    train, validation = (
        encode_split(data.task, read_chunks(data.task, split, data.source, limit), tokenizer, wanted.max_length, config)
        for split, limit in (("train", wanted.train_limit), ("validation", wanted.eval_limit))
    )
    row: dict[str, Any] = {name: getattr(wanted, name) for name in SETTINGS}
    row |= {"data": Path(wanted.data).name, "model": wanted.name or wanted.model, "metric": data.task.metrics[0]}
    machine = describe_machine("cpu")
    machine["command"] = machine["command"].replace("--data GLUE", f"--data {row['data']}")
    for seed in wanted.seeds:
        start = time.perf_counter()
        row |= {"seed": seed, "minipeft": train_ours(wanted, seed)}
        middle = time.perf_counter()
        row |= {"peer": train_peer(wanted, seed, train, validation)}
        row["seconds"] = {"minipeft": middle - start, "peer": time.perf_counter() - middle}
        print(json.dumps(row), flush=True)
        if wanted.output:
            write_rows(Path(wanted.output), machine, [row], (*SETTINGS, "seed"))


if __name__ == "__main__":
    main()
