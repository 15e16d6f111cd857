"""Metrics of multi-label predictions: F1 over all decisions and by label, average precision; the best threshold."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def f1_of_counts(true: Array, predicted: Array, actual: Array) -> Array:
    """Return F1 from the numbers of true positives, predictions and labels; 0 where there are none."""
    total = predicted + actual
    return np.divide(2 * true, total, out=np.zeros(np.shape(total)), where=total > 0)


def micro_f1(predictions: Array, labels: Array) -> float:
    """F1 over the decisions on all labels together; both arrays are bool, (examples, num_labels)."""
    return float(f1_of_counts((predictions & labels).sum(), predictions.sum(), labels.sum()))


def macro_f1(predictions: Array, labels: Array) -> float:
    """The mean over the labels of the F1 of each; 0 for a label that occurs on neither side."""
    return float(f1_of_counts((predictions & labels).sum(0), predictions.sum(0), labels.sum(0)).mean())


def average_precision(probabilities: Array, labels: Array) -> float:
    """The mean over the labels of Σ (Rₙ - Rₙ₋₁) Pₙ over the thresholds n; 0 for a label that no example has.

    R and P are recall and precision when the examples with at least the n-th highest probability are predicted.
    """
    values = []
    for scores, actual in zip(probabilities.T, labels.T, strict=True):
        true, predicted = _counts_by_threshold(scores, actual)[1:]
        recall = true / max(1, actual.sum())
        values.append(float(np.sum(np.diff(recall, prepend=0.0) * true / predicted)))
    return float(np.mean(values))


def best_threshold(probabilities: Array, labels: Array) -> float:
    """Return the threshold with the highest micro F1: halfway between two neighbouring probabilities."""
    thresholds, true, predicted = _counts_by_threshold(probabilities.ravel(), labels.ravel())
    best = int(np.argmax(f1_of_counts(true, predicted, np.full(len(true), labels.sum()))))
    below = thresholds[best + 1] if best + 1 < len(thresholds) else 0.0
    return float((thresholds[best] + below) / 2)


def _counts_by_threshold(scores: Array, actual: Array) -> tuple[Array, Array, Array]:
    """Return the distinct scores, descending, and how many examples that high are positive, and how many there are."""
    order = np.argsort(-scores, kind="stable")
    scores, actual = scores[order], actual[order]
    ends = np.flatnonzero(np.diff(scores, append=-np.inf))  # the last example of each distinct score
    return scores[ends], np.cumsum(actual)[ends], ends + 1
