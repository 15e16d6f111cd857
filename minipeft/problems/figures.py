"""The figures of a report: precision, recall and F1 by label, the confusion matrix, and the calibration."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minipeft.problems.metrics import Array

BINS = 15  # of confidence, as in Guo et al. 2017
LARGEST_MATRIX = 200  # classes; of more, only the most frequent confusions are reported
CONFUSIONS = 20


def report_classes(labels: Array, predicted: Array, confidence: Array, names: Sequence[str]) -> dict[str, Any]:
    """Return the figures of single-label predictions.

    Args:
        labels: (num_examples,), class indices; so is `predicted`.
        confidence: (num_examples,), the probability of the prediction.
        names: Of the classes.
    """
    matrix = confusion_matrix(labels, predicted, len(names)) if len(names) <= LARGEST_MATRIX else None
    classes = class_figures(labels, predicted, names)
    return {
        "classes": classes,
        "averages": average_figures(classes),
        "confusion_matrix": None if matrix is None else {"labels": list(names), "rows": matrix.tolist()},
        "confusions": frequent_confusions(labels, predicted, names),
        "calibration": calibration(confidence, labels == predicted),
    }


def report_label_sets(labels: Array, predicted: Array, probabilities: Array, names: Sequence[str]) -> dict[str, Any]:
    """Return the figures of multi-label predictions; all arrays are (num_examples, num_labels), the first two bool."""
    counts = [(predicted & labels).sum(0), predicted.sum(0), labels.sum(0)]
    classes = [label_figures(name, *of_label) for name, *of_label in zip(names, *counts, strict=True)]
    micro = label_figures("micro", *(int(count.sum()) for count in counts))
    return {
        "classes": classes,
        "averages": {
            "micro": {name: micro[name] for name in ("precision", "recall", "f1", "support")},
            **average_figures(classes),
        },
        "calibration": calibration(probabilities.ravel(), labels.ravel()),
    }


def frequent_confusions(labels: Array, predicted: Array, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the most frequent pairs of a class and a wrong prediction."""
    wrong = labels != predicted
    pairs, counts = np.unique(np.stack([labels[wrong], predicted[wrong]]), axis=1, return_counts=True)
    return [
        {"label": names[pairs[0, place]], "prediction": names[pairs[1, place]], "count": int(counts[place])}
        for place in np.argsort(-counts, kind="stable")[:CONFUSIONS]
    ]


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
    """Return the means of precision, recall and F1 over the classes that occur: plain, and weighted by support.

    Their support is the sum over the classes, as in scikit-learn's classification_report.
    """
    occurring = [row for row in classes if row["support"] or row["predicted"]]
    support = [row["support"] for row in occurring]
    weights = {"macro": None, "weighted": support if any(support) else None}
    return {
        kind: {
            name: float(np.average([row[name] for row in occurring] or [0.0], weights=weight))
            for name in ("precision", "recall", "f1")
        }
        | {"support": sum(support)}
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
