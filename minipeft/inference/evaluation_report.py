"""A detailed evaluation: per-class figures, confusion matrix, calibration and the most confident mistakes."""

import heapq
from collections.abc import Iterable
from datetime import date
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from minipeft.data.tasks.splits import read_chunks
from minipeft.data.tasks.task import Split
from minipeft.errors import MinipeftError, public_address
from minipeft.inference.predict import LoadedRun
from minipeft.progress_bar import show_progress
from minipeft.version import __version__

MISTAKES = 20


def report_split(
    run: LoadedRun, split: str | None = None, data: str | None = None, limit: int | None = None
) -> dict[str, Any]:
    """Return the report on a split of the task; the default is its validation split.

    Args:
        run: The run.
        split: Name of the split.
        data: As in `LoadedRun.source`.
        limit: Number of examples; the default is the run's --eval-limit where no split is named.
    """
    source = run.source(data)
    if split is None:
        limit = limit or run.settings.get("eval_limit")
    name = split or run.task.validation
    report = build_report(run, read_chunks(run.task, name, source, limit), f"{source}, split {name}")
    for prefix, other in run.task.also if split is None else ():
        figures = run.evaluate(other, data, limit)
        report["metrics"] |= {f"{prefix}_{figure}": value for figure, value in figures.items()}
    return report


def report_file(run: LoadedRun, path: str, **columns: Any) -> dict[str, Any]:
    """Return the report on a labelled file, a folder of files, or standard input ("-"); see `LoadedRun.read_chunks`."""
    return build_report(run, run.read_chunks(path, labelled=True, **columns), path)


def build_report(run: LoadedRun, chunks: Iterable[Split], data: str) -> dict[str, Any]:
    """Return the report on labelled examples, which are read as a stream.

    Args:
        run: The run.
        chunks: The examples.
        data: A description of them.

    Returns:
        What report.json holds: "task", "method", "model", "data", "minipeft" (its version), "date", "examples",
        "metrics", and "mistakes", the MISTAKES that are the most confident (for regression those with the largest
        errors), the first of equals first. For classes also "classes", "averages", "confusion_matrix", "confusions" and
        "calibration"; for multi-label the same without the confusions, with "threshold"; for regression "errors".
    """
    task = run.task
    logits: list[Tensor] = []
    labels: list[Any] = []
    mistakes: list[tuple[float, int, dict[str, Any]]] = []
    for chunk in show_progress(chunks, "evaluating"):
        of_chunk = run.predict_logits(chunk.texts, chunk.pairs)
        for mistake in islice(task.problem.mistakes(of_chunk, chunk.labels, chunk.texts), MISTAKES):
            example = {
                "index": len(labels) + mistake.row,
                "text": chunk.texts[mistake.row],
                **({} if chunk.pairs is None else {"pair": chunk.pairs[mistake.row]}),
                **mistake.fields,
            }
            mistakes.append((mistake.severity, -len(labels) - mistake.row, example))
        mistakes = heapq.nlargest(MISTAKES, mistakes, key=lambda mistake: mistake[:2])
        logits.append(of_chunk)
        labels += chunk.labels
    if not labels:
        raise MinipeftError(f"{data}: no row to evaluate on. Add labelled rows.")
    everything = torch.cat(logits)
    return {
        "task": task.name,
        "method": run.settings.get("method"),
        "model": run.settings["model"],
        "data": public_address(data),
        "minipeft": __version__,
        "date": date.today().isoformat(),
        "examples": len(labels),
        "metrics": task.problem.score(everything, labels, task.metrics),
        **task.problem.report(everything, labels),
        "mistakes": [example for _, _, example in mistakes],
    }
