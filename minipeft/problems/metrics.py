"""The registry of metrics, as scikit-learn and scipy compute them: one function and one row each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


def accuracy(predictions: Array, labels: Array) -> float:
    """The fraction of correct predictions."""
    return float(np.mean(predictions == labels))


def f1(predictions: Array, labels: Array) -> float:
    """Harmonic mean of precision and recall of class 1; 0 where neither exists."""
    return micro_f1(predictions == 1, labels == 1)


def micro_f1(predictions: Array, labels: Array) -> float:
    """F1 over the decisions on all labels together; both arrays are bool."""
    return float(f1_of_counts((predictions & labels).sum(), predictions.sum(), labels.sum()))


def macro_f1(predictions: Array, labels: Array) -> float:
    """The mean of the F1 of each class that occurs on either side, or of each label of multi-label data."""
    return float(np.mean(f1_of_counts(*counts_by_label(predictions, labels))))


def average_precision(probabilities: Array, labels: Array) -> float:
    """The mean over the labels of Σ (Rₙ - Rₙ₋₁) Pₙ over the thresholds n; 0 for a label that no example has.

    R and P are recall and precision when the examples with at least the n-th highest probability are predicted.
    """
    values = []
    for scores, actual in zip(probabilities.T, labels.T, strict=True):
        true, predicted = counts_by_threshold(scores, actual)[1:]
        recall = true / max(1, actual.sum())
        values.append(float(np.sum(np.diff(recall, prepend=0.0) * true / predicted)))
    return float(np.mean(values))


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


def f1_of_counts(true: Array, predicted: Array, actual: Array) -> Array:
    """Return F1 from the numbers of true positives, predictions and labels; 0 where there are none."""
    total = predicted + actual
    return np.divide(2 * true, total, out=np.zeros(np.shape(total)), where=total > 0)


def counts_by_label(predictions: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Return the numbers of true positives, predictions and labels of each label.

    Args:
        predictions, labels: (num_examples, num_labels), bool; or (num_examples,) class indices, of which only those
            that occur are counted.
    """
    if labels.ndim == 2:
        return (predictions & labels).sum(0), predictions.sum(0), labels.sum(0)
    size = int(max(predictions.max(), labels.max())) + 1
    columns = predictions[predictions == labels], predictions, labels
    counts = np.stack([np.bincount(column, minlength=size) for column in columns])
    true, predicted, actual = counts[:, counts[1:].any(0)]
    return true, predicted, actual


def counts_by_threshold(scores: Array, actual: Array) -> tuple[Array, Array, Array]:
    """Return the distinct scores, descending, and how many examples that high are positive, and how many there are."""
    order = np.argsort(-scores, kind="stable")
    scores, actual = scores[order], actual[order]
    ends = np.flatnonzero(np.diff(scores, append=-np.inf))  # the last example of each distinct score
    return scores[ends], np.cumsum(actual)[ends], ends + 1


class Metric(NamedTuple):
    """A metric: its function of (predictions, labels), and the kinds of labels that it fits.

    Attributes:
        function: Takes two arrays of the form that the problem's `decide` and `actual` return.
        problems: Names in PROBLEMS.
        of_probabilities: Whether it takes probabilities in place of predictions.
    """

    function: Callable[[Array, Array], float]
    problems: tuple[str, ...]
    of_probabilities: bool = False


SINGLE, MULTI, NUMBERS = ("single_label_classification",), ("multi_label_classification",), ("regression",)
METRICS = {
    "accuracy": Metric(accuracy, SINGLE),
    "f1": Metric(f1, SINGLE),
    "micro_f1": Metric(micro_f1, MULTI),
    "macro_f1": Metric(macro_f1, SINGLE + MULTI),
    "average_precision": Metric(average_precision, MULTI, of_probabilities=True),
    "matthews_correlation": Metric(matthews_correlation, SINGLE),
    "pearson": Metric(pearson, NUMBERS),
    "spearman": Metric(spearman, NUMBERS),
}
