"""The weights of a custom dataset's training rows in the loss, from --weight-column."""

import math
from contextlib import suppress
from typing import Any

import numpy as np

from minipeft.data.tables.remote_tables.hub_rows import open_split
from minipeft.data.tasks.task import Task
from minipeft.errors import MinipeftError, short_repr
from minipeft.problems.metrics import Array


def read_weights(task: Task, column: str, limit: int | None = None) -> Array:
    """Return the weight of each training example, (num_examples,), float64.

    Raises:
        MinipeftError: for a weight that is negative or not a finite number.
    """

    def read(value: Any, place: str) -> float:
        with suppress(ValueError, TypeError, OverflowError):
            if 0 <= (weight := float(value)) < math.inf:
                return weight
        raise MinipeftError(f"{place}: {column} is {short_repr(value)}, not a finite number from 0 on. Correct it.")

    rows = open_split(dict(task.files)["train"]).read_labelled([column, task.label_column])
    weights = np.fromiter((read(value, place) for place, (value, _) in rows), dtype=np.float64)
    return (weights if task.validation_rows is None else weights[~task.validation_rows])[:limit]
