"""The registry of metrics, as scikit-learn and scipy compute them: one function and one row each.

The accuracy is here. The other metrics of predicted classes are in class_metrics.py, those of numbers and probabilities
in numeric_metrics.py.
"""

from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any, NamedTuple, cast

import numpy as np

Array = np.ndarray[Any, Any]


def accuracy(predictions: Array, labels: Array) -> float:
    """The fraction of correct predictions."""
    return float(np.mean(predictions == labels))


class Metric(NamedTuple):
    """A metric: its function of (predictions, labels), and the kinds of labels that it fits.

    Attributes:
        place: Where its function is, which takes two arrays as the problem's `decide` and `actual` return them.
        problems: Names in PROBLEMS.
        of_probabilities: Whether it takes probabilities in place of predictions.
        of_class: Whether it is of one class, which its name ends in: "recall:spam".
        largest_is_best: Whether a larger value is better.
    """

    place: str
    problems: tuple[str, ...]
    of_probabilities: bool = False
    of_class: bool = False
    largest_is_best: bool = True

    @property
    def function(self) -> Callable[[Array, Array], float]:
        return cast("Callable[[Array, Array], float]", resolve_name(f"minipeft.problems.{self.place}"))


SINGLE, MULTI, NUMBERS = ("single_label_classification",), ("multi_label_classification",), ("regression",)
TOKENS = ("token_classification",)
METRICS = {
    "accuracy": Metric("metrics:accuracy", SINGLE + TOKENS),
    "f1": Metric("class_metrics:f1", SINGLE + TOKENS),
    "precision": Metric("class_metrics:precision", TOKENS),
    "recall": Metric("class_metrics:recall", TOKENS),
    "micro_f1": Metric("class_metrics:micro_f1", MULTI),
    "macro_f1": Metric("class_metrics:macro_f1", SINGLE + MULTI + TOKENS),
    "average_precision": Metric("numeric_metrics:average_precision", MULTI, of_probabilities=True),
    "matthews_correlation": Metric("class_metrics:matthews_correlation", SINGLE),
    "balanced_accuracy": Metric("class_metrics:balanced_accuracy", SINGLE),
    "auroc": Metric("numeric_metrics:auroc", SINGLE + MULTI, of_probabilities=True),
    "f1:": Metric("class_metrics:micro_f1", SINGLE + MULTI, of_class=True),
    "precision:": Metric("class_metrics:precision", SINGLE + MULTI, of_class=True),
    "recall:": Metric("class_metrics:recall", SINGLE + MULTI, of_class=True),
    "pearson": Metric("numeric_metrics:pearson", NUMBERS),
    "spearman": Metric("numeric_metrics:spearman", NUMBERS),
    "mae": Metric("numeric_metrics:mean_absolute_error", NUMBERS, largest_is_best=False),
    "rmse": Metric("numeric_metrics:root_mean_squared_error", NUMBERS, largest_is_best=False),
}


def find_metric(name: str) -> tuple[Metric | None, str]:
    """Return the metric with this name, None if there is none, and the class that the name ends in, or ""."""
    kind, colon, label = name.partition(":")
    return METRICS.get(kind + colon), label
