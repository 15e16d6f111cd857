"""Measure minipeft against transformers + peft in one process: same weights, sequences, order, dropout and optimizer.

    python benchmarks/peer.py --data ../shared/glue --tokenizer ../shared/tokenizers/roberta-base

Both libraries take steps alternately (A B A B) after a warm-up step. The peer is measured at its best and as it is by
default, one row each:

grouped   the Trainer's `train_sampling_strategy="group_by_length"`: 50 batches of 16 are drawn and sorted by length
random    batches of 16 in random order, each padded to its longest sequence

Both rows take the fastest of its attentions (eager, and sdpa where the family has it) in the warm-up step, and where
minipeft computes in bf16 the faster of fp32 and bf16 autocast. minipeft takes the same sequences in the same steps.
Each row prints the throughput of both in samples/s, the speedup (median, minimum and maximum over the pairs of steps),
and the FLOP utilization: minipeft's FLOP/s divided by those of the faster of two large matrix products. The precisions
are by default fp32, and bf16 where the device is fast in it.
`--memory` also measures the peak memory of three steps of each library in a separate process: resident memory on the
CPU, allocated memory on CUDA. A Markdown table is printed last. The weights are random, in roberta-base's shape: they
do not affect the time. `--family` takes another family's base shape. Token ids and lengths are always those of the
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
from functools import partial
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
from minipeft.device import choose_device, choose_max_tokens, has_fast_bf16, peak_memory
from minipeft.model.config import EncoderConfig
from minipeft.model.families import family_of, get_family, load_config
from minipeft.problems import problem_row
from minipeft.problems.problem import IGNORE_INDEX
from minipeft.training.optimization.optimizer import adamw, parameter_groups

BATCH, ACCUMULATION = 16, 4
STEP = BATCH * ACCUMULATION  # sequences
MEGABATCH = 50 * BATCH  # sequences that the Trainer sorts at once where it groups by length
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
        size = BATCH if row.mode == "training" else STEP
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


def measure(wanted: argparse.Namespace, folder: Path, row: Row, batches: str, rounds: int) -> dict[str, Any]:
    """Measure one row: steps of both libraries, alternately, with the peer's batches "grouped" or "random"."""
    task = task_of(row.task, wanted.data)
    write_config(folder, row, task)
    config = load_config(folder)
    split = "train" if row.mode == "training" else task.validation
    tokenizer = minipeft.load_tokenizer(wanted.tokenizer)
    count = max(MEGABATCH, STEP * (rounds + 1))
    examples = encode_split(task, read_chunks(task, split, wanted.data, count), tokenizer, 512, config)
    chosen = choose_steps(examples.lengths.tolist(), batches, rounds + 1)
    of_peer = argparse.Namespace(**vars(wanted) | {"group_by_length": batches == "grouped"})
    precision, attention, peer_step = fastest_peer(folder, of_peer, row, examples, chosen[0])
    steps = {"peer": peer_step, "minipeft": ours(folder, wanted, row)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for indices in chosen:
        for name, step in steps.items():
            seconds[name].append(timed(wanted, step, examples, indices))
    ratios = [a / b for a, b in zip(seconds["peer"][1:], seconds["minipeft"][1:], strict=True)]  # the first warms up
    rate = product_rates(torch.bfloat16 if row.precision == "bf16" else torch.float32, wanted.device)
    sequences = sum(len(indices) for indices in chosen[1:])
    tokens = int(sum(examples.lengths[index] for indices in chosen[1:] for index in indices))
    speed = {name: sequences / sum(times[1:]) for name, times in seconds.items()}
    return {
        **dataclasses.asdict(row),
        "peer_precision": precision,
        "peer_attention": attention,
        "group_by_length": batches == "grouped",
        "samples_per_second": speed,
        "tokens_per_second": {name: tokens / sum(times[1:]) for name, times in seconds.items()},
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "product_rate": rate,
        "fraction_of_product_rate": products(row, tokens, sequences, config)
        / sum(seconds["minipeft"][1:])
        / max(rate.values()),
    }


def choose_steps(lengths: list[int], batches: str, steps: int) -> list[list[int]]:
    """Return the examples of each step.

    Args:
        lengths: of the examples, in the order of the data.
        batches: "random" takes them in that order. "grouped" sorts the first MEGABATCH of them by length, the longest
            first, as the Trainer's sampler, and takes steps at equal distances, so that long and short ones are there.
        steps: number of steps.
    """
    order = list(range(min(len(lengths), max(MEGABATCH, STEP * steps))))
    if batches == "grouped":
        order = sorted(order[:MEGABATCH], key=lengths.__getitem__, reverse=True)
    every = [order[start : start + STEP] for start in range(0, len(order), STEP)]
    every = [indices for indices in every if len(indices) == STEP] or every
    if batches == "random":
        return [every[number % len(every)] for number in range(steps)]
    places = [(2 * number + 1) * len(every) // (2 * (steps - 1)) for number in range(steps - 1)]
    return [every[len(every) // 2], *(every[place] for place in places)]  # the first step warms up


def fastest_peer(
    folder: Path, wanted: argparse.Namespace, row: Row, examples: Encoded, indices: list[int]
) -> tuple[str, str, Callable[[Encoded, list[int]], None]]:
    """Return precision, attention and step of the peer's fastest setting: the best of two steps after a small one."""
    tried = []
    for precision in wanted.peer_precisions or (("fp32", "bf16") if row.precision == "bf16" else ("fp32",)):
        with_precision = argparse.Namespace(**vars(wanted) | {"peer_precision": precision})
        for attention, step in peers_of(folder, with_precision, row).items():
            step(examples, indices[:BATCH])
            seconds = min(timed(wanted, step, examples, indices) for _ in range(2))
            tried.append((seconds, precision, attention, step))
    return min(tried, key=lambda entry: entry[0])[1:]


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
    wanted: argparse.Namespace, step: Callable[[Encoded, list[int]], None], examples: Encoded, chosen: list[int]
) -> float:
    """Take a step on the examples at the indices `chosen`, and return its seconds."""
    start = clock(wanted.device)
    step(examples, chosen)
    return clock(wanted.device) - start


def memory_of(wanted: argparse.Namespace, folder: Path, row: Row, side: str, measured: dict[str, Any]) -> int:
    """Return the peak memory in bytes of a separate process that takes three steps of one library, as `measured`."""
    arguments = [sys.executable, __file__, "--data", wanted.data, "--tokenizer", wanted.tokenizer, "--memory-of", side]
    arguments += ["--peer-precisions", measured["peer_precision"], "--peer-attention", measured["peer_attention"]]
    arguments += ["--max-tokens", str(wanted.max_tokens)] if wanted.max_tokens else []
    arguments += ["--batches", "grouped" if measured["group_by_length"] else "random"]
    arguments += ["--folder", str(folder), "--row", json.dumps(dataclasses.asdict(row)), "--device", wanted.device]
    printed = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    return int(printed.splitlines()[-1])


def report_memory(wanted: argparse.Namespace) -> None:
    """Print the peak memory of three steps; `memory_of` executes this in a subprocess."""
    row, folder = Row(**json.loads(wanted.row)), Path(wanted.folder)
    tokenizer, config = minipeft.load_tokenizer(wanted.tokenizer), load_config(folder)
    rows = read_split(task_of(row.task, wanted.data), "train", wanted.data, 3 * STEP)
    examples = encode_split(rows.task, [rows], tokenizer, 512, config)
    wanted.peer_precision, wanted.group_by_length = wanted.peer_precisions[0], wanted.batches == ["grouped"]
    ours_or_peer = partial(peer, attention=wanted.peer_attention) if wanted.memory_of == "peer" else ours
    step = ours_or_peer(folder, wanted, row)
    for start in range(0, len(examples), STEP):
        step(examples, list(range(start, start + STEP)))
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
    flag("--precisions", nargs="+", help="minipeft's [fp32, and bf16 where the device is fast in it]")
    flag("--dropouts", nargs="+", type=float, default=[0.0, 0.1])
    flag("--peer-precisions", nargs="+", help="the peer's: fp32, or bf16 through autocast [the faster; fp32 for fp32]")
    flag("--batches", nargs="+", default=["grouped", "random"], choices=["grouped", "random"], help="the peer's [both]")
    flag("--rounds", type=int, default=3, help="steps of 64 sequences per row and library")
    flag("--memory", action="store_true", help="also measure the peak memory of each library, in separate processes")
    flag("--device", default="auto")
    flag("--max-tokens", type=int)
    flag("--output", help="JSON file to which the rows are added")
    flag("--memory-of", help=argparse.SUPPRESS)
    flag("--peer-attention", help=argparse.SUPPRESS)
    flag("--folder", help=argparse.SUPPRESS)
    flag("--row", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    wanted.device = choose_device(wanted.device)
    wanted.precisions = wanted.precisions or ["fp32", *(["bf16"] if has_fast_bf16(wanted.device) else [])]
    if wanted.memory_of:
        return report_memory(wanted)
    from transformers import AutoConfig, AutoModelForSequenceClassification

    rows, machine = [], describe_machine(wanted.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = Row(wanted.family, "", "", "", "", 0.0)
        content = write_config(folder, shape, task_of(wanted.tasks[0], wanted.data))
        AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**content)).save_pretrained(folder)
        kinds = itertools.product(
            [wanted.family], wanted.tasks, wanted.methods, wanted.modes, wanted.precisions, wanted.dropouts
        )
        for row, batches in itertools.product(list(itertools.starmap(Row, kinds)), wanted.batches):
            if row.mode == "evaluation" and row.dropout:
                continue  # dropout is inactive in evaluation
            result = measure(wanted, folder, row, batches, wanted.rounds)
            if wanted.memory and row.mode == "training":
                result["peak_memory_bytes"] = {
                    side: memory_of(wanted, folder, row, side, result) for side in ("peer", "minipeft")
                }
            rows.append(result)
            ratio = result["ratio"]
            print(
                f"{row.family} {row.task:5} {row.method:7} {row.mode:10} {row.precision} dropout {row.dropout:<4} "
                f"peer {result['samples_per_second']['peer']:7.2f}/s ({peer_of(result)})  "
                f"minipeft {result['samples_per_second']['minipeft']:7.2f}/s  "
                f"speedup {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})  "
                f"{result['fraction_of_product_rate']:.2f} FLOP utilization  {result.get('peak_memory_bytes', '')}",
                flush=True,
            )
            if wanted.output:  # at once, so that a later row that fails takes nothing away
                write_rows(Path(wanted.output), machine, [result], IDENTITY)
    print("\n" + table(rows))


def peer_of(row: dict[str, Any]) -> str:
    """Return the peer's settings of a measured row."""
    return f"{row['peer_precision']}, {row['peer_attention']}, {'grouped' if row['group_by_length'] else 'random'}"


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
            f"| {speed['peer']:.2f} ({peer_of(row)}) | {speed['minipeft']:.2f} "
            f"| {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) "
            f"| {row['fraction_of_product_rate']:.2f} | {peak} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
