"""The GLUE table (Wang et al. 2019), one row a task, and reading a split in the columns of nyu-mll/glue."""

from __future__ import annotations

import csv
import math
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipeft.data import standin
from minipeft.errors import MinipeftError, first_line

if TYPE_CHECKING:
    from datasets import Dataset

HUB_NAME = "nyu-mll/glue"
FORMATS = ("parquet", "jsonl", "tsv")


@dataclass(frozen=True)
class Task:
    """A row of the table.

    columns    the text column, or the two of a pair
    labels     class names in the order of their numbers; empty for regression
    metrics    names in training/metrics.py; the first one chooses the best epoch
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    validation: str = "validation"

    @property
    def num_labels(self) -> int:
        """The size of the classification head: 1 for regression."""
        return len(self.labels) or 1

    @property
    def is_regression(self) -> bool:
        return not self.labels


NLI = ("entailment", "not_entailment")
TASKS = {
    task.name: task
    for task in (
        Task("rte", ("sentence1", "sentence2"), NLI),
        Task("sst2", ("sentence",), ("negative", "positive")),
        Task("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation", "accuracy")),
        Task("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")),
        Task("stsb", ("sentence1", "sentence2"), (), ("pearson", "spearman")),
        Task("qnli", ("question", "sentence"), NLI),
        Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
        Task(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            validation="validation_matched",
        ),
        Task("wnli", ("sentence1", "sentence2"), ("not_entailment", "entailment")),
    )
}


@dataclass(frozen=True)
class Split:
    """Examples of one split: texts, pairs (or None) and labels, row by row; floats for regression."""

    task: Task
    texts: list[str]
    pairs: list[str] | None
    labels: Sequence[int] | Sequence[float]

    def __len__(self) -> int:
        return len(self.texts)


def get_task(name: str) -> Task:
    """The row of a task; an unknown name raises with the valid ones."""
    if name not in TASKS:
        raise MinipeftError(f"unknown task {name!r}; one of {', '.join(TASKS)}")
    return TASKS[name]


def choose_data(task: Task, data: str) -> tuple[str, str]:
    """Where a task's splits come from → (source, what it is in words). The source goes to `read_split`.

    A folder is taken as given, and so is "standin". "auto" is the datasets library's cache, else the hub, else the
    generated stand-in.
    """
    from minipeft.hub import hub_reachable

    if data == "standin" and task.name in standin.TASKS:
        return "standin", f"generated stand-in for {task.name}: not GLUE, no benchmark"
    if data != "auto":
        if not (Path(data) / task.name).is_dir():
            raise MinipeftError(
                f"{data}: no folder {task.name} in it; --data needs <task>/train.parquet "
                "(or jsonl, tsv) and a validation split"
            )
        return str(Path(data).resolve()), f"{data}/{task.name}"
    if _cached(task):
        return "cache", f"{HUB_NAME} ({task.name}), from the local cache"
    reason = "no answer from the hub"
    if hub_reachable():
        try:
            _from_hub(task, None)
            return "hub", f"{HUB_NAME} ({task.name})"
        except MinipeftError as error:
            reason = str(error)
    if task.name in standin.TASKS:
        return "standin", f"generated stand-in for {task.name}: not GLUE, no benchmark ({reason})"
    raise MinipeftError(f"no {task.name}: {reason}, and there is no stand-in for it; pass --data with a folder of it")


def read_split(task: Task, split: str, source: str, limit: int | None = None) -> Split:
    """Read the first `limit` rows of a split from a source that `choose_data` gave.

    Raises MinipeftError that names file and row for a missing column, an empty split, a null sentence, or a label
    outside the task's.
    """
    if source == "standin":
        return _checked(task, standin.generate(task.name, split), f"stand-in {task.name} {split}", limit)
    if source == "cache":
        from datasets import Dataset

        cached = _cached(task)
        if split not in cached:
            raise MinipeftError(f"{HUB_NAME} {task.name}: no split {split!r} in the cache; one of {', '.join(cached)}")
        return _checked(task, Dataset.from_file(str(cached[split])), f"{HUB_NAME} {task.name} {split}", limit)
    if source == "hub":
        return _checked(task, _from_hub(task, split), f"{HUB_NAME} {task.name} {split}", limit)
    for ending in FORMATS:
        path = Path(source) / task.name / f"{split}.{ending}"
        if path.is_file():
            return _checked(task, read_file(path), str(path), limit)
    raise MinipeftError(f"{Path(source) / task.name}: no {split}.parquet, {split}.jsonl or {split}.tsv in it; add one")


def read_file(path: Path) -> Dataset:
    """Read a parquet, jsonl or tsv file (tab-separated, a header line, no quoting) through the datasets library."""
    from datasets import Dataset, disable_progress_bars
    from datasets.utils.logging import CRITICAL, set_verbosity
    from pyarrow.parquet import read_metadata

    disable_progress_bars()
    set_verbosity(CRITICAL)  # its errors are raised too, and become one line here
    if path.stat().st_size == 0:
        raise MinipeftError(f"{path}: the file is empty; write the split anew")
    with tempfile.TemporaryDirectory() as cache:
        try:
            options: dict[str, Any] = {"cache_dir": cache, "keep_in_memory": True}
            if path.suffix == ".parquet":
                if not read_metadata(path).num_rows:
                    raise MinipeftError(f"{path}: the split is empty; it needs at least one row")
                return Dataset.from_parquet(str(path), **options)
            if path.suffix == ".jsonl":
                return Dataset.from_json(str(path), **options)
            with open(path, encoding="utf-8-sig") as file:
                header = file.readline().rstrip("\r\n").split("\t")
            as_text = {name: lambda field: field or None for name in header}  # 12 is a text too; labels see _label
            options |= {"converters": as_text, "keep_default_na": False, "na_values": [""], "encoding": "utf-8-sig"}
            return Dataset.from_csv(str(path), sep="\t", quoting=csv.QUOTE_NONE, **options)
        except MinipeftError:
            raise
        except Exception as error:  # the library wraps what its readers raise in exceptions of many kinds
            reason = first_line(error.__cause__ or error)
            if "corresponds to no data" in reason:
                raise MinipeftError(f"{path}: the split is empty; it needs at least one row") from None
            raise MinipeftError(f"{path}: not readable as {path.suffix[1:]} ({reason}); write the split anew") from None


def _from_hub(task: Task, split: str | None) -> Dataset:
    from datasets import load_dataset

    try:
        return load_dataset(HUB_NAME, task.name, split=split)
    except Exception as error:  # the library lets through the errors of every layer below it
        raise MinipeftError(
            f"{HUB_NAME} {task.name} is not to be had from the hub ({first_line(error)}); try again, or pass --data "
            "with a folder that holds it"
        ) from None


def _cached(task: Task) -> dict[str, Path]:
    """The splits of a task that the datasets library has in its cache, as files of arrow records."""
    from datasets import config

    home = Path(config.HF_DATASETS_CACHE) / HUB_NAME.replace("/", "___") / task.name
    versions = sorted(path.parent for path in home.glob(f"*/*/glue-{task.validation}.arrow"))
    if not versions or not (versions[-1] / "glue-train.arrow").is_file():
        return {}
    return {path.stem.removeprefix("glue-"): path for path in versions[-1].glob("glue-*.arrow")}


def _checked(task: Task, rows: Dataset | dict[str, list[Any]], place: str, limit: int | None) -> Split:
    names = list(rows) if isinstance(rows, dict) else rows.column_names
    for column in (*task.columns, "label"):
        if column not in names:
            raise MinipeftError(
                f"{place}: no column {column!r} (there are {', '.join(names)}); "
                f"{task.name} needs {', '.join(task.columns)} and label"
            )
    columns = [list(rows[column])[:limit] for column in (*task.columns, "label")]
    if not columns[0]:
        raise MinipeftError(f"{place}: the split is empty; it needs at least one row")
    for name, texts in zip(task.columns, columns, strict=False):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                what = "null" if text is None else repr(text)
                raise MinipeftError(f"{place}, row {row}: {name} is {what}, no text; mend or remove the row")
    labels = [_label(task, label, f"{place}, row {row}") for row, label in enumerate(columns[-1])]
    return Split(task, columns[0], columns[1] if len(task.columns) == 2 else None, labels)


def _label(task: Task, label: Any, place: str) -> Any:
    if isinstance(label, str) and label not in task.labels:
        for number in (int, float):  # a number as text, as in every tsv
            with suppress(ValueError):
                label = number(label)
                break
    if task.is_regression:
        if isinstance(label, (int, float)) and not isinstance(label, bool) and math.isfinite(label):
            return float(label)
        raise MinipeftError(f"{place}: label {label!r} is no finite number, which {task.name} needs")
    if label in task.labels:
        return task.labels.index(label)
    if isinstance(label, (int, float)) and label in range(len(task.labels)):
        return int(label)
    hidden = " (GLUE hides the labels of its test split)" if label == -1 else ""
    classes = ", ".join(f"{number} {name}" for number, name in enumerate(task.labels))
    raise MinipeftError(f"{place}: label {label!r} is none of {task.name}'s: {classes}{hidden}")
