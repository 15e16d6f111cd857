"""Metrics of predicted classes and of decisions on labels, as scikit-learn computes them."""

import math

import numpy as np

from minipeft.problems.metrics import Array


def f1(predictions: Array, labels: Array) -> float:
    """Harmonic mean of precision and recall of class 1; 0 where neither exists."""
    return micro_f1(predictions == 1, labels == 1)


def micro_f1(predictions: Array, labels: Array) -> float:
    """F1 over the decisions on all labels together; both arrays are bool."""
    return float(f1_of_counts((predictions & labels).sum(), predictions.sum(), labels.sum()))


def macro_f1(predictions: Array, labels: Array) -> float:
    """The mean of the F1 of each class that occurs on either side, or of each label of multi-label data."""
    return float(np.mean(f1_of_counts(*counts_by_label(predictions, labels))))


def precision(predictions: Array, labels: Array) -> float:
    """The fraction of the predicted examples that are positive; both arrays are bool, 0 where none is predicted."""
    return float((predictions & labels).sum() / max(1, predictions.sum()))


def recall(predictions: Array, labels: Array) -> float:
    """The fraction of the positive examples that are predicted; both arrays are bool, 0 where there are none."""
    return precision(labels, predictions)


def balanced_accuracy(predictions: Array, labels: Array) -> float:
    """The mean of the recall of each class that occurs in the labels."""
    true, _, actual = counts_by_label(predictions, labels)
    return float(np.mean(true[actual > 0] / actual[actual > 0]))


def matthews_correlation(predictions: Array, labels: Array) -> float:
    """Correlation of predictions and labels (Matthews 1975; Gorodkin 2004 for K classes); 0 where one is constant."""
    true, predicted, actual = (counts.astype(np.float64) for counts in counts_by_label(predictions, labels))
    covariance, *variances = (
        len(labels) * same - one @ other
        for same, one, other in (
            (true.sum(), predicted, actual),
            (len(labels), predicted, predicted),
            (len(labels), actual, actual),
        )
    )
    norm = math.sqrt(variances[0]) * math.sqrt(variances[1])
    return float(covariance / norm) if norm else 0.0


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
