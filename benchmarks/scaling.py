"""Measure the cost per token of LoRA training against tokens per batch, sequence length, model size and rank.

    python benchmarks/scaling.py

Each table varies one value; the defaults of the others are 2048 tokens per batch, 64 tokens per sequence, rank 8 and
roberta-base's shape. Columns: time per token; the minimum FLOPs of matrix products and attention (a multiply-add counts
as 2); FLOP utilization, relative to a large matrix product; and saved activations per token. Weights and tokens are
random and dropout is 0: the time depends on neither. The rows of a table take steps alternately.

    python benchmarks/scaling.py --vary long-texts

Long texts: LoRA training of ModernBERT-base's shape, one text per step, without and with activation checkpointing, each
in a process of its own. Columns: time of a step, time per token, and peak memory.

    python benchmarks/scaling.py --vary max-tokens

Tokens per batch for each model size, what `--max-tokens` chooses, each in a process of its own. Columns: tokens per
second and peak memory.

`--output` adds the rows to a JSON file, under the machine's name (machine.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import clock, describe_machine, product_rates, write_rows

import minipeft
from minipeft.device import choose_device, choose_max_tokens, peak_memory
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.families.modernbert import ModernBertConfig
from minipeft.model.layers import init_weights
from minipeft.model.pretrained import cast_frozen
from minipeft.training.optimization.optimizer import adamw

LONG_TEXTS = [(2048, False), (2048, True), (8192, False), (8192, True)]  # tokens, activation checkpointing
MAX_TOKENS = {  # shape → tokens per batch; among them the defaults of both precisions
    "mini": [768, 1536, 2304, 3072, 4096],
    "base": [256, 512, 768, 1024, 2048, 4096],
    "large": [256, 576, 768, 1024, 2048],
}
SHAPES = {  # layers, hidden size, heads
    "mini": (6, 256, 4),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}
IDENTITY = ("varied", "value", "precision", "device", "shape", "activation_checkpointing")  # of a row
DEFAULTS: dict[str, Any] = {"tokens": 2048, "length": 64, "shape": "base", "rank": 8}
VARIED: dict[str, list[Any]] = {
    "tokens": [256, 512, 1024, 2048, 4096, 8192],
    "length": [16, 32, 64, 128, 256, 512],
    "shape": list(SHAPES),
    "rank": [1, 2, 4, 8, 16, 32, 64],
}


class Case:
    """A model, its optimizer and one batch."""

    def __init__(self, case: dict[str, Any], dtype: torch.dtype, device: str) -> None:
        layers, hidden, heads = SHAPES[case["shape"]]
        config = minipeft.EncoderConfig(
            num_hidden_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        torch.manual_seed(0)
        model = SequenceClassifier(config)
        init_weights(model, 0.02)
        minipeft.apply(model, minipeft.LoRA(rank=case["rank"]))
        self.model = cast_frozen(model, dtype).to(device).train()
        self.optimizer = adamw(self.model, 0.01)
        count, length = max(1, case["tokens"] // case["length"]), case["length"]
        ids = torch.randint(5, config.vocab_size, (count, length)).tolist()
        self.batch = minipeft.pack(ids, [number % 2 for number in range(count)], config=config).to(device)
        self.operations = self._operations(layers, hidden, count, length, case["rank"])
        self.device = device

    def _operations(self, layers: int, hidden: int, count: int, length: int, rank: int) -> float:
        """Return the FLOPs of a step; the last layer computes only keys and values for tokens other than <s>."""
        tokens = count * length
        weights = ((layers - 1) * 12 + 2) * hidden**2 * tokens + 10 * hidden**2 * count
        below = 3 * hidden**2 * tokens  # the first layer's input needs no gradient
        low_rank = 3 * 2 * rank * 2 * hidden * ((layers - 1) * tokens + (tokens + count) / 2)
        attention = 3 * 2 * hidden * ((layers - 1) * tokens * length + tokens)
        return 2.0 * (2 * weights - below) + 2.0 * low_rank + 2.0 * attention

    def step(self) -> float:
        """Take one step and return its seconds."""
        start = clock(self.device)
        labels = self.batch.labels
        assert labels is not None
        (F.cross_entropy(self.model(self.batch), labels, reduction="sum") / len(labels)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return clock(self.device) - start

    def saved_bytes(self) -> int:
        """Return the bytes of the activations saved for the backward pass."""
        storages: dict[int, int] = {}
        tensors = []  # keeps the tensors alive, so that no two share an address
        parameters = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            tensors.append(tensor.detach())  # without detach, an output saved by its own node is never freed
            return tensors[-1]

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.model(self.batch)
        return sum(size for address, size in storages.items() if address not in parameters)


def table(wanted: argparse.Namespace, name: str, precision: str) -> list[dict[str, Any]]:
    """Measure and print one table. Its models are freed before the next table's are created."""
    print(f"\n| {name} ({precision}) | µs/token | MFLOP/token | FLOP utilization | saved, KiB/token |")
    print("|---|---|---|---|---|", flush=True)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    values = [type(DEFAULTS[name])(value) for value in wanted.values or VARIED[name]]
    defaults = {**DEFAULTS, "shape": wanted.shape}
    cases = {value: Case({**defaults, name: value}, dtype, wanted.device) for value in values}
    seconds: dict[Any, list[float]] = {value: [] for value in cases}
    for _ in range(wanted.rounds + 1):
        for value, case in cases.items():
            seconds[value].append(case.step())
    rate, rows = max(product_rates(dtype, wanted.device).values()), []
    for value, case in cases.items():
        took, tokens = statistics.median(seconds[value][1:]), case.batch.total_tokens  # the first step is the warm-up
        row = {
            "varied": name,
            "value": value,
            "shape": value if name == "shape" else wanted.shape,
            "precision": precision,
            "device": wanted.device,
            "seconds_per_token": took / tokens,
            "operations_per_token": case.operations / tokens,
            "fraction_of_product_rate": case.operations / took / rate,
            "kept_bytes_per_token": case.saved_bytes() / tokens,
        }
        rows.append(row)
        print(
            f"| {value} | {1e6 * took / tokens:.0f} | {case.operations / tokens / 1e6:.0f} "
            f"| {case.operations / took / rate:.2f} | {row['kept_bytes_per_token'] / 1024:.0f} |",
            flush=True,
        )
    return rows


def long_texts(wanted: argparse.Namespace, precision: str) -> list[dict[str, Any]]:
    """Measure and print the table of long texts."""
    print(f"\n| ModernBERT-base ({precision}) | checkpointing | s/step | µs/token | peak memory, GiB |")
    print("|---|---|---|---|---|", flush=True)
    rows = []
    for length, checkpointing in LONG_TEXTS:
        if wanted.values and str(length) not in wanted.values:
            continue
        row = in_own_process(wanted, "--long-text", [length, checkpointing, precision])
        rows.append(row)
        print(
            f"| {length} tokens | {'yes' if checkpointing else 'no'} | {row['seconds']:.1f} "
            f"| {1e6 * row['seconds'] / length:.0f} | {row['peak_memory_bytes'] / 2**30:.2f} |",
            flush=True,
        )
    return rows


def max_tokens(wanted: argparse.Namespace, precision: str) -> list[dict[str, Any]]:
    """Measure and print the table of tokens per batch for each model size. Each case's rounds follow each other."""
    print(f"\n| shape ({precision}) | tokens per batch | tokens/s | peak memory, MiB |")
    print("|---|---|---|---|", flush=True)
    rows = []
    for shape, tokens in MAX_TOKENS.items():
        for value in tokens:
            if wanted.values and str(value) not in wanted.values:
                continue
            row = in_own_process(wanted, "--one-batch", [shape, value, precision])
            rows.append(row)
            memory = row["peak_memory_bytes"] / 2**20
            print(f"| {shape} | {value} | {row['tokens_per_second']:,.0f} | {memory:,.0f} |", flush=True)
    return rows


def one_batch(wanted: argparse.Namespace) -> None:
    """Print the row of one model size and tokens per batch; `max_tokens` runs this in a process of its own."""
    shape, tokens, precision = json.loads(wanted.one_batch)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    case = Case({**DEFAULTS, "shape": shape, "tokens": tokens}, dtype, wanted.device)
    case.step()
    took = statistics.median(case.step() for _ in range(wanted.rounds))
    row = {"varied": "max-tokens", "value": tokens, "shape": shape, "precision": precision, "device": wanted.device}
    row |= {"tokens_per_second": case.batch.total_tokens / took, "peak_memory_bytes": peak_memory(wanted.device)}
    print(json.dumps(row | {"default": tokens == choose_max_tokens(wanted.device, precision, SHAPES[shape][1])}))


def in_own_process(wanted: argparse.Namespace, flag: str, case: list[Any]) -> dict[str, Any]:
    """Return the row that this script prints for one case in a process of its own, so that its memory is the case's."""
    command = [sys.executable, __file__, flag, json.dumps(case), "--device", wanted.device]
    command += ["--rounds", str(wanted.rounds)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    row: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return row


def long_text(wanted: argparse.Namespace) -> None:
    """Print the row of one long text; `long_texts` runs this in a process of its own."""
    length, checkpointing, precision = json.loads(wanted.long_text)
    config = ModernBertConfig()
    torch.manual_seed(0)
    model = minipeft.apply(SequenceClassifier(config), minipeft.LoRA(rank=8))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = cast_frozen(model, dtype).to(wanted.device).train()
    model.encoder.activation_checkpointing = checkpointing
    optimizer = adamw(model, 0.01)
    ids = torch.randint(5, 50000, (1, length)).tolist()
    batch = minipeft.pack(ids, [1], config=config).to(wanted.device)
    assert batch.labels is not None
    seconds = []
    for _ in range(2):  # the first step warms up
        start = clock(wanted.device)
        F.cross_entropy(model(batch), batch.labels, reduction="sum").backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(clock(wanted.device) - start)
    row = {"varied": "long-texts", "value": length, "activation_checkpointing": checkpointing, "precision": precision}
    row |= {"shape": "modernbert-base", "device": wanted.device, "seconds": min(seconds)}
    print(json.dumps(row | {"peak_memory_bytes": peak_memory(wanted.device)}))


IN_OWN_PROCESSES = {"long-texts": long_texts, "max-tokens": max_tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--vary", nargs="+", default=list(VARIED), choices=[*VARIED, *IN_OWN_PROCESSES])
    flag("--values", nargs="+", help="values of the one that --vary names [all of its table]")
    flag("--shape", default=DEFAULTS["shape"], choices=list(SHAPES), help="model size where it is not varied [base]")
    flag("--precisions", nargs="+", default=["fp32", "bf16"])
    flag("--rounds", type=int, default=5)
    flag("--device", default="auto")
    flag("--output", help="JSON file to which the rows are added")
    flag("--long-text", help=argparse.SUPPRESS)
    flag("--one-batch", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    wanted.device, rows = choose_device(wanted.device), []
    if wanted.long_text:
        return long_text(wanted)
    if wanted.one_batch:
        return one_batch(wanted)
    for precision in wanted.precisions:
        for name in wanted.vary:
            measured = IN_OWN_PROCESSES.get(name)
            rows += measured(wanted, precision) if measured else table(wanted, name, precision)
    if wanted.output:
        write_rows(Path(wanted.output), describe_machine(wanted.device), rows, IDENTITY)


if __name__ == "__main__":
    main()
