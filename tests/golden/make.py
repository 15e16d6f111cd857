"""Write the files of format 1 that tests/test_golden.py opens, and what they predict.

    python tests/golden/make.py

The files are those of the first release of format 1: every later version has to read them. Run this script only to add
files of a new format, in a folder of its own; never to replace these.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

import minipeft
from minipeft.data.tasks.synthetic import generate
from minipeft.model.config import EncoderConfig
from minipeft.model.language_model import MaskedLanguageModel
from minipeft.model.layers import init_weights
from minipeft.model.saved_checkpoint import save_checkpoint
from minipeft.pretraining.corpus import train_tokenizer

FOLDER = Path(__file__).parent
PLACE = Path("/tmp/minipeft-golden")  # where the files are made: some of them name it
FOLDERS = ("model", "data", "run-glue", "run-reviews", "adapters", "merged")
SETTINGS: dict[str, Any] = {
    **{"model": "model", "epochs": 2, "batch_size": 8, "grad_accum": 1, "warmup_steps": 0, "lr": 5e-3, "device": "cpu"},
    **{"precision": "fp32", "report_to": "none", "quiet": True, "rank": 2},
}
PAIRS = [("A dog sleeps.", "An animal rests."), ("Two people sing", "Nobody makes music in the hall tonight")]
TEXTS = ["a wonderful film", "dull and far too long, I left early"]


def main() -> None:
    shutil.rmtree(PLACE, ignore_errors=True)
    PLACE.mkdir()
    os.chdir(PLACE)
    make_model()
    make_data()
    for name, more in {"glue": {"task": "rte", "data": "data"}, "reviews": {"data": "data/reviews.csv"}}.items():
        minipeft.train(**SETTINGS, **more, output=f"run-{name}")
        Path(f"run-{name}", "curves.png").unlink(missing_ok=True)
    for name, method in {"lora": minipeft.LoRA(rank=2), "bitfit": minipeft.BitFit()}.items():
        torch.manual_seed(1)
        model = minipeft.apply(minipeft.load_pretrained("model"), method)
        change(model)
        minipeft.save_adapter(model, f"adapters/{name}")
    make_peft_adapter()
    minipeft.export(minipeft.load_run("run-glue", "cpu").model, "merged")
    (FOLDER / "expected.json").write_text(json.dumps(predictions(), indent=1) + "\n", encoding="utf-8")
    for name in FOLDERS:
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        shutil.copytree(name, FOLDER / name)


def predictions() -> dict[str, list[list[float]]]:
    """Return the probabilities, or for adapters the logits, of every folder for the inputs above."""
    firsts, seconds = ([pair[number] for pair in PAIRS] for number in (0, 1))
    found = {
        name: minipeft.load_run(name, "cpu", pairs=True).predict_proba(firsts, seconds).tolist()
        for name in ("run-glue", "merged")
    }
    found["run-reviews"] = minipeft.load_run("run-reviews", "cpu").predict_proba(TEXTS).tolist()
    token_ids = minipeft.load_tokenizer("model").encode(TEXTS)
    for name in ("lora", "bitfit", "peft"):
        model = minipeft.load_adapter(minipeft.load_pretrained("model"), f"adapters/{name}").eval()
        with torch.no_grad():
            found[f"adapters/{name}"] = model(minipeft.pack(token_ids, config=model.config)).tolist()
    return found


def make_model() -> None:
    train_tokenizer(
        [*generate("rte", "train")["sentence1"], *generate("sst2", "train")["sentence"]], 400, Path("model")
    )
    config = EncoderConfig(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=66,
    )
    torch.manual_seed(0)
    model = MaskedLanguageModel(config)
    init_weights(model, 0.2)
    save_checkpoint(model, Path("model"), torch.float16)


def make_data() -> None:
    Path("data/rte").mkdir(parents=True)
    for split, count in (("train", 32), ("validation", 16)):
        columns = {name: values[:count] for name, values in generate("rte", split).items()}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        Path(f"data/rte/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sentences = generate("sst2", "train")
    with open("data/reviews.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "label"])
        for text, label in list(zip(sentences["sentence"], sentences["label"], strict=True))[:40]:
            writer.writerow([text, ("bad", "good")[label]])


def make_peft_adapter() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(2)
    config = LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules=["query", "value"])
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained("model"), config)
    change(model)
    model.save_pretrained("adapters/peft")
    Path("adapters/peft/README.md").unlink(missing_ok=True)


@torch.no_grad()
def change(model: torch.nn.Module) -> None:
    """Give what trains other values than those it starts with."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))


if __name__ == "__main__":
    main()
