"""Measure minipeft against transformers + peft in one process: same weights, sequences, order, dropout and optimizer.

    python benchmarks/peer.py --data ../shared/glue --tokenizer ../shared/tokenizers/roberta-base

Both libraries take steps alternately (A B A B) after a warm-up step. Each row prints the throughput of both in
samples/s, the speedup (median, minimum and maximum over the pairs of steps), and the FLOP utilization: minipeft's
FLOP/s divided by those of the faster of two large matrix products. The peer pads each batch of 16 to its longest
sequence, as the Trainer does; `--group-by-length` sorts the sequences of a step, as the Trainer's option of that name.
`--memory` also measures the peak memory of three steps of each library in a separate process: resident memory on the
CPU, allocated memory on CUDA. A Markdown table is printed last. The weights are random, in roberta-base's shape: they
do not affect the time. `--family` takes another family's base shape. The peer runs with eager attention and with sdpa,
where the family has it, in the warm-up step; the faster one is measured. Token ids and lengths are always those of the
tokenizer given. A task that is not GLUE's is a folder of token classification:

    python benchmarks/peer.py --data ../shared/tokens --tasks wnut17 --tokenizer ../shared/tokenizers/roberta-base

`--output` adds the rows to a JSON file, under the machine's name (machine.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import clock, describe_machine, product_rates, write_rows
from torch.nn.utils.rnn import pad_sequence

import minipeft
from minipeft.data.batches.buckets import pad_to_bucket
from minipeft.data.batches.sampling import pack_examples, split_by_tokens
from minipeft.data.tasks.custom import inspect_custom_data
from minipeft.data.tasks.splits import read_chunks, read_split
from minipeft.data.tasks.task import TASKS, Task, get_task
from minipeft.data.tokens.examples import Encoded, encode_split
from minipeft.device import choose_device, choose_max_tokens, peak_memory
from minipeft.model.config import EncoderConfig
from minipeft.model.families import family_of, get_family, load_config
from minipeft.problems import problem_row
from minipeft.problems.problem import IGNORE_INDEX
from minipeft.training.optimization.optimizer import adamw, parameter_groups

BATCH, ACCUMULATION = 16, 4
VOCABULARY = 50_265  # of roberta-base's tokenizer, whose token ids the models of all families get
IDENTITY = ("family", "task", "method", "mode", "precision", "dropout", "peer_precision", "group_by_length")  # of a row
# Families whose config class has a base shape as its defaults.
BASES = ("roberta", "distilbert", "electra", "deberta-v2", "modernbert")
PEER_TARGETS = {"distilbert": ["q_lin", "v_lin"], "modernbert": ["Wqkv"]}  # peft has no default for these
METHODS: dict[str, Any] = {
    "lora": minipeft.LoRA(rank=2, alpha=8),
    "bitfit": minipeft.BitFit(),
    "full": minipeft.Full(),
    "head": minipeft.Head(),
}


def ours(folder: Path, wanted: argparse.Namespace, row: Row) -> Callable[[Encoded, list[int]], None]:
    """Return a function that takes one step of minipeft on the examples at the given indices."""
    dtype = torch.bfloat16 if row.precision == "bf16" else torch.float32
    config = load_config(folder)
    model = minipeft.load_pretrained(folder, config.num_labels, dtype)
    model = minipeft.apply(model, METHODS[row.method]).to(wanted.device)
    optimizer = adamw(model, 0.01)
    max_tokens = wanted.max_tokens or choose_max_tokens(wanted.device, row.precision, model.config.hidden_size)
    model.train(row.mode == "training")

    def step(examples: Encoded, indices: list[int]) -> None:
        with torch.set_grad_enabled(row.mode == "training"):
            for chosen in split_by_tokens(indices, examples.lengths, max_tokens):
                batch = pad_to_bucket(pack_examples(examples, chosen, model.config), model.config).to(wanted.device)
                logits = model(batch)
                if row.mode == "training":
                    assert batch.labels is not None
                    (F.cross_entropy(logits, batch.labels, reduction="sum") / len(indices)).backward()
        if row.mode == "training":
            optimizer.step()
            optimizer.zero_grad()

    return step


def peer(
    folder: Path, wanted: argparse.Namespace, row: Row, attention: str = "sdpa", compiled: bool = False
) -> Callable[[Encoded, list[int]], None]:
    """Return the same step with transformers and peft, imported here so that only this process counts their memory.

    Raises:
        ValueError: if transformers has no such attention for the family.
    """
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    config_of_model = load_config(folder)
    kind = problem_row(config_of_model.problem_type)
    auto: Any = AutoModelForTokenClassification if kind.per_token else AutoModelForSequenceClassification
    model: Any = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    padding = model.config.pad_token_id
    if row.method == "lora":
        targets = sorted(PEER_TARGETS[row.family]) if row.family in PEER_TARGETS else None  # None: peft's own
        config = LoraConfig(
            task_type=TaskType[kind.peft_task], r=2, lora_alpha=8, lora_dropout=0.0, target_modules=targets
        )
        model = get_peft_model(model, config)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(
                "classifier" in name or row.method == "full" or (row.method == "bitfit" and name.endswith(".bias"))
            )
    model.to(wanted.device).train(row.mode == "training")
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=0.0, fused=True)  # as the Trainer's default
    if compiled:
        model = torch.compile(model, dynamic=True)
    autocast = torch.autocast(wanted.device.partition(":")[0], torch.bfloat16, enabled=wanted.peer_precision == "bf16")

    def step(examples: Encoded, indices: list[int]) -> None:
        if wanted.group_by_length:
            indices = sorted(indices, key=examples.lengths.tolist().__getitem__, reverse=True)
        size = BATCH if row.mode == "training" else BATCH * ACCUMULATION
        with torch.set_grad_enabled(row.mode == "training"):
            for start in range(0, len(indices), size):
                chosen = indices[start : start + size]
                rows = [torch.tensor(examples.sequences[index], dtype=torch.int64) for index in chosen]
                ids = pad_sequence(rows, batch_first=True, padding_value=padding).to(wanted.device)
                mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(wanted.device)
                with autocast:
                    logits = model(input_ids=ids, attention_mask=mask).logits
                if row.mode == "training":
                    labels = pack_examples(examples, chosen, config_of_model).labels
                    assert labels is not None
                    if kind.per_token:  # (total_tokens,) → (sequences · longest,)
                        parts = labels.split([len(row) for row in rows])
                        labels = pad_sequence(parts, batch_first=True, padding_value=IGNORE_INDEX).flatten()
                    logits = logits.flatten(0, -2).float()
                    loss = F.cross_entropy(logits, labels.to(wanted.device), reduction="sum")
                    (loss / len(indices)).backward()
        if row.mode == "training":
            optimizer.step()
            optimizer.zero_grad()

    return step


@dataclasses.dataclass(frozen=True)
class Row:
    family: str
    task: str
    method: str
    mode: str
    precision: str
    dropout: float


def products(row: Row, tokens: int, sequences: int, config: EncoderConfig) -> float:
    """Return the floating-point operations of the encoder's matrix products in minipeft, without attention.

    A layer of RoBERTa has 12 hidden² weights; the last one computes keys and values (2 hidden²) for every token and the
    rest for <s> alone, or for every token where each has a label. In the backward pass a frozen layer needs one
    product, for its input's gradient; layers below the first trainable tensor need none.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    gated = "qkv" in family_of(config).linears  # ModernBERT: a gate in the feed-forward network, one layer for q, k, v
    layer = 4 * hidden**2 + (3 if gated else 2) * hidden * config.intermediate_size
    for_all = (3 if gated else 2) * hidden**2  # of the last layer
    if problem_row(config.problem_type).per_token:
        for_all = layer
    forward = ((layers - 1) * layer + for_all) * tokens + (layer - for_all) * sequences
    if row.mode == "evaluation" or row.method == "head":
        return 2.0 * forward
    if row.method == "full":
        return 6.0 * forward
    below = 3 * hidden**2 * tokens if row.method == "lora" else 0  # the first layer's input needs no gradient
    return 2.0 * (2 * forward - below)


def measure(wanted: argparse.Namespace, folder: Path, row: Row, rounds: int) -> dict[str, Any]:
    """Measure one row: steps of both libraries, alternately."""
    task = task_of(row.task, wanted.data)
    write_config(folder, row, task)
    config = load_config(folder)
    split = "train" if row.mode == "training" else task.validation
    tokenizer = minipeft.load_tokenizer(wanted.tokenizer)
    size = BATCH * ACCUMULATION
    examples = encode_split(task, read_chunks(task, split, wanted.data, size * (rounds + 1)), tokenizer, 512, config)
    peers = peers_of(folder, wanted, row)
    warm_up = {name: timed(wanted, step, examples, range(size)) for name, step in peers.items()}
    attention = min(warm_up, key=warm_up.__getitem__)
    steps = {"peer": peers[attention], "minipeft": ours(folder, wanted, row)}
    del peers
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    tokens = []
    for number in range(rounds + 1):
        indices = range(number * size, min(len(examples), (number + 1) * size))
        tokens.append(sum(examples.lengths[index] for index in indices))
        for name, step in steps.items():
            seconds[name].append(timed(wanted, step, examples, indices))
    ratios = [a / b for a, b in zip(seconds["peer"][1:], seconds["minipeft"][1:], strict=True)]  # the first warms up
    rate = product_rates(torch.bfloat16 if row.precision == "bf16" else torch.float32, wanted.device)
    done = products(row, sum(tokens[1:]), size * rounds, config)
    speed = {name: size * rounds / sum(times[1:]) for name, times in seconds.items()}
    return {
        **dataclasses.asdict(row),
        "peer_precision": wanted.peer_precision,
        "peer_attention": attention,
        "group_by_length": wanted.group_by_length,
        "samples_per_second": speed,
        "tokens_per_second": {name: sum(tokens[1:]) / sum(times[1:]) for name, times in seconds.items()},
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "product_rate": rate,
        "fraction_of_product_rate": done / sum(seconds["minipeft"][1:]) / max(rate.values()),
    }


def peers_of(folder: Path, wanted: argparse.Namespace, row: Row) -> dict[str, Callable[[Encoded, list[int]], None]]:
    """Return the peer's step with each attention that transformers has for the family."""
    steps = {}
    for attention in ("eager", "sdpa"):
        try:
            steps[attention] = peer(folder, wanted, row, attention)
        except ValueError as error:  # DeBERTa has no sdpa
            if attention not in str(error) and "scaled_dot_product_attention" not in str(error):
                raise
    return steps


def timed(
    wanted: argparse.Namespace, step: Callable[[Encoded, list[int]], None], examples: Encoded, chosen: range
) -> float:
    """Take a step on the examples at the indices `chosen`, and return its seconds."""
    start = clock(wanted.device)
    step(examples, list(chosen))
    return clock(wanted.device) - start


def memory_of(wanted: argparse.Namespace, folder: Path, row: Row, side: str) -> int:
    """Return the peak memory in bytes of a separate process that takes three steps of one library."""
    arguments = [sys.executable, __file__, "--data", wanted.data, "--tokenizer", wanted.tokenizer, "--memory-of", side]
    arguments += ["--peer-precision", wanted.peer_precision]
    arguments += ["--max-tokens", str(wanted.max_tokens)] if wanted.max_tokens else []
    arguments += ["--group-by-length"] if wanted.group_by_length else []
    arguments += ["--folder", str(folder), "--row", json.dumps(dataclasses.asdict(row)), "--device", wanted.device]
    printed = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    return int(printed.splitlines()[-1])


def report_memory(wanted: argparse.Namespace) -> None:
    """Print the peak memory of three steps; `memory_of` executes this in a subprocess."""
    row, folder = Row(**json.loads(wanted.row)), Path(wanted.folder)
    tokenizer, config = minipeft.load_tokenizer(wanted.tokenizer), load_config(folder)
    rows = read_split(task_of(row.task, wanted.data), "train", wanted.data, 3 * BATCH * ACCUMULATION)
    examples = encode_split(rows.task, [rows], tokenizer, 512, config)
    step = (peer if wanted.memory_of == "peer" else ours)(folder, wanted, row)
    for start in range(0, len(examples), BATCH * ACCUMULATION):
        step(examples, list(range(start, start + BATCH * ACCUMULATION)))
    print(peak_memory(wanted.device))


def task_of(name: str, data: str) -> Task:
    """Return a task of GLUE, or of the folder of that name with rows of words and tags."""
    if name in TASKS:
        return get_task(name)
    columns: dict[str, Any] = dict.fromkeys(("text_column", "pair_column", "label_column", "validation"))
    columns["label_column"] = "upos" if name == "ewt" else None
    return inspect_custom_data("auto", f"{data}/{name}", label_type="tokens", **columns).task


def write_config(folder: Path, row: Row, task: Task) -> dict[str, Any]:
    """Write config.json of the family's base shape, with the row's dropout, and return its content."""
    family = get_family(row.family).config
    config = family(
        vocab_size=max(VOCABULARY, family().vocab_size),
        hidden_dropout_prob=row.dropout,
        attention_probs_dropout_prob=row.dropout,
    )
    config = config.with_labels(list(task.problem.outputs), task.problem.name)
    architecture = family_of(config).architecture + problem_row(task.problem.name).architecture
    content = config.to_dict() | {"architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(content))
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--data", required=True, help="folder with rte/ and sst2/")
    flag("--tokenizer", required=True, help="folder with roberta-base's tokenizer")
    flag("--family", default="roberta", choices=list(BASES))
    flag("--tasks", nargs="+", default=["rte", "sst2"])
    flag("--methods", nargs="+", default=list(METHODS))
    flag("--modes", nargs="+", default=["training", "evaluation"])
    flag("--precisions", nargs="+", default=["fp32", "bf16"])
    flag("--dropouts", nargs="+", type=float, default=[0.0, 0.1])
    flag("--peer-precision", default="fp32", help="fp32, or bf16 through autocast")
    flag("--group-by-length", action="store_true")
    flag("--rounds", type=int, default=5, help="steps of 64 sequences per row and library")
    flag("--memory", action="store_true", help="also measure the peak memory of each library, in separate processes")
    flag("--device", default="auto")
    flag("--max-tokens", type=int)
    flag("--output", help="JSON file to which the rows are added")
    flag("--memory-of", help=argparse.SUPPRESS)
    flag("--folder", help=argparse.SUPPRESS)
    flag("--row", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    wanted.device = choose_device(wanted.device)
    if wanted.memory_of:
        return report_memory(wanted)
    from transformers import AutoConfig, AutoModelForSequenceClassification

    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = Row(wanted.family, "", "", "", "", 0.0)
        content = write_config(folder, shape, task_of(wanted.tasks[0], wanted.data))
        AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**content)).save_pretrained(folder)
        kinds = itertools.product(
            [wanted.family], wanted.tasks, wanted.methods, wanted.modes, wanted.precisions, wanted.dropouts
        )
        for row in itertools.starmap(Row, kinds):
            if row.mode == "evaluation" and row.dropout:
                continue  # dropout is inactive in evaluation
            result = measure(wanted, folder, row, wanted.rounds)
            if wanted.memory and row.mode == "training":
                result["peak_memory_bytes"] = {
                    side: memory_of(wanted, folder, row, side) for side in ("peer", "minipeft")
                }
            rows.append(result)
            ratio = result["ratio"]
            print(
                f"{row.family} {row.task:5} {row.method:7} {row.mode:10} {row.precision} dropout {row.dropout:<4} "
                f"peer {result['samples_per_second']['peer']:7.2f}/s  "
                f"minipeft {result['samples_per_second']['minipeft']:7.2f}/s  "
                f"speedup {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})  "
                f"{result['fraction_of_product_rate']:.2f} FLOP utilization  {result.get('peak_memory_bytes', '')}",
                flush=True,
            )
    print("\n" + table(rows))
    if wanted.output:
        write_rows(Path(wanted.output), describe_machine(wanted.device), rows, IDENTITY)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| row | peer, samples/s | minipeft, samples/s | speedup (min to max) | FLOP utilization | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        speed, ratio, memory = row["samples_per_second"], row["ratio"], row.get("peak_memory_bytes")
        peak = (
            "" if memory is None else f"{memory['minipeft'] / memory['peer']:.2f} of {memory['peer'] / 2**30:.1f} GiB"
        )
        dropout = f", dropout {row['dropout']:g}" if row["mode"] == "training" else ""
        lines.append(
            f"| {row['family']}, {row['task']}, {row['method']}, {row['mode']}, {row['precision']}{dropout} "
            f"| {speed['peer']:.2f} ({row['peer_precision']}, {row['peer_attention']}) | {speed['minipeft']:.2f} "
            f"| {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) "
            f"| {row['fraction_of_product_rate']:.2f} | {peak} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
