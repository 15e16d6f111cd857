"""The weights of a custom dataset's training rows in the loss, from --weight-column."""

import math
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from minipeft.data.tokens.examples import Encoded
from minipeft.errors import MinipeftError, short_repr


def add_weights(examples: Encoded, column: str, limit: int | None = None) -> Encoded:
    """Return the first `limit` training examples with the weights of their rows.

    Raises:
        MinipeftError: for a weight that is negative or not a finite number, and where all of them are 0.
    """

    def read(value: Any, place: str) -> float:
        with suppress(ValueError, TypeError, OverflowError):
            if 0 <= (weight := float(value)) < math.inf:
                return weight
        raise MinipeftError(f"{place}: {column} is {short_repr(value)}, not a finite number from 0 on. Correct it.")

    task = examples.split.task
    table = task.open_split("train")
    rows = table.read_labelled([column, task.label_column])
    weights = np.fromiter((read(value, place) for place, (value, _) in rows), dtype=np.float64)
    weights = (weights if task.validation_rows is None else weights[~task.validation_rows])[:limit]
    if not weights.any():
        raise MinipeftError(f"{table.place}: the {column} of every training row is 0. Correct it.")
    # The loss depends on their ratios only. With 1 as the largest, float32 holds weights of any size.
    return replace(examples, weights=weights / weights.max())
