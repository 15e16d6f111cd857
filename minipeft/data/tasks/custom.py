"""A custom dataset as a task: a file, or a folder with train.csv (or tsv, jsonl, parquet) and further splits."""

import re
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.data.tables.lines import stem_of
from minipeft.data.tables.memory import PLACE, MemoryData
from minipeft.data.tables.open_table import split_file
from minipeft.data.tables.remote_tables.hub_rows import (
    find_dataset,
    hub_split,
    is_hub_name,
    is_hub_source,
    is_hub_split,
    open_split,
)
from minipeft.data.tables.remote_tables.remote import is_remote
from minipeft.data.tables.table import Table
from minipeft.data.tasks.draw import VALIDATION_FRACTION, hash_texts
from minipeft.data.tasks.folds import connected_rows, describe_shared_groups
from minipeft.data.tasks.task import TASKS, Task
from minipeft.errors import MinipeftError, check_choice, format_names, printable, short_repr
from minipeft.problems import LABEL_TYPES, problem_class, problem_of, problem_row, problem_type_of
from minipeft.problems.labels import NUMBER
from minipeft.progress_bar import show_progress

ENDINGS = ("csv", "tsv", "jsonl", "json", "parquet", "conll")
VALIDATION_NAMES = ("validation", "valid", "val", "dev", "eval")
SECOND_TEXTS = re.compile(r"(sentence|text|question|input)_?[2b]|pair|hypothesis|claim|answer|context", re.IGNORECASE)
# All columns of a file → what is probably missing.
HINTS = {("tokens", "ner_tags"): "pass --label-type tokens", ("text",): "--format reads a .txt file in another format"}
FEWEST_ROWS = 10  # that a validation split is drawn from
FEWEST_WORDS = 4  # per row, on average, of a column of texts


@dataclass(frozen=True)
class CustomData:
    """What is known of a custom dataset before training.

    Attributes:
        task: Its columns, classes and files.
        source: The file, folder, address or data set of the hub.
        origin: Where a data set of the hub comes from; "" for files.
        rows: Number of rows of the training file.
        class_counts: Number of rows of each label, in the order of their indices; empty where labels are numbers.
        unread_columns: Columns of the training file that are not read.
        warnings: Messages about what may be a mistake, each one line.
    """

    task: Task
    source: str
    origin: str
    rows: int
    class_counts: dict[str, int]
    unread_columns: tuple[str, ...]
    warnings: tuple[str, ...]

    def describe(self) -> str:
        """Return the files, rows and classes in one line."""
        files = dict(self.task.files)
        if "validation" in files:
            validation = f"validation from {files['validation']}"
        else:
            how = "" if self.task.problem.strata(()) is None else ", stratified by class"
            how += f", with each {self.task.group_column} in one part" if self.task.group_column else ""
            drawn = f"{VALIDATION_FRACTION:.0%} are" if self.task.fold is None else f"fold {self.task.fold} is"
            validation = f"of which {drawn} for validation{how}, the same for every seed"
        counts, kind = [f"{name} {count:,}" for name, count in self.class_counts.items()], self.task.problem.plural
        labels = f"{len(counts):,} {kind} ({format_names(counts)})" if counts else f"labels that are {kind}"
        return printable(f"{files['train']}{self.origin}: {self.rows:,} rows, {validation}; {labels}")

    def describe_columns(self) -> str:
        """Return the columns that are read, and those that are not, in one line."""
        unread = f"; not read: {format_names(self.unread_columns)}" if self.unread_columns else ""
        return printable(f"{' and '.join(self.task.columns)}, labels from {self.task.label_column}{unread}")


def is_custom(task: str, data: str | MemoryData, file_format: str | None = None) -> bool:
    """Whether --data is a custom dataset.

    It is rows in memory, a file or an address; and if --task is not one of GLUE's, a folder with a training file, or a
    data set of the hub.
    """
    if isinstance(data, MemoryData):
        return True
    path = Path(data)
    if is_remote(data) or path.is_file():
        return True
    return task not in TASKS and (is_hub_name(data) or (path.is_dir() and "train" in _files_in(path, file_format)))


def inspect_custom_data(
    task: str,
    data: str | MemoryData,
    *,
    text_column: str | None,
    pair_column: str | None,
    label_column: str | None,
    label_type: str,
    validation: str | None,
    file_format: str | None = None,
    fold: str | None = None,
    group_column: str | None = None,
    weight_column: str | None = None,
    quiet: bool = False,
    **of_labels: Any,
) -> CustomData:
    """Inspect a custom dataset; the labels of the whole training file are read once.

    The arguments are the settings of these names; `of_labels` are those that only this type of labels has.

    Raises:
        MinipeftError: for data that cannot be trained on. The message names the file, the row and the remedy.
    """
    if task in TASKS:
        raise MinipeftError(
            f"--data {data} is a file, but --task {task} reads GLUE's columns from a folder {task}/; "
            "leave --task out for a custom dataset"
        )
    check_choice("--label-type", label_type, LABEL_TYPES)
    source, origin, files = _find(data, validation, file_format)
    unused = files.pop("validation", None) if fold else None
    path = Path(source)
    name = task if task != "auto" else task_name(source)
    if not name or name != Path(name).name:
        raise MinipeftError(f"--task {name!r} cannot be the name of a folder; choose a plain name")
    problem_type = problem_type_of(label_type)
    kind = problem_class(problem_type)
    for flag, column in (("--pair-column", pair_column), ("--weight-column", weight_column)):
        if column and problem_row(problem_type).per_token:
            raise MinipeftError(f"{flag} {column!r} is not for --label-type {label_type}. Leave it out.")
    columns = (text_column or kind.columns[0], *([pair_column] if pair_column else []))
    label = label_column or kind.columns[1]
    flags = dict(zip(columns, ("--text-column", "--pair-column"), strict=False)) | {label: "--label-column"}
    tables = {split: open_split(files[split], file_format) for split in ("train", "validation") if split in files}
    table = tables["train"]
    for opened in (table, tables.get("validation", table)):
        for column, flag in flags.items():
            if column not in opened.columns:
                raise opened.missing(column, HINTS.get(opened.columns, f"{flag} names another"))
    for flag, column in (("--group-column", group_column), ("--weight-column", weight_column)):
        table.require([column] if column else [], f"{flag} names another")
    unread = tuple(column for column in table.columns if column not in (*flags, group_column, weight_column))
    warnings = _column_warnings(table, columns, unread)
    if unused is not None:
        warnings += (f"{unused} is not used: --fold validates on rows of {files['train']}",)
    hashes, drawn = array("q"), "validation" not in files
    hashed = hash_texts(table, columns, label, hashes, group_column) if drawn or group_column else table
    shown = replace(hashed, read=lambda names: show_progress(hashed.read(names), "reading", quiet, rows=lambda row: 1))
    found = kind.find(shown, label, label_type, of_labels)
    if drawn and found.rows < FEWEST_ROWS:
        raise MinipeftError(
            f"{files['train']}: {found.rows} rows, and a validation split is drawn from at least {FEWEST_ROWS}; "
            "add rows, or name a validation file by --validation"
        )
    together = connected_rows(hashes, 1 + bool(group_column)) if hashes else None
    if group_column and not drawn:
        warnings += describe_shared_groups(tables["validation"], group_column, hashes)
    custom = Task(
        *(name, columns, found.problem),
        label_column=label,
        files=tuple(files.items()),
        file_format=file_format,
        fold=fold,
        group_column=group_column,
        train_rows=(found.rows, found.strata, together),
    )
    least = int(fold.split("/")[1]) if fold else 2 if group_column else 1
    if together is not None and (different := len(np.unique(together))) < least:
        what = f"groups of rows with one text or {group_column}" if group_column else "different texts"
        raise MinipeftError(f"{files['train']}: {different} {what}, fewer than the {least} parts. Add rows.")
    warnings += found.warnings
    if custom.validation_rows is not None and not custom.validation_rows.any():
        raise MinipeftError(
            f"{files['train']}: no class has two rows, of which one could be for validation; "
            "add rows, or name a validation file by --validation"
        )
    if path.is_file() and "validation" not in files:
        unused = split_file(path.parent, VALIDATION_NAMES, ENDINGS)
        if unused not in (None, str(path)):
            warnings += (f"{unused} is not used; pass --validation {unused} to validate on it",)
    return CustomData(custom, source, origin, found.rows, found.counts, unread, tuple(map(printable, warnings)))


def _find(data: str | MemoryData, validation: str | None, file_format: str | None) -> tuple[str, str, dict[str, Any]]:
    """Return the source of a custom dataset, where it comes from if not from a file, and the file of each split."""
    if file_format and (isinstance(data, MemoryData) or is_hub_name(data)):
        raise MinipeftError(f"--format {file_format!r} is for files, and {data} is not a file. Check --data.")
    if isinstance(data, MemoryData):
        files: dict[str, Any] = {name: rows for name, rows in data.splits.items() if name not in VALIDATION_NAMES}
        for name in reversed(VALIDATION_NAMES):  # of several the first one is the validation split
            if name in data.splits:
                files["validation"] = data.splits[name]
        return PLACE, "", files
    if not is_hub_name(data):
        source = data if is_remote(data) else str(Path(data).resolve())
        return source, "", _files(source, validation, VALIDATION_NAMES, file_format)
    source, splits, commit = find_dataset(data)
    if "train" not in splits:
        raise MinipeftError(f"{source}: no split train (there are {', '.join(splits)}); choose another data set")
    if validation is None:
        validation = next((name for name in VALIDATION_NAMES if name in splits), None)
    elif not (validation in splits or is_remote(validation) or is_hub_split(validation) or Path(validation).is_file()):
        raise MinipeftError(
            f"--validation {validation}: no split of {source} (there are {', '.join(splits)}), and no such file; "
            "name another"
        )
    origin = f" (Hugging Face hub{f', commit {commit[:12]}' if commit else ''})"
    validation = hub_split(source, validation) if validation in splits else validation
    return source, origin, _files(source, validation, (), None)


def task_name(source: str) -> str:
    """Return the name of a source without folders, owner, config and endings; "data" for rows in memory."""
    if source == PLACE:
        return "data"
    if is_hub_source(source) and not Path(source).exists():
        name = source.split(":")[0].split("/")[-1]
    else:
        name = Path(source).name if Path(source).is_dir() else stem_of(source)
    return f"{name}-data" if name in TASKS else name  # GLUE's task has other columns and labels than rte.csv


def _column_warnings(table: Table, columns: tuple[str, ...], unread: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse a text column of numbers, and warn of an unread column that may be the second text."""
    texts = [str(text) for (text,) in table.head(columns[:1])]
    if texts and all(map(NUMBER.fullmatch, texts)):
        raise MinipeftError(
            f"{table.place}: column {columns[0]!r} holds numbers, such as {texts[0]}; name the texts by --text-column"
        )
    if len(columns) == 2:
        return ()
    second = [column for column in unread if SECOND_TEXTS.fullmatch(column)]
    with suppress(MinipeftError):  # a column that cannot be read need not be
        for column, values in zip(unread, zip(*table.head(unread), strict=True), strict=False):
            words = [len(value.split()) for value in values if isinstance(value, str)]
            if column not in second and words and sum(words) >= FEWEST_WORDS * len(words):
                second.append(column)
    if not second:
        return ()
    named = " and ".join(map(repr, second))
    return (f"{table.place}: column {named} is not read; if it is a second text, pass --pair-column {second[0]}",)


def custom_task(settings: Mapping[str, Any]) -> Task | None:
    """Return the task of a run on a custom dataset, from its config.json; None for a run on GLUE."""
    if settings.get("text_column") is None:
        return None
    optional = [name for name in ("pair_column", "validation") if settings.get(name)]
    for name in ("task", "source", "text_column", "label_column", *optional):
        if not isinstance(settings.get(name), str):
            raise MinipeftError(f"{name} {short_repr(settings.get(name))} is not a text")
    labels, validation = settings.get("labels"), settings.get("validation") or None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels) or len(labels) == 1:
        raise MinipeftError(f"labels {short_repr(labels)} are not a list of names")
    columns = (settings["text_column"], *([settings["pair_column"]] if settings.get("pair_column") else []))
    source = settings["source"]
    try:
        files = _files(source, validation, VALIDATION_NAMES[:1], settings.get("file_format"))  # another is recorded
    except MinipeftError:  # the data were moved or deleted; only evaluating on them needs them
        files = {"train": source}
    check_choice("label_type", settings.get("label_type"), LABEL_TYPES)
    if settings.get("fold"):
        files.pop("validation", None)
    problem = problem_of(problem_type_of(settings["label_type"]), labels, settings)
    others: dict[str, Any] = {name: settings.get(name) for name in ("file_format", "fold", "group_column")}
    splits = tuple(files.items())
    return Task(*(settings["task"], columns, problem), label_column=settings["label_column"], files=splits, **others)


def _files(source: str, validation: str | None, names: tuple[str, ...], file_format: str | None) -> dict[str, str]:
    """The file of each split; `names` are those that a validation file may have."""
    if source == PLACE:  # of a recorded run, whose rows are gone
        return {"train": PLACE}
    if is_hub_source(source):
        files = {"train": hub_split(source, "train")}
    else:
        files = _files_in(Path(source), file_format, names) if Path(source).is_dir() else {"train": source}
    if "train" not in files:
        raise MinipeftError(f"{source}: no train.csv, train.tsv, train.jsonl or train.parquet in it; add one")
    if validation is not None:
        is_path = not is_remote(validation) and not is_hub_split(validation)
        files["validation"] = str(Path(validation).resolve()) if is_path else validation
    return files


def _files_in(folder: Path, file_format: str | None, names: Sequence[str] = VALIDATION_NAMES) -> dict[str, str]:
    """The files of a folder, or of its subfolder data/, that are named after a split; a format allows any ending."""
    endings = [r"\w+"] if file_format else ENDINGS
    if split_file(folder, ["train"], endings) is None and split_file(folder / "data", ["train"], endings) is not None:
        folder = folder / "data"
    splits = {"train": ["train"], "validation": names, "test": ["test"]}
    return {split: file for split, names in splits.items() if (file := split_file(folder, names, endings)) is not None}
