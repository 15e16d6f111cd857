"""Regression: an example has a number, and the loss is the squared error of the head's one output."""

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from minipeft.data.tables.table import Table
from minipeft.errors import MinipeftError, short_repr
from minipeft.problems.labels import find_labels
from minipeft.problems.metrics import Array
from minipeft.problems.problem import Found, Mistake, Problem, most_severe


@dataclass(frozen=True)
class Regression(Problem):
    """An example has a number, its target."""

    name: ClassVar[str] = "regression"
    plural: ClassVar[str] = "numbers"
    default_metrics: ClassVar[tuple[str, ...]] = ("pearson", "spearman")
    ignored: ClassVar[float] = math.nan
    tags: ClassVar[tuple[str, ...]] = ("regression",)

    @classmethod
    def of_outputs(cls, names: Sequence[str]) -> Problem:
        return cls()

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("score",)

    @classmethod
    def find(cls, table: Table, column: str, label_type: str, settings: Mapping[str, Any]) -> Found:
        counts, rows, *_ = find_labels(table, column, label_type)
        return Found(cls(), counts, rows)

    def read(self, value: Any, place: str) -> float:
        with suppress(ValueError, TypeError, OverflowError):  # text that is not a number; a list; a very large integer
            if not isinstance(value, bool) and math.isfinite(number := float(value)):
                return number
        raise MinipeftError(f"{place}: label {short_repr(value)} is not a finite number. Fix or remove the row.")

    def store(self, targets: Iterable[float] = ()) -> Any:
        return array("d", targets)

    def describe(self, targets: Sequence[float]) -> str:
        return f"numbers from {min(targets):g} to {max(targets):g}"

    @staticmethod
    def targets(labels: Sequence[Any], lengths: Sequence[int], num_labels: int) -> Tensor:
        """Return the numbers, (num_sequences,), float32."""
        for number, label in enumerate(labels):
            if not isinstance(label, (int, float)) or not math.isfinite(label):
                raise MinipeftError(
                    f"label {label!r} of sequence {number} is not a finite number, which regression needs"
                )
        return torch.tensor([float(label) for label in labels], dtype=torch.float32)

    def losses(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
        """Return the squared errors, (num_sequences,)."""
        return torch.where(targets.isnan(), 0.0, logits[:, 0] - targets).square()

    def baseline(self, targets: Sequence[float]) -> tuple[float, None]:
        """The mean has the variance as its loss."""
        return float(np.var(np.asarray(targets, dtype=np.float64))), None

    def describe_baseline(self, targets: Sequence[float]) -> str:
        """The standard deviation of the labels is the error of their mean."""
        return f"the mean of the labels alone has rmse {math.sqrt(self.baseline(targets)[0]):.4f}"

    def initial_bias(self, targets: Sequence[float], weights: Array | None = None) -> float:
        """The mean: otherwise the first steps learn nothing else where the labels are far from 0."""
        return float(np.average(targets, weights=weights))

    def decide(self, logits: Tensor) -> Array:
        return logits[:, 0].numpy()

    def probabilities(self, logits: Tensor) -> Array:
        raise MinipeftError("the labels are numbers, which have no probabilities. Use predict.")

    def predictions(self, logits: Tensor, names: Sequence[str], inputs: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Return "score", the number."""
        return [{"score": round(value, 6)} for value in logits[:, 0].tolist()]

    def report(self, logits: Tensor, targets: Sequence[float]) -> dict[str, Any]:
        """Return the errors."""
        errors = logits[:, 0].double().numpy() - np.asarray(targets, dtype=np.float64)
        return {
            "errors": {
                "mean_absolute_error": float(np.abs(errors).mean()),
                "root_mean_squared_error": float(np.sqrt((errors**2).mean())),
                "mean_error": float(errors.mean()),
            }
        }

    def mistakes(self, logits: Tensor, targets: Sequence[float], inputs: Any = ()) -> Iterator[Mistake]:
        """Yield all examples by their absolute error, but for those without one."""
        scores = logits[:, 0].double().numpy()
        errors = np.abs(scores - np.asarray(targets))
        for row in most_severe(errors):
            yield Mistake(row, float(errors[row]), {"label": targets[row], "prediction": float(scores[row])})
