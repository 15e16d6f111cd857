"""Measure every method on one task: parameters, agreement with peft, and the best of three learning rates.

    python benchmarks/methods.py --data ../shared/glue --output methods-table

This trains each method on 20,000 examples of SST-2 for one epoch at three learning rates, with the bundled
roberta-mini, and prints a table. Finished runs in --output are not repeated. "Agreement" is the maximum absolute
difference of the loss from peft's over 20 steps, from the adapter that peft saved and on the same batches, in a small
random RoBERTa without dropout.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import peft
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import RobertaConfig, RobertaForSequenceClassification

import minipeft
from minipeft.methods import METHODS, get_method, method_name
from minipeft.training.optimization.optimizer import adamw, set_learning_rate

STEPS, RATE = 20, 5e-3
LOW = (1e-3, 3e-3, 1e-2)
HIGH = (3e-3, 1e-2, 3e-2)
LORA = {"rank": 8, "alpha": 16.0, "dropout": 0.0}
# row → (paper, method, settings, learning rates, peft's config of the same)
ROWS: dict[str, tuple[str, str, dict[str, Any], tuple[float, ...], Any]] = {
    "full": ("Devlin et al. 2019", "full", {}, (1e-4, 3e-4, 1e-3), None),
    "head": ("", "head", {}, LOW, None),
    "BitFit": ("Ben Zaken et al. 2022", "bitfit", {}, LOW, None),
    "BitFit, query and intermediate": (
        "Ben Zaken et al. 2022",
        "bitfit",
        {"targets": ("query", "intermediate")},
        HIGH,
        None,
    ),
    "LayerNorm tuning": (
        "Zhao et al. 2023",
        "layernorm",
        {},
        LOW,
        lambda: peft.LNTuningConfig(target_modules=["LayerNorm"]),
    ),
    "LoRA": ("Hu et al. 2021", "lora", LORA, LOW, lambda: peft.LoraConfig(r=8, lora_alpha=16)),
    "rsLoRA": (
        "Kalajdzievski 2023",
        "lora",
        LORA | {"method_options": {"rslora": True}},
        LOW,
        lambda: peft.LoraConfig(r=8, lora_alpha=16, use_rslora=True),
    ),
    "PiSSA": (
        "Meng et al. 2024",
        "lora",
        LORA | {"method_options": {"init": "pissa"}},
        LOW,
        lambda: peft.LoraConfig(r=8, lora_alpha=16, init_lora_weights="pissa"),
    ),
    "LoRA+, ratio 16": (
        "Hayou et al. 2024",
        "lora",
        LORA | {"method_options": {"lr_ratio": 16}},
        (3e-4, 1e-3, 3e-3),
        None,
    ),
    "DoRA": ("Liu et al. 2024", "dora", LORA, LOW, lambda: peft.LoraConfig(r=8, lora_alpha=16, use_dora=True)),
    "AdaLoRA": (
        "Zhang et al. 2023",
        "adalora",
        {"method_options": {"tinit": 10, "tfinal": 20}},
        LOW,
        lambda: peft.AdaLoraConfig(init_r=12, target_r=8, lora_alpha=16, tinit=2, tfinal=4, total_step=STEPS),
    ),
    "VeRA": ("Kopiczko et al. 2024", "vera", {}, HIGH, lambda: peft.VeraConfig(r=256)),
    "(IA)³": ("Liu et al. 2022", "ia3", {}, HIGH, lambda: peft.IA3Config()),
    "Houlsby adapters": ("Houlsby et al. 2019", "houlsby", {}, (3e-4, 1e-3, 3e-3), None),
    "Pfeiffer adapters": ("Pfeiffer et al. 2020", "pfeiffer", {}, (3e-4, 1e-3, 3e-3), None),
    "prefix tuning": (
        "Li and Liang 2021",
        "prefix_tuning",
        {},
        HIGH,
        lambda: peft.PrefixTuningConfig(num_virtual_tokens=20),
    ),
    "prompt tuning": (
        "Lester et al. 2021",
        "prompt_tuning",
        {},
        HIGH,
        lambda: peft.PromptTuningConfig(num_virtual_tokens=20),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with <task>/train.parquet, …")
    parser.add_argument("--output", required=True, help="folder for the runs")
    parser.add_argument("--task", default="sst2", help="[sst2]")
    parser.add_argument("--model", default="roberta-mini", help="[roberta-mini]")
    parser.add_argument("--train-limit", type=int, default=20_000, help="[20000]")
    parser.add_argument("--epochs", type=int, default=1, help="[1]")
    parser.add_argument("--precision", default="fp32", help="[fp32]")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help="[all]")
    wanted = parser.parse_args()
    print("| method | paper | parameters on roberta-base | in peft | agreement | accuracy | learning rate | seconds |")
    print("|---|---|---:|---|---:|---:|---:|---:|")
    for row in wanted.rows:
        paper, method, settings, rates, peer = ROWS[row]
        results = [(result(wanted, row, method, settings, rate), rate) for rate in rates]
        best, rate = max(results, key=lambda pair: pair[0]["best"]["value"])
        agreement = f"{agree(peer()):.0e}" if peer else ""
        known = "no" if METHODS[method].peft is None else "yes"
        print(
            f"| {row} | {paper} | {parameters(method, settings):,} | {known} | {agreement} "
            f"| {best['best']['value']:.3f} | {rate:g} | {best['train_seconds']:.0f} |",
            flush=True,
        )


def parameters(method: str, settings: dict[str, Any]) -> int:
    """Return the number of the method's trainable parameters in roberta-base, without the head."""
    fields = {**settings, **settings.get("method_options", {})}
    fields.pop("method_options", None)
    config = get_method(method)(**(fields | {"init": "kaiming"} if fields.get("init") == "pissa" else fields))
    with torch.device("meta"):
        model = minipeft.apply(minipeft.SequenceClassifier(minipeft.EncoderConfig()), config)
    return minipeft.count_parameters(model).method


def result(wanted: argparse.Namespace, row: str, method: str, settings: dict[str, Any], rate: float) -> dict[str, Any]:
    """Return the content of a run's result.json; train the run if it has not finished."""
    folder = Path(wanted.output) / f"{row.replace(' ', '-').replace(',', '')}-{rate:g}"
    if not (folder / "result.json").is_file():
        minipeft.train(
            task=wanted.task,
            method=method,
            model=wanted.model,
            data=wanted.data,
            train_limit=wanted.train_limit,
            warmup_steps=20,
            epochs=wanted.epochs,
            precision=wanted.precision,
            lr=rate,
            output=str(folder),
            resume=True,
            quiet=True,
            **settings,
        )
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content


def agree(config: Any) -> float:
    """Return the maximum absolute difference of the loss from peft's over 20 steps."""
    torch.manual_seed(0)
    config.task_type = "SEQ_CLS"
    shape = RobertaConfig(
        vocab_size=300,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=80,
        max_position_embeddings=514,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.15,
    )
    base = RobertaForSequenceClassification(shape)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base.save_pretrained(folder / "base")
        theirs = peft.get_peft_model(base, config).train()
        theirs.save_pretrained(folder / "adapter")
        ours = minipeft.load_adapter(minipeft.load_pretrained(folder / "base"), folder / "adapter").train()
    optimizer = adamw(ours, weight_decay=0.0)
    set_learning_rate(optimizer, RATE)
    peer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], RATE, weight_decay=0.0)
    row = METHODS[method_name(ours.method)]
    generator = torch.Generator().manual_seed(1)
    largest = 0.0
    for step in range(STEPS):
        lengths = torch.randint(1, 60, (8,), generator=generator).tolist()
        ids = [torch.randint(5, 300, (length,), generator=generator) for length in lengths]
        labels = torch.randint(0, 2, (8,), generator=generator)
        batch = minipeft.pack([sequence.tolist() for sequence in ids], config=ours.config)
        loss = F.cross_entropy(ours(batch), labels) + (row.penalty(ours) if row.penalty else 0.0)
        loss.backward()
        optimizer.step()
        if row.after_step is not None:
            row.after_step(ours, step, STEPS)
        optimizer.zero_grad()
        mask = pad_sequence([torch.ones_like(sequence) for sequence in ids], batch_first=True)
        padded = pad_sequence(ids, batch_first=True, padding_value=1)
        their_loss = theirs(input_ids=padded, attention_mask=mask, labels=labels).loss
        their_loss.backward()
        peer.step()
        if hasattr(theirs.base_model, "update_and_allocate"):
            theirs.base_model.update_and_allocate(step)
        peer.zero_grad()
        largest = max(largest, abs(loss.item() - their_loss.item()))
    return largest


if __name__ == "__main__":
    main()
