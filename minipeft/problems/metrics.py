"""The registry of metrics, as scikit-learn and scipy compute them: one function and one row each."""

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
        of_class: Whether it is of one class, which its name ends in: "recall:spam".
        largest_is_best: Whether a larger value is better.
    """

    function: Callable[[Array, Array], float]
    problems: tuple[str, ...]
    of_probabilities: bool = False
    of_class: bool = False
    largest_is_best: bool = True


SINGLE, MULTI, NUMBERS = ("single_label_classification",), ("multi_label_classification",), ("regression",)
TOKENS = ("token_classification",)
METRICS = {
    "accuracy": Metric(accuracy, SINGLE + TOKENS),
    "f1": Metric(f1, SINGLE + TOKENS),
    "precision": Metric(precision, TOKENS),
    "recall": Metric(recall, TOKENS),
    "micro_f1": Metric(micro_f1, MULTI),
    "macro_f1": Metric(macro_f1, SINGLE + MULTI + TOKENS),
    "average_precision": Metric(average_precision, MULTI, of_probabilities=True),
    "matthews_correlation": Metric(matthews_correlation, SINGLE),
    "balanced_accuracy": Metric(balanced_accuracy, SINGLE),
    "auroc": Metric(auroc, SINGLE + MULTI, of_probabilities=True),
    "f1:": Metric(micro_f1, SINGLE + MULTI, of_class=True),
    "precision:": Metric(precision, SINGLE + MULTI, of_class=True),
    "recall:": Metric(recall, SINGLE + MULTI, of_class=True),
    "pearson": Metric(pearson, NUMBERS),
    "spearman": Metric(spearman, NUMBERS),
    "mae": Metric(mean_absolute_error, NUMBERS, largest_is_best=False),
    "rmse": Metric(root_mean_squared_error, NUMBERS, largest_is_best=False),
}


def find_metric(name: str) -> tuple[Metric | None, str]:
    """Return the metric with this name, None if there is none, and the class that the name ends in, or ""."""
    kind, colon, label = name.partition(":")
    return METRICS.get(kind + colon), label
