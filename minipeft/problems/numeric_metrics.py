"""Metrics of numbers and of probabilities, as scikit-learn and scipy compute them."""

import math

import numpy as np

from minipeft.problems.metrics import Array


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


def auroc(probabilities: Array, labels: Array) -> float:
    """The area under the ROC curve: the probability that a positive example is ranked above a negative one.

    For more than two classes and for multi-label data the mean over the classes, each against the rest. A class that
    none or all of the examples have is left out; 0.5 where no class is left.
    """
    actual = labels if labels.ndim == 2 else labels[:, None] == np.arange(probabilities.shape[1])
    values = []
    for scores, positive in zip(probabilities.T, actual.T, strict=True):
        if 0 < (count := int(positive.sum())) < len(positive):
            below = _ranks(scores)[positive].sum() - count * (count + 1) / 2
            values.append(below / (count * (len(positive) - count)))
    return float(np.mean(values)) if values else 0.5


def mean_absolute_error(predictions: Array, labels: Array) -> float:
    """The mean of the absolute differences."""
    return float(np.abs(predictions.astype(np.float64) - labels).mean())


def root_mean_squared_error(predictions: Array, labels: Array) -> float:
    """The square root of the mean of the squared differences."""
    return math.sqrt(np.square(predictions.astype(np.float64) - labels).mean())


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


def counts_by_threshold(scores: Array, actual: Array) -> tuple[Array, Array, Array]:
    """Return the distinct scores, descending, and how many examples that high are positive, and how many there are."""
    order = np.argsort(-scores, kind="stable")
    scores, actual = scores[order], actual[order]
    ends = np.flatnonzero(np.diff(scores, append=-np.inf))  # the last example of each distinct score
    return scores[ends], np.cumsum(actual)[ends], ends + 1
