"""A user's own data as a task: a file, or a folder that holds train.csv (tsv, jsonl, parquet) and the like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipeft.data.labels import LABEL_TYPES, find_labels
from minipeft.data.rows import open_table
from minipeft.data.splits import VALIDATION_FRACTION
from minipeft.data.tasks import TASKS, Task
from minipeft.errors import MinipeftError, one_of, shown, some

ENDINGS = ("csv", "tsv", "jsonl", "parquet")
TEXT_COLUMN, LABEL_COLUMN = "text", "label"
FEWEST_ROWS = 10  # that a validation split is drawn from


@dataclass(frozen=True)
class CustomData:
    """What is known of one's own data before training: the task that it is, its source, its rows, and all in words."""

    task: Task
    source: str
    rows: int
    words: str


def is_custom(task: str, data: str) -> bool:
    """Whether --data names one's own data: a file, or a folder with a training file, unless --task is one of GLUE's."""
    path = Path(data)
    return path.is_file() or (task not in TASKS and path.is_dir() and "train" in _files_in(path))


def inspect_custom_data(
    task: str,
    data: str,
    *,
    text_column: str | None,
    pair_column: str | None,
    label_column: str | None,
    label_type: str,
    validation: str | None,
) -> CustomData:
    """Look through one's own data. A task of the name "auto" is called after the file or folder.

    The whole training file is read once, for its labels. Raises MinipeftError that names file, row and remedy.
    """
    if task in TASKS:
        raise MinipeftError(
            f"--data {data} is a file, but --task {task} reads GLUE's columns from a folder {task}/; "
            "leave --task out for your own data"
        )
    one_of("--label-type", label_type, LABEL_TYPES)
    path = Path(data).resolve()
    name = task if task != "auto" else path.stem if path.is_file() else path.name
    if not name or name != Path(name).name:
        raise MinipeftError(f"--task {name!r} cannot name a run's folder; choose a plain name")
    files = _files(path, validation)
    columns = (text_column or TEXT_COLUMN, *([pair_column] if pair_column else []))
    label = label_column or LABEL_COLUMN
    named = [(columns[0], "--text-column"), *((column, "--pair-column") for column in columns[1:])]
    for split in ("train", "validation"):
        table = open_table(files.get(split, files["train"]))
        for column, flag in (*named, (label, "--label-column")):
            if column not in table.columns:
                raise MinipeftError(
                    f"{table.place}: no column {column!r} (there are {some(table.columns)}); {flag} names another"
                )
    labels, rows = find_labels(open_table(files["train"]), label, label_type)
    described = _task(name, columns, labels, label, files)
    if "validation" in files:
        validated = f"validation from {files['validation']}"
    elif rows < FEWEST_ROWS:
        raise MinipeftError(
            f"{files['train']}: {rows} rows, and a validation split is drawn from at least {FEWEST_ROWS}; "
            "add rows, or name a file of its own by --validation"
        )
    else:
        validated = (
            f"of which {VALIDATION_FRACTION:.0%}, drawn at random and the same for every seed, are for validation"
        )
    kind = f"{len(labels):,} classes ({some(labels)})" if labels else "labels that are numbers"
    return CustomData(described, str(path), rows, f"{files['train']}: {rows:,} rows, {validated}; {kind}")


def custom_task(settings: Mapping[str, Any]) -> Task | None:
    """The task of a run on one's own data, from its config.json; None of a run on GLUE."""
    if settings.get("text_column") is None:
        return None
    texts = ["task", "source", "text_column", "label_column", *(["pair_column"] if settings.get("pair_column") else [])]
    for name in texts:
        if not isinstance(settings.get(name), str):
            raise MinipeftError(f"{name} {shown(settings.get(name))} is no text")
    labels, validation = settings.get("labels"), settings.get("validation")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels) or len(labels) == 1:
        raise MinipeftError(f"labels {shown(labels)} are no list of names")
    if not isinstance(validation, (str, type(None))):
        raise MinipeftError(f"validation {shown(validation)} is no text")
    columns = (settings["text_column"], *([settings["pair_column"]] if settings.get("pair_column") else []))
    source = Path(settings["source"])
    try:
        files = _files(source, validation)
    except MinipeftError:  # the data are gone or moved, which only evaluating them needs
        files = {"train": str(source)}
    return _task(settings["task"], columns, tuple(labels), settings["label_column"], files)


def _task(name: str, columns: tuple[str, ...], labels: tuple[str, ...], label: str, files: dict[str, str]) -> Task:
    metrics = ("accuracy", "macro_f1") if labels else ("pearson", "spearman")
    return Task(name, columns, labels, metrics, label_column=label, files=tuple(files.items()))


def _files(source: Path, validation: str | None) -> dict[str, str]:
    """Each split's file."""
    files = {"train": str(source)} if source.is_file() else _files_in(source)
    if "train" not in files:
        raise MinipeftError(f"{source}: no train.csv, train.tsv, train.jsonl or train.parquet in it; add one")
    if validation is not None:
        files["validation"] = str(Path(validation).resolve())
    return files


def _files_in(folder: Path) -> dict[str, str]:
    """The files of a folder that are called after a split."""
    files: dict[str, str] = {}
    for split in ("train", "validation", "test"):
        found = [folder / f"{split}.{ending}" for ending in ENDINGS if (folder / f"{split}.{ending}").is_file()]
        if len(found) > 1:
            raise MinipeftError(f"{folder} holds {found[0].name} and {found[1].name}; leave one there")
        if found:
            files[split] = str(found[0])
    return files
