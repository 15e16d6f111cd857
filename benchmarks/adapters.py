"""Measure one batch with an adapter per sequence against switching adapters between sequences.

    python benchmarks/adapters.py --data ../shared/glue --tokenizer ../shared/tokenizers/roberta-base --task sst2
    python benchmarks/adapters.py --data ../shared/glue --tokenizer roberta-mini --model roberta-mini

Both run alternately in one process, with the same base, adapters and texts, after a warm-up. Prints sequences/s, the
speedup (median, minimum and maximum over the pairs), and the bytes of the base and of all adapters, heads included.
Without --model the weights are random, in roberta-base's shape: they do not affect the time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import minipeft
from minipeft.data.tasks.splits import read_split
from minipeft.data.tasks.task import get_task
from minipeft.device import peak_memory
from minipeft.model.pretrained import cast_frozen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with <task>/validation.parquet")
    parser.add_argument("--tokenizer", required=True, help="a name, or a folder with tokenizer.json")
    parser.add_argument("--model", help="a name or a folder [random weights in roberta-base's shape]")
    parser.add_argument("--task", default="sst2", help="[sst2]")
    parser.add_argument("--adapters", type=int, default=8, help="[8]")
    parser.add_argument("--rank", type=int, default=8, help="[8]")
    parser.add_argument("--sequences", type=int, default=128, help="in a batch [128]")
    parser.add_argument("--rounds", type=int, default=5, help="pairs [5]")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="of the frozen weights [fp32]")
    parser.add_argument("--device", default="cpu", help="[cpu]")
    wanted = parser.parse_args()
    task = get_task(wanted.task)
    split = read_split(task, "validation", wanted.data, wanted.sequences)
    ids = minipeft.load_tokenizer(wanted.tokenizer).encode(split.texts, split.pairs)

    torch.manual_seed(0)
    dtype = torch.bfloat16 if wanted.precision == "bf16" else torch.float32
    if wanted.model is None:
        model = minipeft.SequenceClassifier(minipeft.EncoderConfig()).eval()
        cast_frozen(model, dtype)
    else:
        model = minipeft.load_pretrained(wanted.model, dtype=dtype)
    adapters = minipeft.AdapterSet(model)
    base_bytes = sum(parameter.nbytes for parameter in adapters.parameters())
    with tempfile.TemporaryDirectory() as folder:
        for number in range(wanted.adapters):
            other = minipeft.apply(minipeft.SequenceClassifier(model.config), minipeft.LoRA(rank=wanted.rank))
            for name, parameter in other.named_parameters():
                if name.endswith("lora_B"):
                    torch.nn.init.normal_(parameter, std=0.02)
            minipeft.save_adapter(other, Path(folder) / str(number))
            adapters.load(str(number), Path(folder) / str(number))
    adapters.to(wanted.device)
    names = [str(number % wanted.adapters) for number in range(len(ids))]

    def together() -> torch.Tensor:
        return adapters(minipeft.pack(ids, config=model.config).to(wanted.device), names).cpu()

    def one_by_one() -> torch.Tensor:
        rows = []
        for name, sequence in zip(names, ids, strict=True):
            adapters.switch(name)
            rows.append(adapters(minipeft.pack([sequence], config=model.config).to(wanted.device)).cpu())
        return torch.cat(rows)

    difference = float((together() - one_by_one()).abs().max())  # also the warm-up
    rates = [(rate(together, len(ids)), rate(one_by_one, len(ids))) for _ in range(wanted.rounds)]
    ratios = [a / b for a, b in rates]
    row = {
        "task": task.name,
        "model": wanted.model or "roberta-base's shape, random weights",
        "precision": wanted.precision,
        "threads": torch.get_num_threads(),
        "adapters": wanted.adapters,
        "sequences": len(ids),
        "tokens": sum(map(len, ids)),
        "largest_difference": difference,
        "base_bytes": base_bytes,
        "adapters_bytes": sum(parameter.nbytes for parameter in adapters.parameters()) - base_bytes,
        "peak_memory_bytes": peak_memory(wanted.device),
        "together_per_second": statistics.median(a for a, _ in rates),
        "one_by_one_per_second": statistics.median(b for _, b in rates),
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }
    print(json.dumps(row))


def rate(run: Callable[[], torch.Tensor], sequences: int) -> float:
    """Return sequences per second."""
    start = time.perf_counter()
    run()
    return sequences / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
