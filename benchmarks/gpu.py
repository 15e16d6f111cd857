"""What a first GPU must show, in one command: agreement with the CPU, speed and memory.

    python benchmarks/gpu.py --data ../shared/glue --tokenizer ../shared/tokenizers/roberta-base

parity        logits, and the losses of 50 steps, of every family in fp32 and bf16, against the same on the CPU
attention     torch's variable-length operators against the plain attention, without dropout: windows, first tokens
throughput    a training step of LoRA, BitFit and full fine-tuning on RTE and SST-2 at roberta-base's shape, with and
              without CUDA graphs, next to transformers + peft in bf16 at its best: sdpa and FlashAttention-2 where
              installed, with and without torch.compile, random batches and batches grouped by length
end to end    25 epochs of RTE
products      the peak rate of products of 8192 x 8192 matrices

The parts run in this order, each prints its rows, and `--output` holds what has been measured even if a later part
fails. The weights are random.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import peer
import torch
import torch.nn.functional as F
from checkpoint import add_flags, make_checkpoint
from machine import clock, describe_machine, write_rows

import minipeft
from minipeft.data.batches.packing import pack
from minipeft.data.batches.sampling import pack_examples, split_by_tokens
from minipeft.data.tasks.splits import read_chunks
from minipeft.data.tasks.task import get_task
from minipeft.data.tokens.examples import encode_split
from minipeft.device import choose_device, peak_memory
from minipeft.model.attention import attend, attend_plain, plan_attention
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.families import get_family, load_config
from minipeft.model.pretrained import cast_frozen
from minipeft.training.optimization.cuda_graphs import StepGraphs
from minipeft.training.optimization.optimizer import adamw, set_learning_rate

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
IDENTITY = ("part", "name", "precision")
SMALL: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "vocab_size": 1000,
    "pad_token_id": 1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LENGTHS = (1, 7, 64, 33, 129, 300)
Step = Callable[[Any, list[int]], None]


def move(model: SequenceClassifier, device: str) -> SequenceClassifier:
    return model.to(device)


def parity(device: str, steps: int = 50) -> Iterator[dict[str, Any]]:
    """Yield, per family and precision, the largest difference of a logit and of a loss between device and CPU."""
    for family, (precision, dtype) in itertools.product(peer.BASES, DTYPES.items()):
        config = get_family(family).config(model_type=family, **SMALL)
        torch.manual_seed(0)
        ids = [torch.randint(3, config.vocab_size, (length,)).tolist() for length in LENGTHS]
        batch = pack(ids, torch.arange(len(ids)) % 2, config=config)
        model = minipeft.apply(SequenceClassifier(config), minipeft.LoRA(rank=2, alpha=8))
        models = [
            (torch.device("cpu"), cast_frozen(copy.deepcopy(model), dtype)),
            (torch.device(device), move(cast_frozen(model, dtype), device)),
        ]
        logits, losses = [], []
        for place, trained in models:
            with torch.no_grad():
                logits.append(trained.eval()(batch.to(place)).cpu())
            losses.append(torch.stack(list(_losses(trained, batch.to(place), steps))).cpu())
        yield {
            "part": "parity",
            "name": family,
            "precision": precision,
            "logits": float((logits[0] - logits[1]).abs().max()),
            "losses": float((losses[0] - losses[1]).abs().max()),
            "steps": steps,
        }


def _losses(model: SequenceClassifier, batch: Any, steps: int) -> Iterator[torch.Tensor]:
    optimizer = adamw(model.train(), 0.01)
    for step in range(steps):
        set_learning_rate(optimizer, 1e-3 * min(1.0, (step + 1) / 5))
        loss = F.cross_entropy(model(batch), batch.labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach()


def attention(device: str, heads: int = 12, head_size: int = 64) -> Iterator[dict[str, Any]]:
    """Yield the largest difference between the planned and the plain attention, by precision, window and queries."""
    config = get_family("roberta").config()
    batch = pack([[5] * length for length in LENGTHS], config=config).to(device)
    for (precision, dtype), window, first_only in itertools.product(DTYPES.items(), (None, 64), (False, True)):
        torch.manual_seed(0)
        q, k, v = (torch.randn(sum(LENGTHS), heads * head_size, dtype=dtype, device=device) for _ in range(3))
        if first_only:
            q = q[batch.cu_seqlens[:-1].long()]
        plan = plan_attention(batch, dtype, head_size, window=window)
        fast = attend(q, k, v, plan, heads, first_only=first_only)
        plain = attend_plain(q.float(), k.float(), v.float(), LENGTHS, heads, first_only=first_only, window=window)
        yield {
            "part": "attention",
            "name": f"{type(plan).__name__}, window {window}, {'first tokens' if first_only else 'every token'}",
            "precision": precision,
            "difference": float((fast.float() - plain).abs().max()),
        }


def throughput(
    wanted: argparse.Namespace, folder: Path, tasks: tuple[str, ...] = ("rte", "sst2"), rounds: int = 10
) -> Iterator[dict[str, Any]]:
    """Yield samples per second and peak memory of a training step of both libraries in bf16."""
    size = peer.BATCH * peer.ACCUMULATION
    tokenizer, config = minipeft.load_tokenizer(wanted.tokenizer), load_config(folder)
    for task, method in itertools.product(tasks, ("lora", "bitfit", "full")):
        row = peer.Row("roberta", task, method, "training", "bf16", 0.1)
        chunks = read_chunks(get_task(task), "train", wanted.data, size * (rounds + 3))
        examples = encode_split(get_task(task), chunks, tokenizer, 512, config)
        steps = [[(number * size + place) % len(examples) for place in range(size)] for number in range(rounds + 3)]
        for name, make in _sides(wanted, folder, row).items():
            try:
                step = make()
                for indices in steps[:3]:  # compiles, and records graphs
                    step(examples, indices)
                _reset_peak(wanted.device)
                start = clock(wanted.device)
                for indices in steps[3:]:
                    step(examples, indices)
                seconds = clock(wanted.device) - start
            except Exception as error:  # that the peer cannot do a combination is a result too
                if not name.startswith("peer"):
                    raise
                measured: dict[str, Any] = {"error": repr(error)}
            else:
                memory = peak_memory(wanted.device)
                measured = {"samples_per_second": size * rounds / seconds, "peak_memory_bytes": memory}
            yield {"part": "throughput", "name": f"{task}, {method}, {name}", "precision": "bf16", **measured}


def _sides(wanted: argparse.Namespace, folder: Path, row: peer.Row) -> dict[str, Callable[[], Step]]:
    """Return, by name, what makes the training step of each library and variant."""
    sides: dict[str, Callable[[], Step]] = {"minipeft": lambda: peer.ours(folder, wanted, row)}
    if wanted.device.startswith("cuda"):
        sides["minipeft, CUDA graphs"] = lambda: _with_graphs(wanted, folder, row)
    kernels = ["sdpa", *(["flash_attention_2"] if importlib.util.find_spec("flash_attn") else [])]
    for kernel, compiled, grouped in itertools.product(kernels, (False, True), (False, True)):
        words = [kernel, *(["torch.compile"] if compiled else []), *(["grouped by length"] if grouped else [])]
        of_peer = argparse.Namespace(**vars(wanted) | {"peer_precision": "bf16", "group_by_length": grouped})
        if wanted.peers:
            sides[f"peer, {', '.join(words)}"] = partial(peer.peer, folder, of_peer, row, kernel, compiled)
    return sides


def _with_graphs(wanted: argparse.Namespace, folder: Path, row: peer.Row) -> Step:
    """Return minipeft's training step through CUDA graphs."""
    model = minipeft.load_pretrained(folder, dtype=torch.bfloat16)
    model = move(minipeft.apply(model, peer.METHODS[row.method]), wanted.device).train()
    optimizer, graphs, max_tokens = adamw(model, 0.01), StepGraphs(model), wanted.max_tokens or 16384

    def step(examples: Any, indices: list[int]) -> None:
        for chosen in split_by_tokens(indices, examples.lengths, max_tokens):
            graphs.add_gradients(pack_examples(examples, chosen, model.config), len(indices))
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return step


def end_to_end(wanted: argparse.Namespace, folder: Path, epochs: int = 25) -> Iterator[dict[str, Any]]:
    """Yield the seconds of a whole training on RTE, from the call to the result."""
    with tempfile.TemporaryDirectory() as output:
        start = clock(wanted.device)
        result = minipeft.train(
            task="rte", data=wanted.data, model=str(folder), epochs=epochs, device=wanted.device, output=f"{output}/run"
        )
        seconds = clock(wanted.device) - start
    content = result.content
    yield {
        "part": "end to end",
        "name": f"RTE, LoRA, {epochs} epochs",
        "precision": content["precision"],
        "seconds": seconds,
        "samples_per_second": content["samples_per_second"],
        "peak_memory_bytes": content["peak_memory_bytes"],
    }


def products(device: str, size: int = 8192) -> Iterator[dict[str, Any]]:
    """Yield the operations per second of products of square matrices, the highest of ten."""
    for precision, dtype in DTYPES.items():
        x = torch.randn(size, size, device=device, dtype=dtype)
        seconds = []
        for _ in range(10):
            start = clock(device)
            torch.mm(x, x)
            seconds.append(clock(device) - start)
        rate = 2.0 * size**3 / min(seconds)
        yield {"part": "products", "name": f"{size}³", "precision": precision, "operations_per_second": rate}


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    add_flags(parser)
    flag("--device", default="cuda")
    flag("--max-tokens", type=int)
    flag("--no-peers", dest="peers", action="store_false", help="measure minipeft alone")
    flag("--output", default=str(Path(__file__).parent / "results" / "gpu.json"), help="JSON file of the rows")
    wanted = parser.parse_args()
    wanted.device = choose_device(wanted.device)
    machine = describe_machine(wanted.device)
    with tempfile.TemporaryDirectory() as name:
        folder = make_checkpoint(Path(name), Path(wanted.tokenizer), wanted.layers)
        parts = (
            parity(wanted.device),
            attention(wanted.device),
            products(wanted.device),
            throughput(wanted, folder),
            end_to_end(wanted, folder),
        )
        for part in parts:
            rows = []
            for row in part:
                print(row, flush=True)
                rows.append(row)
            write_rows(Path(wanted.output), machine, rows, IDENTITY)


if __name__ == "__main__":
    main()
