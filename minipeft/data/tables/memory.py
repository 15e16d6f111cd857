"""Rows in memory as a custom dataset: lists, a pandas DataFrame, a Dataset or DatasetDict of `datasets`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minipeft.errors import MinipeftError, first_line

if TYPE_CHECKING:
    from datasets import Dataset

KINDS = "a list of dicts, a dict of columns, a pandas DataFrame, a datasets.Dataset or a DatasetDict"
PLACE = "rows in memory"


@dataclass(frozen=True)
class MemorySplit:
    """The rows of a split, and their name in messages."""

    place: str
    rows: Dataset

    def __str__(self) -> str:
        return self.place


class MemoryData:
    """The splits of a dataset in memory, by name; settings that hold it can be copied and printed."""

    def __init__(self, splits: Mapping[str, MemorySplit]) -> None:
        self.splits = dict(splits)

    def __str__(self) -> str:
        return PLACE

    def __deepcopy__(self, memo: object) -> MemoryData:
        return self


def is_in_memory(data: Any) -> bool:
    """Whether `data` is rows, not the name of a file or data set."""
    return data is not None and not isinstance(data, (str, os.PathLike, MemoryData))


def read_memory(data: Any, validation: Any = None) -> MemoryData:
    """Return rows in memory as splits; `data` is the rows of "train", or a dict with "train" and other splits."""
    splits = dict(data) if isinstance(data, Mapping) and "train" in data else {"train": data}
    if type(data).__name__ == "DatasetDict" and "train" not in data:
        raise MinipeftError(f"data: no split train (there are {', '.join(data)}). Pass one under that name.")
    if validation is not None:
        splits["validation"] = validation
    return MemoryData({name: MemorySplit(f"{PLACE} ({name})", _dataset(name, rows)) for name, rows in splits.items()})


def _dataset(name: str, rows: Any) -> Dataset:
    from datasets import Dataset

    if isinstance(rows, Dataset):
        return rows.with_format(None)
    kind = type(rows)
    try:
        if kind.__module__.partition(".")[0] == "pandas" and kind.__name__ == "DataFrame":
            return Dataset.from_pandas(rows, preserve_index=False)
        if isinstance(rows, Mapping):
            return Dataset.from_dict({column: list(values) for column, values in rows.items()})
        if isinstance(rows, (list, tuple)) and all(isinstance(row, Mapping) for row in rows):
            columns = dict.fromkeys(column for row in rows for column in row)
            return Dataset.from_dict({column: [row.get(column) for row in rows] for column in columns})
    except Exception as error:  # pyarrow raises exceptions of many kinds
        raise MinipeftError(f"data, {name}: the rows are not a table ({first_line(error)}). Pass {KINDS}.") from None
    raise MinipeftError(f"data, {name}: {kind.__module__}.{kind.__name__} is not supported. Pass {KINDS}.")
