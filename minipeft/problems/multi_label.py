"""Multi-label classification: an example has a set of labels, each of which is a decision of its own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minipeft.data.tables.table import Table
from minipeft.errors import MinipeftError, format_names, short_repr
from minipeft.files import parse_json
from minipeft.problems.calibration import DEFAULT, calibrate, thresholds_for_macro_f1, thresholds_for_micro_f1
from minipeft.problems.labels import (
    check_classes,
    class_name,
    merge_numbers,
    nearest_label,
    sorted_names,
    warn_of_similar,
)
from minipeft.problems.metrics import Array
from minipeft.problems.problem import Found, Mistake, Problem, most_severe

MOST_LABELS = 10_000
BINARY = {"0", "1", "0.0", "1.0", "true", "false", "True", "False"}  # what a vector of decisions consists of


@dataclass(frozen=True)
class MultiLabel(Problem):
    """An example has any number of K labels; its target is the tuple of their indices, in ascending order.

    Attributes:
        labels: Names in the order of their indices.
        separator: The character between the labels of a text; None where they are lists.
    """

    separator: str | None = None

    name: ClassVar[str] = "multi_label_classification"
    plural: ClassVar[str] = "labels"
    default_metrics: ClassVar[tuple[str, ...]] = ("micro_f1", "macro_f1", "average_precision")
    unbalanced_metric: ClassVar[str] = "macro_f1"
    loss_settings: ClassVar[tuple[str, ...]] = ("class_weights",)
    ignored: ClassVar[float] = math.nan

    def with_details(self, details: Mapping[str, Any]) -> MultiLabel:
        threshold = details.get("threshold")  # --threshold; the thresholds that were chosen are "thresholds"
        chosen = {"thresholds": [threshold]} if isinstance(threshold, float) and threshold != DEFAULT else {}
        separator = details.get("label_separator", self.separator)
        problem = replace(self, separator=separator, auto_thresholds=threshold == "auto" or self.auto_thresholds)
        return Problem.with_details(problem, chosen | dict(details))  # type: ignore[return-value]

    def details(self) -> dict[str, Any]:
        return {"thresholds": list(self.thresholds), "label_separator": self.separator}

    @property
    def has_thresholds(self) -> bool:
        return True

    # -- reading --

    @classmethod
    def find(cls, table: Table, column: str, label_type: str, settings: Mapping[str, Any]) -> Found:
        problem = cls().with_details(settings)
        counts: Counter[str] = Counter()
        rows = 0
        for place, (value,) in table.read_labelled([column]):
            rows += 1
            counts.update(label_names(value, problem.separator, place))
            if len(counts) > MOST_LABELS:
                raise MinipeftError(
                    f"{place}: {column} has more than {MOST_LABELS:,} labels. Name another --label-column."
                )
        if rows == 0:
            raise MinipeftError(f"{table.place}: the file is empty. Add rows.")
        if set(counts) <= BINARY and len(counts) == 2 and counts.total() == 2 * rows:
            raise _vector_error(place, value)
        merged = {name: name for name in counts} if column in table.classes else merge_numbers(counts)
        if len(set(merged.values())) < 2:
            raise MinipeftError(
                f"{table.place}: {column} has {len(counts)} different labels. At least two are needed; a label that a "
                "text has or lacks is two classes."
            )
        by_name = Counter[str]()
        for name, count in counts.items():
            by_name[merged[name]] += count
        names = table.classes.get(column) or sorted_names(by_name)
        warnings = warn_of_similar(table.place, column, by_name)
        problem = replace(problem, labels=tuple(names))
        return Found(problem, {name: by_name[name] for name in names}, rows, warnings=warnings)

    def read(self, value: Any, place: str) -> tuple[int, ...]:
        names = label_names(value, self.separator, place)
        indices = set()
        for name in names:
            if (index := self.index(name)) is None:
                raise MinipeftError(
                    f"{place}: label {short_repr(name)} is not one of the training file's ({format_names(self.labels)})"
                    f"{nearest_label(name, self.labels)}. Fix or remove the row."
                )
            indices.add(index)
        return tuple(sorted(indices))

    def store(self, targets: Iterable[tuple[int, ...]] = ()) -> Any:
        return list(targets)

    def count(self, targets: Sequence[tuple[int, ...]]) -> Counter[int]:
        return Counter(chain.from_iterable(targets))

    def describe(self, targets: Sequence[tuple[int, ...]]) -> str:
        per_example = self.count(targets).total() / len(targets)
        return f"{per_example:.2f} labels per example: {super().describe(targets)}"

    # -- training --

    def as_packed(self, targets: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """Return a row of num_labels zeros and ones for each set of labels."""
        rows = [[0.0] * len(self.labels) for _ in targets]
        for row, indices in zip(rows, targets, strict=True):
            for index in indices:
                row[index] = 1.0
        return rows

    @staticmethod
    def targets(labels: Sequence[Any], lengths: Sequence[int], num_labels: int) -> Tensor:
        """Return zeros and ones, (num_sequences, num_labels), float32."""
        for number, label in enumerate(labels):
            if not isinstance(label, Sequence) or len(label) != num_labels or not set(label) <= {0, 1}:
                raise MinipeftError(
                    f"label {label!r} of sequence {number} is not a list of {num_labels} zeros and ones. "
                    "Give one for each label of the model."
                )
        return torch.tensor(labels, dtype=torch.float32).view(len(labels), num_labels)

    def losses(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
        """Return the mean over the labels of the binary cross-entropy, (num_sequences,).

        Args:
            weights: (num_labels,), of the positive terms: pos_weight of torch's BCEWithLogitsLoss.
        """
        known = targets.nan_to_num(0.0)
        # (num_sequences, num_labels)
        terms = F.binary_cross_entropy_with_logits(logits, known, pos_weight=weights, reduction="none")
        return torch.where(targets.isnan(), 0.0, terms).mean(1)

    def balanced_weights(self, targets: Sequence[tuple[int, ...]]) -> tuple[float, ...]:
        """(n - n_c) / n_c for label c, which n_c of the n examples have."""
        counts = self.count(targets)
        check_classes(counts, self.labels, most=len(targets))
        return tuple((len(targets) - counts[number]) / counts[number] for number in range(len(self.labels)))

    def baseline(self, targets: Sequence[tuple[int, ...]]) -> tuple[float, None]:
        fractions = [count / len(targets) for count in self.count(targets).values() if count < len(targets)]
        entropies = (-p * math.log(p) - (1 - p) * math.log(1 - p) for p in fractions)
        return sum(entropies) / len(self.labels), None

    # -- evaluation --

    def choose_thresholds(
        self, logits: Tensor, targets: Sequence[tuple[int, ...]], metrics: Sequence[str]
    ) -> tuple[Problem, str]:
        by = next((name for name in metrics if name in self.default_metrics[:2]), "macro_f1")
        choose = thresholds_for_micro_f1 if by == "micro_f1" else thresholds_for_macro_f1
        return self.with_thresholds(*choose(self.probabilities(logits), self._multi_hot(targets))), by

    def figures(self) -> dict[str, Any]:
        return {"thresholds": list(self.thresholds)} if self.auto_thresholds else {}

    def decide(self, logits: Tensor) -> Array:
        """Return whether each label is predicted, (num_examples, num_labels), bool."""
        return self.probabilities(logits) >= np.asarray(self.thresholds or DEFAULT)

    def actual(self, expected: Tensor) -> Array:
        return expected.bool().numpy()

    def _multi_hot(self, targets: Sequence[tuple[int, ...]]) -> Array:
        return np.asarray(self.as_packed(targets), dtype=bool).reshape(len(targets), len(self.labels))

    def describe_constant(self, logits: Tensor) -> str:
        predicted = self.decide(logits)
        if not (predicted == predicted[0]).all():
            return ""
        return format_names([self.labels[index] for index in np.flatnonzero(predicted[0])]) or "no label"

    # -- prediction --

    def probabilities(self, logits: Tensor) -> Array:
        return self.scaled(logits).sigmoid().numpy()

    def calibrate(self, logits: Tensor, targets: Sequence[tuple[int, ...]]) -> Problem:
        return calibrate(self, logits, targets, len(self.labels))

    def predictions(self, logits: Tensor, names: Sequence[str], inputs: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return "labels", the names of those whose probability reaches the threshold, and "probabilities" by name."""
        rounded = self.probabilities(logits).round(6).tolist()
        return [
            {
                "labels": [name for name, chosen in zip(names, decisions, strict=True) if chosen],
                "probabilities": dict(zip(names, row, strict=True)),
            }
            for decisions, row in zip(self.decide(logits).tolist(), rounded, strict=True)
        ]

    def report(self, logits: Tensor, targets: Sequence[tuple[int, ...]]) -> dict[str, Any]:
        from minipeft.problems.figures import report_label_sets

        actual = self._multi_hot(targets)
        figures = report_label_sets(actual, self.decide(logits), self.probabilities(logits), self.labels)
        return {"thresholds": list(self.thresholds) or [DEFAULT], **figures}

    def mistakes(self, logits: Tensor, targets: Sequence[tuple[int, ...]], inputs: Any = ()) -> Iterator[Mistake]:
        """Yield the examples with a wrong decision, by the largest error of a probability in one; "wrong" names it."""
        probabilities, predicted, actual = self.probabilities(logits), self.decide(logits), self._multi_hot(targets)
        errors = np.where(predicted == actual, 0.0, np.abs(probabilities - actual))
        severity, worst = errors.max(1), errors.argmax(1)
        for row in most_severe(severity):
            sides = {"label": actual[row], "prediction": predicted[row]}
            named = {side: [self.labels[n] for n in np.flatnonzero(flags)] for side, flags in sides.items()}
            wrong = {"wrong": self.labels[worst[row]], "confidence": float(severity[row])}
            yield Mistake(row, float(severity[row]), named | wrong)


def label_names(value: Any, separator: str | None, place: str) -> list[str]:
    """Return the names of a row's labels, each once.

    Args:
        value: A list of names or numbers, its text in JSON, or names between separators; an empty text is no label.
        separator: The character between names; None where there is none.
        place: For the error message.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except ValueError:
            raise MinipeftError(f"{place}: label {short_repr(value)} is not a list in JSON. Fix the row.") from None
    elif isinstance(value, str) and separator is not None:
        value = [name for part in value.split(separator) if (name := part.strip())]
    elif value is None and separator is not None:
        value = []  # an empty field
    if value is None:
        raise MinipeftError(f"{place}: the labels are missing. Write [] where there are none.")
    if not isinstance(value, (list, tuple)):
        raise MinipeftError(
            f"{place}: label {short_repr(value)} is not a list. Pass --label-separator with the character between "
            "labels, or leave --label-type multilabel out."
        )
    names = [class_name(name, place) for name in value]
    fractions = any(isinstance(name, float) and not name.is_integer() for name in value)
    if fractions or (set(names) <= BINARY and len(set(names)) < len(names)):
        raise _vector_error(place, value)
    return list(dict.fromkeys(names))


def _vector_error(place: str, value: Any) -> MinipeftError:
    """Return the error for a vector with a number for each label, which would be read as the names 0 and 1."""
    return MinipeftError(
        f"{place}: label {short_repr(value)} is a vector. Write the names or numbers of the labels that the text has, "
        "such as [1]."
    )
