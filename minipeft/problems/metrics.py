"""GLUE's metrics, as scikit-learn and scipy compute them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def accuracy(predictions: Array, labels: Array) -> float:
    """The fraction of correct predictions."""
    return float(np.mean(predictions == labels))


def f1(predictions: Array, labels: Array) -> float:
    """Harmonic mean of precision and recall of class 1; 0 where neither exists."""
    true = int(np.sum((predictions == 1) & (labels == 1)))
    total = int(np.sum(predictions == 1) + np.sum(labels == 1))
    return 2 * true / total if total else 0.0


def macro_f1(predictions: Array, labels: Array) -> float:
    """The mean over the classes that occur, on either side, of the F1 of each."""
    size = int(max(predictions.max(), labels.max())) + 1
    true = np.bincount(predictions[predictions == labels], minlength=size)
    total = np.bincount(predictions, minlength=size) + np.bincount(labels, minlength=size)
    return float(np.mean(2 * true[total > 0] / total[total > 0]))


def matthews_correlation(predictions: Array, labels: Array) -> float:
    """Correlation of two binary variables (Matthews 1975); 0 where one of them is constant."""
    if len(np.unique(predictions)) < 2 or len(np.unique(labels)) < 2:
        return 0.0
    return pearson(predictions, labels)


def pearson(predictions: Array, labels: Array) -> float:
    """Linear correlation; 0 where one side is constant."""
    x, y = (side.astype(np.float64) - side.astype(np.float64).mean() for side in (predictions, labels))
    norm = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
    return float(x @ y) / norm if norm else 0.0


def spearman(predictions: Array, labels: Array) -> float:
    """Correlation of the ranks; ties share their mean rank."""
    return pearson(_ranks(predictions), _ranks(labels))


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse]


METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearman": spearman,
}
