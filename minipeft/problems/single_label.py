"""Single-label classification: an example has one class, and the loss is the cross-entropy."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from minipeft.data.tables.table import Table
from minipeft.errors import MinipeftError, format_names, short_repr
from minipeft.problems import problem_class
from minipeft.problems.metrics import Array, find_metric
from minipeft.problems.problem import Found, Mistake, Problem, most_severe


@dataclass(frozen=True)
class SingleLabel(Problem):
    """An example has one of K classes; its target is the index of the class."""

    name: ClassVar[str] = "single_label_classification"
    plural: ClassVar[str] = "classes"
    default_metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")
    unbalanced_metric: ClassVar[str] = "macro_f1"
    loss_settings: ClassVar[tuple[str, ...]] = ("class_weights", "label_smoothing")

    @classmethod
    def find(cls, table: Table, column: str, label_type: str, settings: Mapping[str, Any]) -> Found:
        from minipeft.problems.labels import find_labels, warn_of_lists

        counts, rows, strata, warnings = find_labels(table, column, label_type)
        if not counts:  # with "auto", of a column of numbers
            return Found(problem_class("regression")(), counts, rows)
        return Found(cls(tuple(counts)), counts, rows, strata, warnings + warn_of_lists(table.place, column, counts))

    def read(self, value: Any, place: str) -> int:
        if isinstance(value, str) and value in self.numbers:
            return self.numbers[value]
        from minipeft.problems.labels import class_name, nearest_label

        if (found := self.index(class_name(value, place))) is None:
            raise MinipeftError(
                f"{place}: label {short_repr(value)} is not one of the training file's ({format_names(self.labels)})"
                f"{nearest_label(value, self.labels)}; fix or remove the row"
            )
        return found

    def strata(self, targets: Sequence[int]) -> Sequence[int]:
        return targets

    def losses(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
        return F.cross_entropy(logits, targets, weights, reduction="none", label_smoothing=smoothing)

    def total_weight(self, targets: Sequence[int], class_weights: Sequence[float] = ()) -> float:
        """The sum of the class weights of the examples, as torch's reduction "mean" has it; their number without."""
        return sum(class_weights[target] for target in targets) if class_weights else len(targets)

    def balanced_weights(self, targets: Sequence[int]) -> tuple[float, ...]:
        """n / (K · n_c) for class c, which n_c of the n examples have, as in scikit-learn."""
        from minipeft.problems.labels import check_classes

        counts = Counter(targets)
        check_classes(counts, self.labels)
        return tuple(len(targets) / (len(self.labels) * counts[number]) for number in range(len(self.labels)))

    def baseline(self, targets: Sequence[int]) -> tuple[float, float]:
        fractions = [count / len(targets) for count in Counter(targets).values()]
        return -sum(fraction * math.log(fraction) for fraction in fractions), max(fractions)

    def calibrate(self, logits: Tensor, targets: Sequence[int]) -> Problem:
        from minipeft.problems.calibration import calibrate

        return calibrate(self, logits, targets, 1)

    @property
    def has_thresholds(self) -> bool:
        return len(self.labels) == 2

    def choose_thresholds(self, logits: Tensor, targets: Sequence[int], metrics: Sequence[str]) -> tuple[Problem, str]:
        from minipeft.problems.calibration import candidates

        found = {name: find_metric(name)[0] for name in metrics}
        by = next((name for name, metric in found.items() if metric and not metric.of_probabilities), "macro_f1")
        tried = map(self.with_thresholds, candidates(self.probabilities(logits)[:, 1]))
        return max(tried, key=lambda problem: problem.score(logits, targets, [by])[by]), by

    def decide(self, logits: Tensor) -> Array:
        """Return the most probable class of each example; with a threshold, which of two classes it chooses."""
        if not self.thresholds:
            return super().decide(logits)
        return (self.probabilities(logits)[:, 1] >= self.thresholds[0]).astype(np.int64)

    def confident(self, logits: Tensor) -> tuple[Array, Array]:
        """Return the predictions and the probability of each, (num_examples,)."""
        predicted = self.decide(logits)
        return predicted, self.probabilities(logits)[np.arange(len(predicted)), predicted]

    def describe_constant(self, logits: Tensor) -> str:
        predicted = set(self.decide(logits).tolist())
        return f"of the class {self.labels[predicted.pop()]}" if len(predicted) == 1 else ""

    def predictions(self, logits: Tensor, names: Sequence[str], inputs: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return "label", the class of `decide`, and "probabilities" by name."""
        probabilities = self.scaled(logits).softmax(1).round(decimals=6)
        return [
            {"label": names[best], "probabilities": dict(zip(names, row, strict=True))}
            for best, row in zip(self.decide(logits).tolist(), probabilities.tolist(), strict=True)
        ]

    def report(self, logits: Tensor, targets: Sequence[int]) -> dict[str, Any]:
        from minipeft.problems.figures import report_classes

        figures = report_classes(np.asarray(targets), *self.confident(logits), self.labels)
        return ({"thresholds": list(self.thresholds)} if self.thresholds else {}) | figures

    def mistakes(self, logits: Tensor, targets: Sequence[int], inputs: Any = ()) -> Iterator[Mistake]:
        """Yield the examples of which another class is predicted, by its probability."""
        predicted, confidence = self.confident(logits)
        for row in most_severe(np.where(predicted == np.asarray(targets), 0.0, confidence)):
            names = {"label": self.labels[targets[row]], "prediction": self.labels[predicted[row]]}
            yield Mistake(row, float(confidence[row]), names | {"confidence": float(confidence[row])})
