"""Train with transformers + peft and minipeft's settings: same weights, data, order, steps, optimizer and metric.

    python benchmarks/peer_accuracy.py --task rte --method lora --rank 2 --model DIR --data DIR --epochs 6 --lr 1e-3

This takes train.py's flags and prints one JSON line per epoch, with the names of metrics.jsonl. The flags --targets,
--precision, --device, --compile, --output and --resume have no effect: it trains query and value in fp32 on the CPU and
writes nothing. Batches are sorted by length within a step and padded to the longest sequence, which affects only time.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, get_linear_schedule_with_warmup

from minipeft.cli.flags import add_train_flags
from minipeft.data.batches.sampling import epoch_order
from minipeft.data.tasks.splits import read_chunks
from minipeft.data.tasks.task import get_task
from minipeft.data.tokens.examples import Encoded, encode_split
from minipeft.data.tokens.tokenizer import load_tokenizer
from minipeft.hub import resolve_model
from minipeft.model.families import load_config
from minipeft.training.optimization.optimizer import parameter_groups
from minipeft.training.settings.recipes import ALPHA, DROPOUT, RANK, WARMUP_STEPS
from minipeft.training.settings.train_settings import TrainSettings


def build(wanted: TrainSettings, folder: str, num_labels: int) -> torch.nn.Module:
    """The peer's model; what minipeft trains is left trainable: the method's parameters, the head, bert's pooler."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=num_labels, dtype=torch.float32)
    head = ["classifier", "pooler"]
    if wanted.method == "lora":
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=wanted.rank or RANK,
            lora_alpha=wanted.alpha or ALPHA,
            lora_dropout=DROPOUT if wanted.dropout is None else wanted.dropout,
            target_modules=["query", "value"],
            modules_to_save=head,
        )
        return get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        in_head = any(part in name for part in head)
        parameter.requires_grad_(
            in_head or wanted.method == "full" or (wanted.method == "bitfit" and name.endswith(".bias"))
        )
    return model


def padded(examples: Encoded, indices: list[int], pad_id: int) -> dict[str, torch.Tensor]:
    ids, types = examples.sequences.take(indices).concatenate()
    lengths = examples.lengths[indices].tolist()

    def rows(values: np.ndarray, padding: int = 0) -> torch.Tensor:
        return pad_sequence(torch.from_numpy(values).split(lengths), batch_first=True, padding_value=padding)

    return {
        "input_ids": rows(ids, pad_id),
        "token_type_ids": rows(np.zeros_like(ids) if types is None else types),
        "attention_mask": rows(np.ones_like(ids)),
    }


@torch.inference_mode()
def evaluate(model: torch.nn.Module, examples: Encoded, num_labels: int, config: object) -> dict[str, float]:
    model.eval()
    order = sorted(range(len(examples)), key=examples.lengths.tolist().__getitem__)
    logits = torch.empty(len(examples), num_labels)
    for start in range(0, len(order), 16):
        indices = order[start : start + 16]
        logits[indices] = model(**inputs(examples, indices, config)).logits
    task = examples.split.task
    model.train()
    return task.problem.score(logits, examples.split.labels, task.metrics)


def inputs(examples: Encoded, indices: list[int], config: object) -> dict[str, torch.Tensor]:
    batch = padded(examples, indices, config.pad_token_id)  # type: ignore[attr-defined]
    if config.model_type != "bert":  # type: ignore[attr-defined]
        del batch["token_type_ids"]
    return batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, add_help=False)  # add_train_flags has --help
    add_train_flags(parser)
    wanted = TrainSettings(**vars(parser.parse_args()))
    if wanted.data == "auto" or wanted.epochs is None or wanted.lr is None:
        parser.error("--data, --epochs and --lr are needed")
    task = get_task(wanted.task)
    folder, _ = resolve_model(wanted.model)
    config, tokenizer = load_config(folder), load_tokenizer(folder)
    train, validation = (
        encode_split(
            task,
            read_chunks(task, split, wanted.data, limit),
            tokenizer,
            wanted.max_length or config.max_length,
            config,
        )
        for split, limit in (("train", wanted.train_limit), (task.validation, wanted.eval_limit))
    )
    torch.manual_seed(wanted.seed)
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    model = build(wanted, str(folder), task.num_labels).train()
    per_step = wanted.batch_size * wanted.grad_accum
    steps_per_epoch = -(-len(train) // per_step)
    optimizer = torch.optim.AdamW(parameter_groups(model, wanted.weight_decay), lr=wanted.lr)
    warmup_steps = WARMUP_STEPS if wanted.warmup_steps is None else wanted.warmup_steps
    schedule = get_linear_schedule_with_warmup(optimizer, warmup_steps, wanted.epochs * steps_per_epoch)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    print(json.dumps({"trained": sum(parameter.numel() for parameter in trained)}), flush=True)
    for epoch in range(wanted.epochs):
        began, total = time.perf_counter(), 0.0
        order = epoch_order(len(train), wanted.seed, epoch)
        for place in range(0, len(order), per_step):
            chosen = sorted(order[place : place + per_step], key=train.lengths.__getitem__)
            for start in range(0, len(chosen), wanted.batch_size):
                indices = chosen[start : start + wanted.batch_size]
                labels = task.problem.targets([train.split.labels[index] for index in indices], (), task.num_labels)
                logits = model(**inputs(train, indices, config)).logits
                loss = task.problem.losses(logits, labels).sum() / len(chosen)
                loss.backward()
                total += loss.item() * len(chosen)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        seconds = time.perf_counter() - began
        print(
            json.dumps(
                {
                    "epoch": epoch + 1,
                    "train_loss": total / len(train),
                    **evaluate(model, validation, task.num_labels, config),
                    "seconds": seconds,
                    "samples_per_second": len(train) / seconds,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
