"""The interface of a kind of label, and what the kinds have in common."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minipeft.data.tables.table import Table
from minipeft.errors import MinipeftError, check_choice, format_names, is_unicode, short_repr
from minipeft.problems.metrics import METRICS, Array, find_metric

LONGEST_TEXT = 1 << 21  # characters
IGNORE_INDEX = -100  # the default ignore_index of F.cross_entropy


class Found(NamedTuple):
    """What a label column holds."""

    problem: Problem
    counts: dict[str, int]  # the number of rows that have each label
    rows: int
    strata: Sequence[int] | Array | None = None  # the class of each row, as `Problem.strata` returns it
    warnings: tuple[str, ...] = ()  # what may be a mistake, each one line


class Mistake(NamedTuple):
    """A wrong prediction: the row of the logits, how wrong it is, and what the report says of it."""

    row: int
    severity: float
    fields: dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """What a label is. A subclass answers for one kind; `minipeft.problems` says what for."""

    labels: tuple[str, ...] = ()  # names in the order of their indices; empty where labels are numbers
    temperatures: tuple[float, ...] = ()  # logits are divided by them: one, one for each label, or none
    thresholds: tuple[float, ...] = ()  # of probabilities: one, one for each label, or none: see calibration.py
    auto_thresholds: bool = False  # whether evaluations during training choose the thresholds

    name: ClassVar[str]  # transformers' problem_type
    plural: ClassVar[str]  # what messages call the labels
    default_metrics: ClassVar[tuple[str, ...]]  # see `metrics`
    unbalanced_metric: ClassVar[str] = ""  # selects the best epoch where classes are weighted, or one prevails
    columns: ClassVar[tuple[str, str]] = ("text", "label")  # of a custom dataset, where no others are named
    loss_settings: ClassVar[tuple[str, ...]] = ()  # those of LossSettings that have a meaning
    ignored: ClassVar[float] = IGNORE_INDEX  # the target of a dummy sequence, which has no loss
    tags: ClassVar[tuple[str, ...]] = ()  # of the model card
    pipeline_tag: ClassVar[str] = "text-classification"
    auto_model: ClassVar[str] = "AutoModelForSequenceClassification"  # of transformers

    @classmethod
    def of_outputs(cls, names: Sequence[str]) -> Problem:
        """Return the problem of a model with these names in its config.json."""
        return cls(tuple(names))

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of a custom dataset; the first one selects the best epoch."""
        return self.default_metrics

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs of the classification head, which has as many."""
        return self.labels

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The index of each label by its name."""
        return {name: number for number, name in enumerate(self.labels)}

    def with_details(self, details: Mapping[str, Any]) -> Problem:
        """Return the problem with the settings that an adapter's details or a config.json have of it."""
        temperatures = tuple(details.get("temperatures", self.temperatures))
        return replace(self, temperatures=temperatures, thresholds=tuple(details.get("thresholds", self.thresholds)))

    def details(self) -> dict[str, Any]:
        """Return the settings that an adapter's file has of the problem."""
        return {}

    @property
    def has_thresholds(self) -> bool:
        """Whether predictions depend on a threshold of a probability."""
        return False

    def with_thresholds(self, *values: float) -> Problem:
        """Return the problem with other thresholds: one, or one for each label."""
        if not self.has_thresholds:
            raise MinipeftError("--threshold: it is for two classes and for multi-label data. Leave it out.")
        return replace(self, thresholds=values)

    def choose_thresholds(self, logits: Tensor, targets: Sequence[Any], metrics: Sequence[str]) -> tuple[Problem, str]:
        """Return the problem with the best thresholds on validation logits, and by which of the task's metrics."""
        raise NotImplementedError

    @cached_property
    def by_number(self) -> dict[Decimal | None, int]:
        """The index of each label that is a number."""
        from minipeft.problems.labels import number_of

        return {number_of(name): index for index, name in enumerate(self.labels) if number_of(name) is not None}

    def index(self, name: str) -> int | None:
        """Return the index of a label by its name, or by an equal number; None for another name."""
        if name in self.numbers:
            return self.numbers[name]
        from minipeft.problems.labels import number_of

        return self.by_number.get(number_of(name))

    # -- reading --

    @classmethod
    def find(cls, table: Table, column: str, label_type: str, settings: Mapping[str, Any]) -> Found:
        """Read the label column of a training file once; `settings` are those of the kind's row in `PROBLEMS`."""
        raise NotImplementedError

    def read(self, value: Any, place: str) -> Any:
        """Return the target of a row's label; `place` is for the error message."""
        raise NotImplementedError

    def read_text(self, value: Any, column: str, place: str) -> Any:
        """Return a row's text."""
        if not isinstance(value, str):
            what = "null" if value is None else short_repr(value)
            words = " Lists of words are for --label-type tokens." if isinstance(value, (list, tuple)) else ""
            raise MinipeftError(f"{place}: {column} is {what}, not a text.{words} Fix or remove the row.")
        if not is_unicode(value):
            raise MinipeftError(
                f"{place}: {column} is {short_repr(value)}, not valid Unicode (half a character); fix or remove the row"
            )
        if len(value) > LONGEST_TEXT:
            raise MinipeftError(
                f"{place}: {column} has {len(value):,} characters, more than {LONGEST_TEXT:,}; shorten the text"
            )
        return value

    def check_row(self, text: Any, target: Any, place: str) -> None:
        """Raise where a row's text and its target do not fit together."""

    def store(self, targets: Iterable[Any] = ()) -> Any:
        """Return targets as a sequence that needs little memory and can be extended."""
        return array("q", targets)

    def strata(self, targets: Sequence[Any]) -> Sequence[int] | None:
        """Return the class of each target, for draws that take a fraction of each class; None to draw from all rows."""
        return None

    def count(self, targets: Sequence[Any]) -> Counter[int]:
        """Return how many targets have each label."""
        return Counter(targets)

    def describe(self, targets: Sequence[Any]) -> str:
        """Return the labels of training rows, the most frequent first."""
        return format_names([f"{self.labels[index]} {n:,}" for index, n in self.count(targets).most_common()])

    # -- training --

    def as_packed(self, targets: Sequence[Any]) -> Sequence[Any]:
        """Return what `read` returned in the form that `minipeft.pack` takes."""
        return targets

    @staticmethod
    def targets(labels: Sequence[Any], lengths: Sequence[int], num_labels: int) -> Tensor:
        """Return labels, one per sequence of `lengths` tokens, as the loss takes them: (num_sequences,), int64."""
        for number, label in enumerate(labels):
            if label not in range(num_labels):
                raise MinipeftError(
                    f"label {label!r} of sequence {number} is outside the {num_labels} classes 0 to {num_labels - 1}"
                )
        return torch.tensor([int(label) for label in labels], dtype=torch.int64)

    @classmethod
    def pad(cls, targets: Tensor, dummies: Sequence[int]) -> Tensor:
        """Append the targets of dummy sequences with so many tokens each."""
        return torch.cat([targets, targets.new_full((len(dummies), *targets.shape[1:]), cls.ignored)])

    def losses(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
        """Return the loss of each sequence, (num_sequences,), 0 for a dummy sequence.

        `logits` are (num_sequences, num_labels), and the `weights` of the classes (num_labels,), both float32.
        """
        raise NotImplementedError

    def total_weight(self, targets: Sequence[Any], class_weights: Sequence[float] = ()) -> float:
        """Return what the sum of the losses of examples is divided by: their number."""
        return len(targets)

    def balanced_weights(self, targets: Sequence[Any]) -> tuple[float, ...]:
        """Return the class weights with which every class has the same part in the loss of these training examples."""
        raise NotImplementedError

    def baseline(self, targets: Sequence[Any]) -> tuple[float, float | None]:
        """Return the loss and the accuracy of the best constant prediction; None where it has no accuracy."""
        raise NotImplementedError

    def describe_baseline(self, targets: Sequence[Any]) -> str:
        """Return that accuracy as text; "" where there is none."""
        _, accuracy = self.baseline(targets)
        return "" if accuracy is None else f"the majority class alone has accuracy {accuracy:.4f}"

    def initial_bias(self, targets: Sequence[Any], weights: Array | None = None) -> float:
        """Return the bias that the outputs of a new head start with; `weights` are those of the rows in the loss."""
        return 0.0

    # -- evaluation --

    def figures(self) -> dict[str, Any]:
        """Return the settings that an evaluation records next to the metrics."""
        return {}

    def score(self, logits: Tensor, targets: Sequence[Any], metrics: Sequence[str] = ()) -> dict[str, float]:
        """Return eval_loss, the mean over the examples, and metrics by their name in METRICS."""
        expected = self.targets(self.as_packed(targets), (), logits.shape[1])
        values = {"eval_loss": self.losses(logits, expected).sum().item() / self.total_weight(targets)}
        for name in metrics:
            metric, label = find_metric(name)
            assert metric is not None
            sides = (self.probabilities if metric.of_probabilities else self.decide)(logits), self.actual(expected)
            if metric.of_class:
                sides = self.of_class(sides[0], self.numbers[label]), self.of_class(sides[1], self.numbers[label])
            values[name] = metric.function(*sides)
        return values

    def of_class(self, predictions: Array, number: int) -> Array:
        """Return for which examples a class is among the predictions (or labels), in the form that metrics take."""
        return predictions[:, number] if predictions.ndim == 2 else predictions == number

    def check_metric(self, name: str) -> None:
        """Raise unless --select-by names a metric of these labels."""
        metric, label = find_metric(name)
        if name == "f1" and len(self.labels) != 2:
            raise MinipeftError("--select-by f1 is for two classes. Choose macro_f1, or f1:CLASS with a class.")
        offered = [key + "CLASS" * row.of_class for key, row in METRICS.items() if self.name in row.problems]
        if metric is None or self.name not in metric.problems:
            check_choice("--select-by", name, ["eval_loss", *offered])
        if metric is not None and metric.of_class and self.labels:
            check_choice(f"class of --select-by {name.partition(':')[0]}:CLASS", label, self.labels)

    def decide(self, logits: Tensor) -> Array:
        """Return the predictions in the form that metrics take: the most probable class of each example."""
        return logits.argmax(1).numpy()

    def actual(self, expected: Tensor) -> Array:
        """Return `targets` in the form that metrics take."""
        return expected.numpy()

    def describe_constant(self, logits: Tensor) -> str:
        """Return what every prediction is, or "" where they differ."""
        return ""

    # -- prediction --

    def probabilities(self, logits: Tensor) -> Array:
        """Return the probability of each label, (num_examples, num_labels), float64."""
        return self.scaled(logits).softmax(1).numpy()

    def scaled(self, logits: Tensor) -> Tensor:
        """Return the logits divided by their temperatures, float64."""
        return logits.double() / torch.tensor(self.temperatures or 1.0, dtype=torch.float64)

    def calibrate(self, logits: Tensor, targets: Sequence[Any]) -> Problem:
        """Return the problem with the temperatures that fit validation logits."""
        raise MinipeftError(f"--calibrate: the labels are {self.plural}, which have no probability each. Leave it out.")

    def inputs(self, name: str, texts: Iterable[Any]) -> list[Any]:
        """Return texts to predict as a list; `name` is for the error message."""
        found = list(texts)
        for place, text in enumerate(found):
            if not isinstance(text, str):
                raise MinipeftError(f"{name}[{place}] is {short_repr(text)}, not a text. Pass a list of texts.")
        return found

    def predictions(self, logits: Tensor, names: Sequence[str], inputs: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return what `predict` does for each text in `inputs`, with six digits; `names` are the model's outputs."""
        raise NotImplementedError

    def report(self, logits: Tensor, targets: Sequence[Any]) -> dict[str, Any]:
        """Return the figures of `evaluate --report` that depend on the kind."""
        raise NotImplementedError

    def mistakes(self, logits: Tensor, targets: Sequence[Any], inputs: Any = ()) -> Iterator[Mistake]:
        """Yield the wrong predictions for `inputs`, the most severe first."""
        raise NotImplementedError


def most_severe(severity: Array) -> list[int]:
    """Return the rows that are wrong, the most severe first, and the first of equals first."""
    return [row for row in np.argsort(-severity, kind="stable").tolist() if severity[row] > 0]
