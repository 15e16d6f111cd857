"""A finished run → its metrics and predictions, in a fresh process."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minipeft.adapter import load_adapter
from minipeft.data.tasks import Task, choose_data, get_task, read_split
from minipeft.data.tokenizer import Tokenizer, load_tokenizer
from minipeft.device import choose_device
from minipeft.errors import MinipeftError
from minipeft.files import read_json
from minipeft.hub import resolve_model
from minipeft.merging import export
from minipeft.model.checkpoint import cast_frozen, load_pretrained
from minipeft.model.roberta import SequenceClassifier
from minipeft.training.metrics import Encoded, encode_split, evaluate, predict_logits

logger = logging.getLogger("minipeft")

COMPARED = 256  # validation examples that an export is compared on


@dataclass(frozen=True)
class LoadedRun:
    """A finished run, reloaded: the model with its best adapter, and what belongs to it."""

    model: SequenceClassifier
    tokenizer: Tokenizer
    task: Task
    settings: dict[str, Any]
    device: str

    def evaluate(self, split: str | None = None, data: str | None = None, limit: int | None = None) -> dict[str, float]:
        """Loss and metrics on a split, by default the one that the run was evaluated on."""
        source = self.settings["source"] if data is None else choose_data(self.task, data)[0]
        if split is None:
            split, limit = self.task.validation, limit or self.settings["eval_limit"]
        rows = read_split(self.task, split, source, limit)
        examples = encode_split(rows, self.tokenizer, self.settings["max_length"], self.model.config)
        return evaluate(self.model, examples, self.settings["max_tokens"], self.device)

    def export(self, folder: str | Path) -> dict[str, Any]:
        """Merge in float32 and write the checkpoint; says how far its logits are from the adapter's, unmerged."""
        merged = export(self.model, folder)
        rows = read_split(self.task, self.task.validation, self.settings["source"], COMPARED)
        examples = encode_split(rows, self.tokenizer, self.settings["max_length"], self.model.config)
        logits, after = (
            predict_logits(model, examples, self.settings["max_tokens"], self.device) for model in (self.model, merged)
        )
        difference = float((logits - after).abs().max())
        return {"folder": str(folder), "largest_logit_difference": difference, "examples": len(examples)}

    def predict(self, texts: list[str], pairs: list[str] | None = None) -> list[dict[str, Any]]:
        """For each text its label by name and the probability of each; for regression, its score."""
        if (pairs is not None) != (len(self.task.columns) == 2):
            columns = " and ".join(self.task.columns)
            raise MinipeftError(
                f"{self.task.name} takes {columns}: give {'each text a pair' if pairs is None else 'no pair'}"
            )
        sequences = self.tokenizer.encode_full(texts, pairs, self.settings["max_length"])
        examples = Encoded.unlabelled(self.task, sequences)
        logits = predict_logits(self.model, examples, self.settings["max_tokens"], self.device)
        if self.task.is_regression:
            return [{"score": score} for score in logits[:, 0].tolist()]
        names = list(self.model.config.id2label.values())
        return [
            {"label": names[int(row.argmax())], "probabilities": dict(zip(names, row.softmax(0).tolist(), strict=True))}
            for row in logits
        ]


def load_run(folder: str | Path, device: str = "auto", precision: str | None = None) -> LoadedRun:
    """Reload a run's best adapter, as `minipeft evaluate` and `minipeft predict` do; by default in its precision."""
    folder = Path(folder)
    settings = read_json(folder / "config.json")
    missing = sorted({"task", "model", "precision", "max_length", "max_tokens", "source"} - set(settings))
    if missing:
        raise MinipeftError(f"{folder / 'config.json'}: no {missing[0]} in it; name the folder of a run")
    task = get_task(settings["task"])
    model_folder, _ = resolve_model(settings["model"])
    dtype = torch.bfloat16 if (precision or settings["precision"]) == "bf16" else torch.float32
    level = logger.level
    logger.setLevel(logging.ERROR)  # the new head that the next line announces is replaced by the adapter's
    model = load_pretrained(model_folder, task.num_labels)
    logger.setLevel(level)
    cast_frozen(load_adapter(model, folder / "adapter"), dtype)
    device = choose_device(device)
    return LoadedRun(model.to(device).eval(), load_tokenizer(model_folder), task, settings, device)
