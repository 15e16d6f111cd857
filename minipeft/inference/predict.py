"""A run folder → its metrics, predictions and merged checkpoint, in a new process."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minipeft.adapters.merging import check_export_folder, merged_copy, save_merged
from minipeft.adapters.save import CALIBRATION, PROBABILITIES
from minipeft.data.tables.open_table import list_files, open_table
from minipeft.data.tables.table import Table
from minipeft.data.tasks import synthetic as standin
from minipeft.data.tasks.splits import choose_data, chunk_examples, read_chunks, read_examples
from minipeft.data.tasks.task import TASKS, Split
from minipeft.data.tokens.examples import Encoded, encode_texts
from minipeft.data.tokens.tokenizer import load_tokenizer
from minipeft.device import choose_device
from minipeft.errors import MinipeftError, format_names, logger
from minipeft.files import FORMAT, read_json, user_path, write_json
from minipeft.inference.load_model import (
    is_adapter_folder,
    is_checkpoint,
    load_adapter_folder,
    load_best,
    load_checkpoint,
)
from minipeft.inference.predictor import Predictor
from minipeft.model.classifier import SequenceClassifier
from minipeft.progress_bar import show_progress
from minipeft.training.evaluate import predict_logits
from minipeft.training.settings.checks import threshold as check_threshold

COMPARED_TEXTS = 256  # on which the logits of an export are compared


@dataclass(frozen=True, repr=False)
class LoadedRun(Predictor):
    """A run, reloaded: the model with its best adapter, the tokenizer, the task and the settings."""

    def __post_init__(self) -> None:
        for what in ("temperatures", "thresholds"):
            if values := getattr(self.task.problem, what):
                numbers = format_names([f"{value:.4g}" for value in values])
                calibrated = "the probabilities are calibrated with temperature"
                uses = calibrated if what == "temperatures" else "predictions use the threshold"
                logger.warning("%s: %s %s", self.task.name, uses, numbers)

    def __repr__(self) -> str:
        named = {"task": self.task.name, "method": self.settings.get("method"), "labels": list(self.task.labels)}
        values = [f"{name}={value!r}" for name, value in named.items() if value]
        return f"LoadedRun({', '.join(values)}, device={self.device!r})"

    def evaluate(self, split: str | None = None, data: str | None = None, limit: int | None = None) -> dict[str, float]:
        """Return the loss and metrics on a split; the default is the task's validation splits."""
        source = self.source(data)
        splits = {"": split or self.task.validation}
        if split is None:
            splits |= {f"{name}_": other for name, other in self.task.also}
            limit = limit or self.settings.get("eval_limit")
        values: dict[str, float] = {}
        for prefix, name in splits.items():
            figures = self._score(read_chunks(self.task, name, source, limit))
            values |= {prefix + figure: value for figure, value in figures.items()}
        return values

    def evaluate_file(self, path: str, **columns: Any) -> dict[str, float]:
        """Return the loss and metrics on a labelled file, a folder of files, or standard input ("-").

        The file is read as a stream. `columns` are text_column, pair_column, label_column and file_format.
        """
        return self._score(self.read_chunks(path, labelled=True, **columns))

    def _score(self, chunks: Iterable[Split]) -> dict[str, float]:
        return self.task.problem.score(*self._predict_chunks(chunks, "evaluating"), self.task.metrics)

    def _predict_chunks(self, chunks: Iterable[Split], title: str) -> tuple[Tensor, list[Any]]:
        """Return the logits and the labels of chunks; nothing else of them stays in memory."""
        logits: list[Tensor] = []
        labels: list[Any] = []
        for chunk in show_progress(chunks, title):
            logits.append(self.predict_logits(chunk.texts, chunk.pairs))
            labels += chunk.labels
        return torch.cat(logits), labels

    def calibrate(
        self, folder: Path, data: str | None = None, temperatures: bool = True, thresholds: bool = False
    ) -> dict[str, Any]:
        """Fit temperatures or thresholds on the validation split, and store them in the folder for `load_run`.

        Returns:
            The content of calibration.json: "temperatures" and the expected calibration error before and after;
            "thresholds", the metric that chose them, and its value before and after.
        """
        if not is_adapter_folder(adapter := folder if is_adapter_folder(folder) else folder / "adapter"):
            raise MinipeftError(f"{folder}: no adapter to store a calibration in. Name a run or an adapter.")
        problem = self.task.problem.with_thresholds(*self.task.problem.thresholds) if thresholds else self.task.problem
        chunks = read_chunks(self.task, self.task.validation, self.source(data), self.settings.get("eval_limit"))
        logits, labels = self._predict_chunks(chunks, "calibrating")
        content: dict[str, Any] = {"examples": len(labels)}
        if temperatures:
            problem = problem.calibrate(logits, labels)
            for name, of_name in (("error_before", ()), ("error_after", problem.temperatures)):
                plain = replace(problem, temperatures=of_name, thresholds=())
                content[name] = plain.report(logits, labels)["calibration"]["expected_calibration_error"]
        if thresholds:
            metrics = self.settings.get("select_by") or "", *self.task.metrics
            chosen, by = problem.choose_thresholds(logits, labels, metrics)
            before, after = (kind.score(logits, labels, [by])[by] for kind in (problem, chosen))
            content |= {"chosen_by": by, "before": before, "after": after}
            problem = chosen
        content |= {name: list(getattr(problem, name)) for name in PROBABILITIES}
        stored = read_json(adapter / CALIBRATION, {}) | {"format": FORMAT, **content}
        write_json(adapter / CALIBRATION, stored)
        if result := read_json(folder / "result.json", {}):
            write_json(folder / "result.json", result | {"calibration": stored})
        return content

    def source(self, data: str | None) -> str:
        """Return the source of the task's splits: --data, or that of the run."""
        if self.task.is_custom and self.task.name in TASKS:
            names, wanted = format_names(self.task.labels), format_names(TASKS[self.task.name].labels)
            raise MinipeftError(f"{self.task.name}: the labels {names} are not the data's, {wanted}. Use --input.")
        if data is None and self.settings["source"] == "" and self.task.is_custom:
            raise MinipeftError(f"{self.task.name}: an adapter or checkpoint has no data. Name a file by --input.")
        if data is None:
            return str(self.settings["source"] or choose_data(self.task, "auto")[0])
        if self.task.is_custom:
            raise MinipeftError(f"--data {data!r} is for GLUE's tasks; evaluate a custom file with --input")
        return choose_data(self.task, data)[0]

    def export(self, folder: str | Path) -> dict[str, Any]:
        """Merge in float32 and write the checkpoint, unless its logits cannot be compared with the adapter's.

        Returns:
            The folder, the largest difference of a logit on synthetic texts, and the number of texts.
        """
        folder = user_path(folder)
        check_export_folder(folder)
        merged = merged_copy(self.model)
        examples = self.comparison_examples()
        before, after = self.compared_logits(self.model, examples), self.compared_logits(merged, examples)
        difference = float((before - after).abs().max())
        save_merged(merged.cpu(), folder)
        return {"folder": str(folder), "largest_logit_difference": difference, "examples": len(examples)}

    def export_onnx(self, folder: str | Path, int8: bool = False) -> dict[str, Any]:
        """Write an ONNX program, the tokenizer and config.json, unless its logits cannot be compared with the model's.

        Args:
            folder: A new or empty folder. It appears when every file is complete.
            int8: Whether to write model_int8.onnx too, whose weights have 8 bits.

        Returns:
            What `export` does; with `int8` also that difference of model_int8.onnx.
        """
        from minipeft.inference.onnx_export import export_onnx

        if self.device != "cpu" or self.model.encoder.dtype != torch.float32:
            raise MinipeftError("the model is not on the CPU in float32. Call load_run(folder, 'cpu', 'fp32').")
        folder, examples = user_path(folder), self.comparison_examples()
        differences = export_onnx(self.model, lambda model: self.compared_logits(model, examples), folder, int8)
        return {"folder": str(folder), **differences, "examples": len(examples)}

    def comparison_examples(self) -> Encoded:
        """Return synthetic texts, tokenized as the task takes them, on which the logits of an export are compared."""
        texts = standin.generate("rte", "validation")
        pairs = texts["sentence2"][:COMPARED_TEXTS] if len(self.task.columns) == 2 else None
        inputs = self.task.problem.inputs("texts", texts["sentence1"][:COMPARED_TEXTS])
        return encode_texts(self.task, inputs, pairs, self.tokenizer, self.settings["max_length"], None)

    def compared_logits(self, model: SequenceClassifier, examples: Encoded) -> Tensor:
        """Return a model's logits on examples, (num_examples or num_words, num_labels), of words that have a token."""
        logits = predict_logits(model.to(self.device), examples, self.settings["max_tokens"])
        return logits[~logits.isneginf().all(1)]

    def read_chunks(
        self,
        path: str,
        text_column: str | None = None,
        pair_column: str | None = None,
        label_column: str | None = None,
        file_format: str | None = None,
        echo: Sequence[str] = (),
        echoed: list[Sequence[Any]] | None = None,
        labelled: bool = False,
    ) -> Iterator[Split]:
        """Read a file, the files of a folder in the order of their names, or standard input ("-"), as a stream.

        A column that is not named is the task's, else "text" or "pair". The values of each row in the columns `echo`
        are appended to `echoed`. Labels are read only where `labelled` is true.
        """
        if pair_column is not None and len(self.task.columns) == 1:
            raise MinipeftError(f"{self.task.name} takes one text per row; leave --pair-column {pair_column!r} out")
        flags = "--text-column" if len(self.task.columns) == 1 else "--text-column and --pair-column"
        remedy = f"{flags} can name another"
        task = replace(self.task, label_column=label_column or self.task.label_column)
        if labelled:
            remedy += ", and evaluate needs a label (--label-column)"

        def examples() -> Iterator[tuple[str, str | None, Any]]:
            for name in list_files(path, file_format):
                table = open_table(name, file_format)
                columns = [
                    chosen or (column if column in table.columns or usual not in table.columns else usual)
                    for column, usual, chosen in zip(
                        self.task.columns, ("text", "pair"), (text_column, pair_column), strict=False
                    )
                ]
                if echoed is not None:
                    table = _echo_columns(table, echo, echoed)
                yield from read_examples(task, table, columns, remedy, labelled)

        return chunk_examples(self.task, examples())


def _echo_columns(table: Table, echo: Sequence[str], echoed: list[Sequence[Any]]) -> Table:
    """Return the same table; whenever a row is read, its values in the columns `echo` are appended to `echoed`."""
    for name in echo:
        if name not in table.columns:
            raise table.missing(name, "--echo can name another")

    def read(names: Sequence[str]) -> Iterator[tuple[str, Sequence[Any]]]:
        columns = list(dict.fromkeys([*names, *echo]))
        for place, values in table.read(columns):
            row = dict(zip(columns, values, strict=True))
            echoed.append([row[name] for name in echo])
            yield place, [row[name] for name in names]

    return replace(table, read=read)


def load_run(
    folder: str | Path,
    device: str = "auto",
    precision: str | None = None,
    pairs: bool | None = None,
    threshold: float | str | None = None,
) -> LoadedRun:
    """Reload a run's best adapter, as `minipeft evaluate` and `minipeft predict` do.

    A run that was interrupted (without result.json) gives a warning that names the adapter's epoch.

    Args:
        folder: The run folder; or an adapter folder, minipeft's or peft's, whose base model is found by its name; or a
            merged checkpoint.
        device: "auto", "cpu", "cuda" or "mps".
        precision: "fp32" or "bf16"; the default is that of the run, and fp32 on a CPU that is slow in bf16.
        pairs: Whether the texts are pairs, where an adapter or checkpoint does not say so.
        threshold: The probability from which on a label, or the second of two classes, is predicted; "auto" for those
            that are stored. The default is those that are stored, and 0.5.

    Returns:
        A LoadedRun, which evaluates splits and files, predicts texts and exports the model.

    Raises:
        MinipeftError: for a folder without an adapter, and for a file in it that is damaged or does not fit.
    """
    folder = user_path(folder)
    load = load_adapter_folder if is_adapter_folder(folder) else load_checkpoint if is_checkpoint(folder) else load_best
    device = choose_device(device)
    model, tokenizer, task, settings = load(folder, device, precision, pairs)
    if threshold is not None and (threshold := check_threshold("--threshold", threshold)) != "auto":
        task = replace(task, problem=task.problem.with_thresholds(float(threshold)))
    elif threshold == "auto" and not task.problem.thresholds:
        raise MinipeftError(f"{folder}: no threshold is stored. Run minipeft evaluate {folder} --threshold auto first.")
    return LoadedRun(model.to(device).eval(), load_tokenizer(tokenizer), task, settings, device)
