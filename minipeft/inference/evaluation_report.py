"""A detailed evaluation: per-class figures, confusion matrix, calibration and the most confident mistakes."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minipeft.data.tasks.splits import read_chunks
from minipeft.data.tasks.task import Split, Task
from minipeft.errors import MinipeftError
from minipeft.inference.predict import LoadedRun
from minipeft.problems.multi_label import multi_hot
from minipeft.training.evaluate import score

MISTAKES = 20
BINS = 15  # of confidence, as in Guo et al. 2017
LARGEST_MATRIX = 200  # classes; of more, only the most frequent confusions are reported

Array = np.ndarray[Any, Any]


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


def report_file(
    run: LoadedRun,
    path: str,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    file_format: str | None = None,
) -> dict[str, Any]:
    """Return the report on a labelled file, a folder of files, or standard input ("-"); see `LoadedRun.read_chunks`."""
    label_column = label_column or run.task.label_column
    return build_report(run, run.read_chunks(path, text_column, pair_column, label_column, file_format), path)


def build_report(run: LoadedRun, chunks: Iterable[Split], data: str) -> dict[str, Any]:
    """Return the report on labelled examples, which are read as a stream.

    Args:
        run: The run.
        chunks: The examples.
        data: A description of them.

    Returns:
        What report.json holds: "task", "data", "examples", "metrics", and "mistakes", the MISTAKES that are the most
        confident (for regression those with the largest errors), the first of equals first. For classes also "classes",
        "averages", "confusion_matrix", "confusions" and "calibration"; for multi-label the same without the confusions,
        with "threshold"; for regression "errors".
    """
    task = run.task
    logits: list[Tensor] = []
    labels: list[Any] = []
    mistakes: list[tuple[float, int, dict[str, Any]]] = []
    for chunk in chunks:
        of_chunk = run.predict_logits(chunk.texts, chunk.pairs)
        predicted, severity = _judge(of_chunk, chunk)
        for place in np.argsort(-severity, kind="stable")[:MISTAKES].tolist():
            if severity[place] > 0:
                example = {
                    "index": len(labels) + place,
                    "text": chunk.texts[place],
                    **({} if chunk.pairs is None else {"pair": chunk.pairs[place]}),
                    "label": _name(task, chunk.labels[place]),
                    "prediction": _name(task, predicted[place]),
                    **({} if task.is_regression else {"confidence": float(severity[place])}),
                }
                mistakes.append((float(severity[place]), -len(labels) - place, example))
        mistakes = heapq.nlargest(MISTAKES, mistakes, key=lambda mistake: mistake[:2])
        logits.append(of_chunk)
        labels += chunk.labels
    if not labels:
        raise MinipeftError(f"{data}: no row to evaluate on. Add labelled rows.")
    everything = torch.cat(logits)
    figures = _errors if task.is_regression else _label_figures if task.multilabel else _class_figures
    return {
        "task": task.name,
        "data": data,
        "examples": len(labels),
        "metrics": score(everything, labels, task),
        **figures(everything, labels, task),
        "mistakes": [example for _, _, example in mistakes],
    }


def _judge(logits: Tensor, chunk: Split) -> tuple[Sequence[Any], Array]:
    """Return the predictions, and how wrong each is: 0 if it is right.

    It is the probability of a wrong class, the largest one of the wrong decisions for multi-label, and the absolute
    error for regression.
    """
    if chunk.task.multilabel:
        probabilities, predicted, actual = _decide(logits, chunk.labels, chunk.task)
        wrong = np.where(predicted == actual, 0.0, np.abs(probabilities - actual))
        return [tuple(np.flatnonzero(row).tolist()) for row in predicted], wrong.max(1)
    labels = np.asarray(chunk.labels)
    if chunk.task.is_regression:
        scores = logits[:, 0].double().numpy()
        return scores.tolist(), np.abs(scores - labels)
    predicted, confidence = _predict(logits)
    return predicted.tolist(), np.where(predicted == labels, 0.0, confidence)


def _name(task: Task, label: Any) -> Any:
    """Return the name of a class, the names of several, or a score as it is."""
    if task.multilabel:
        return [task.labels[number] for number in label]
    return label if task.is_regression else task.labels[int(label)]


def _decide(logits: Tensor, labels: Sequence[Any], task: Task) -> tuple[Array, Array, Array]:
    """Return the probability of each label, whether it is predicted, and whether the text has it."""
    probabilities = logits.double().sigmoid().numpy()
    actual = np.asarray(multi_hot(labels, task.num_labels), dtype=bool).reshape(probabilities.shape)
    return probabilities, probabilities >= (task.threshold or 0.5), actual


def _predict(logits: Tensor) -> tuple[Array, Array]:
    """Return the class of each example and its probability."""
    best = logits.argmax(1)
    return best.numpy(), logits.double().softmax(1).gather(1, best[:, None])[:, 0].numpy()


def _errors(logits: Tensor, labels: Sequence[Any], task: Task) -> dict[str, Any]:
    """Return the errors of regression."""
    errors = logits[:, 0].double().numpy() - np.asarray(labels, dtype=np.float64)
    return {
        "errors": {
            "mean_absolute_error": float(np.abs(errors).mean()),
            "root_mean_squared_error": float(np.sqrt((errors**2).mean())),
            "mean_error": float(errors.mean()),
        }
    }


def _label_figures(logits: Tensor, labels: Sequence[Any], task: Task) -> dict[str, Any]:
    """Return the figures of a multi-label task."""
    probabilities, predicted, actual = _decide(logits, labels, task)
    counts = [(predicted & actual).sum(0), predicted.sum(0), actual.sum(0)]
    classes = [label_figures(name, *of_label) for name, *of_label in zip(task.labels, *counts, strict=True)]
    micro = label_figures("micro", *(int(count.sum()) for count in counts))
    averages = {"micro": {name: micro[name] for name in ("precision", "recall", "f1")}, **average_figures(classes)}
    return {
        "threshold": task.threshold or 0.5,
        "classes": classes,
        "averages": averages,
        "calibration": calibration(probabilities.ravel(), actual.ravel()),
    }


def _class_figures(logits: Tensor, labels: Sequence[Any], task: Task) -> dict[str, Any]:
    """Return the figures of classes."""
    names, expected = task.labels, np.asarray(labels)
    predicted, confidence = _predict(logits)
    matrix = confusion_matrix(expected, predicted, len(names)) if len(names) <= LARGEST_MATRIX else None
    wrong = expected != predicted
    pairs, counts = np.unique(np.stack([expected[wrong], predicted[wrong]]), axis=1, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:MISTAKES]
    classes = class_figures(expected, predicted, names)
    return {
        "classes": classes,
        "averages": average_figures(classes),
        "confusion_matrix": None if matrix is None else {"labels": list(names), "rows": matrix.tolist()},
        "confusions": [
            {"label": names[pairs[0, place]], "prediction": names[pairs[1, place]], "count": int(counts[place])}
            for place in most
        ],
        "calibration": calibration(confidence, expected == predicted),
    }


def confusion_matrix(labels: Array, predicted: Array, size: int) -> Array:
    """Return the number of examples by class (row) and prediction (column), (size, size)."""
    return np.bincount(labels * size + predicted, minlength=size * size).reshape(size, size)


def class_figures(labels: Array, predicted: Array, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and support of each class; 0 where a figure has no examples."""
    true = np.bincount(labels[labels == predicted], minlength=len(names))
    support, chosen = (np.bincount(values, minlength=len(names)) for values in (labels, predicted))
    return [label_figures(name, *counts) for name, *counts in zip(names, true, chosen, support, strict=True)]


def label_figures(name: str, true: int, chosen: int, support: int) -> dict[str, Any]:
    """Return precision, recall, F1 and support from counts: correct predictions, all predictions, all examples."""
    return {
        "label": name,
        "precision": float(true / chosen) if chosen else 0.0,
        "recall": float(true / support) if support else 0.0,
        "f1": float(2 * true / (chosen + support)) if chosen + support else 0.0,
        "support": int(support),
        "predicted": int(chosen),
    }


def average_figures(classes: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the means of precision, recall and F1 over the classes that occur: plain, and weighted by support."""
    occurring = [row for row in classes if row["support"] or row["predicted"]]
    support = [row["support"] for row in occurring]
    weights = {"macro": None, "weighted": support if any(support) else None}
    return {
        kind: {
            name: float(np.average([row[name] for row in occurring] or [0.0], weights=weight))
            for name in ("precision", "recall", "f1")
        }
        for kind, weight in weights.items()
    }


def calibration(confidence: Array, correct: Array) -> dict[str, Any]:
    """Return the expected calibration error and its bins of equal width.

    ECE = sum over the bins of (examples in the bin / examples) * |accuracy - mean confidence|

    Args:
        confidence: (num_examples,), the probability of the predicted class, or of a label.
        correct: (num_examples,), whether the prediction is right, or the text has the label.

    Reference: Guo et al. 2017, On Calibration of Modern Neural Networks, section 2.
    """
    edges = np.linspace(0, 1, BINS + 1)
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)  # low < confidence <= high
    bins: list[dict[str, Any]] = []
    error = 0.0
    for place in range(BINS):
        inside = places == place
        count = int(inside.sum())
        accuracy, mean = (float(values[inside].mean()) if count else 0.0 for values in (correct, confidence))
        error += count / len(confidence) * abs(accuracy - mean)
        figures = {"accuracy": accuracy if count else None, "confidence": mean if count else None}
        bins.append({"from": float(edges[place]), "to": float(edges[place + 1]), "examples": count, **figures})
    return {"expected_calibration_error": error, "bins": bins}
