"""A finished run → its metrics and predictions, in a fresh process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minipeft.adapters.adapter import load_adapter
from minipeft.adapters.merging import export
from minipeft.data.custom import custom_task
from minipeft.data.rows import files_of, open_table
from minipeft.data.splits import choose_data, chunk_examples, drawn_as_recorded, read_chunks, read_examples
from minipeft.data.tasks import Split, Task, get_task
from minipeft.data.tokenizer import Tokenizer, load_tokenizer
from minipeft.device import choose_device
from minipeft.errors import MinipeftError, shown, whole_number
from minipeft.files import read_json
from minipeft.hub.hub import resolve_model
from minipeft.model.checkpoint import cast_frozen, load_pretrained
from minipeft.model.classifier import SequenceClassifier
from minipeft.training.metrics import Encoded, encode_split, evaluate, predict_logits, score

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
        """Loss and metrics on a split, by default those that the run was evaluated on."""
        source = self.source(data)
        splits = {"": split or self.task.validation}
        if split is None:
            splits |= {f"{name}_": other for name, other in self.task.also}
            limit = limit or self.settings.get("eval_limit")
        values: dict[str, float] = {}
        for prefix, name in splits.items():
            rows = read_chunks(self.task, name, source, limit)
            examples = encode_split(self.task, rows, self.tokenizer, self.settings["max_length"], self.model.config)
            figures = evaluate(self.model, examples, self.settings["max_tokens"], self.device)
            values |= {prefix + figure: value for figure, value in figures.items()}
        return values

    def source(self, data: str | None) -> str:
        """Where the task's splits come from: --data, or the run's own."""
        if data is None:
            return str(self.settings["source"])
        if self.task.is_custom:
            raise MinipeftError(f"--data {data!r} is for GLUE's tasks; evaluate a file of your own with --input")
        return choose_data(self.task, data)[0]

    def export(self, folder: str | Path) -> dict[str, Any]:
        """Merge in float32 and write the checkpoint; says how far its logits are from the adapter's, unmerged."""
        merged = export(self.model, folder)
        rows = read_chunks(self.task, self.task.validation, self.settings["source"], COMPARED)
        examples = encode_split(self.task, rows, self.tokenizer, self.settings["max_length"], self.model.config)
        logits, after = (
            predict_logits(model, examples, self.settings["max_tokens"], self.device) for model in (self.model, merged)
        )
        difference = float((logits - after).abs().max())
        return {"folder": str(folder), "largest_logit_difference": difference, "examples": len(examples)}

    def evaluate_file(
        self,
        path: str,
        text_column: str | None = None,
        pair_column: str | None = None,
        label_column: str | None = None,
    ) -> dict[str, float]:
        """Loss and metrics over a file, a folder of files or standard input ("-"), whose rows bear labels.

        The file is read as a stream; the logits and labels of all its rows are what stays in memory.
        """
        logits: list[Tensor] = []
        labels: list[Any] = []
        for chunk in self.read_chunks(path, text_column, pair_column, label_column or self.task.label_column):
            logits.append(self._logits(chunk.texts, chunk.pairs))
            labels += chunk.labels
        return score(torch.cat(logits), labels, self.task)

    def read_chunks(
        self,
        path: str,
        text_column: str | None = None,
        pair_column: str | None = None,
        label_column: str | None = None,
    ) -> Iterator[Split]:
        """The rows of a file, of a folder's files in the order of their names, or of standard input ("-"), as a stream.

        A text column that is not named is the task's own, or else "text" and "pair"; without `label_column` labels are
        not read.
        """
        if pair_column is not None and len(self.task.columns) == 1:
            raise MinipeftError(f"{self.task.name} takes one text a row; leave --pair-column {pair_column!r} out")
        flags = "--text-column" if len(self.task.columns) == 1 else "--text-column and --pair-column"
        remedy = f"{flags} can name another"
        task = self.task
        if label_column is not None:
            remedy += ", and evaluate needs a label (--label-column)"
            task = replace(task, label_column=label_column)

        def examples() -> Iterator[tuple[str, str | None, Any]]:
            for name in files_of(path):
                table = open_table(name)
                columns = [
                    chosen or (own if own in table.columns or usual not in table.columns else usual)
                    for own, usual, chosen in zip(
                        self.task.columns, ("text", "pair"), (text_column, pair_column), strict=False
                    )
                ]
                yield from read_examples(task, table, columns, remedy, label_column is not None)

        return chunk_examples(self.task, examples())

    def predict(self, texts: list[str], pairs: list[str] | None = None) -> list[dict[str, Any]]:
        """For each text its label by name and the probability of each; for regression, its score."""
        if (pairs is not None) != (len(self.task.columns) == 2):
            columns = " and ".join(self.task.columns)
            raise MinipeftError(
                f"{self.task.name} takes {columns}: give {'each text a pair' if pairs is None else 'no pair'}"
            )
        logits = self._logits(texts, pairs)
        if self.task.is_regression:
            return [{"score": value} for value in logits[:, 0].tolist()]
        names = list(self.model.config.id2label.values())
        return [
            {"label": names[best], "probabilities": dict(zip(names, row, strict=True))}
            for best, row in zip(logits.argmax(1).tolist(), logits.softmax(1).tolist(), strict=True)
        ]

    def _logits(self, texts: list[str], pairs: list[str] | None) -> Tensor:
        """Logits (texts, num_labels) of at least one text; what is not finite is no prediction and raises."""
        sequences = self.tokenizer.encode_full(texts, pairs, self.settings["max_length"])
        examples = Encoded.unlabelled(self.task, sequences)
        logits = predict_logits(self.model, examples, self.settings["max_tokens"], self.device)
        if not logits.isfinite().all():
            row = int((~logits.isfinite()).any(1).nonzero()[0])
            raise MinipeftError(
                f"the model gives {logits[row].tolist()} for the text {shown(texts[row])}: "
                "its weights are damaged; train or fetch them again"
            )
        return logits


def load_run(folder: str | Path, device: str = "auto", precision: str | None = None) -> LoadedRun:
    """Reload a run's best adapter, as `minipeft evaluate` and `minipeft predict` do → a LoadedRun.

    folder      the run's
    device      auto, cpu, cuda or mps
    precision   fp32 or bf16; by default the run's own
    It evaluates splits and files, predicts texts and exports. Raises MinipeftError for a folder that holds no finished
    run, and for a file in it that is damaged or does not fit.
    """
    folder = Path(folder)
    settings = read_json(folder / "config.json")
    missing = sorted({"task", "model", "precision", "max_length", "max_tokens", "source"} - set(settings))
    if missing:
        raise MinipeftError(f"{folder / 'config.json'}: no {missing[0]} in it; name the folder of a run")
    for name in ("task", "model", "precision", "source"):
        if not isinstance(settings[name], str):
            raise MinipeftError(f"{folder / 'config.json'}: {name} {shown(settings[name])} is no text; train anew")
    for name in ("max_length", "max_tokens"):
        try:
            whole_number(name, settings[name])
        except MinipeftError as error:
            raise MinipeftError(f"{folder / 'config.json'}: {error}; train anew") from None
    try:
        task = custom_task(settings) or drawn_as_recorded(get_task(settings["task"]), settings)
    except MinipeftError as error:
        raise MinipeftError(f"{folder / 'config.json'}: {error}; train anew") from None
    model_folder, _ = resolve_model(settings["model"])
    dtype = torch.bfloat16 if (precision or settings["precision"]) == "bf16" else torch.float32
    level = logger.level
    logger.setLevel(logging.ERROR)  # the new head that the next line announces is replaced by the adapter's
    model = load_pretrained(model_folder, task.num_labels)
    logger.setLevel(level)
    if settings["max_length"] > model.config.max_length:
        raise MinipeftError(
            f"{folder / 'config.json'}: max_length {shown(settings['max_length'])} is beyond the model's "
            f"{model.config.max_length}; train anew"
        )
    cast_frozen(load_adapter(model, folder / "adapter"), dtype)
    device = choose_device(device)
    return LoadedRun(model.to(device).eval(), load_tokenizer(model_folder), task, settings, device)
