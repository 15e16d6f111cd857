"""The splits of a task: where they come from, and their rows as a stream of examples."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from minipeft.data.tables.table import Table, stream
from minipeft.data.tasks import synthetic as standin
from minipeft.data.tasks.task import Split, Task
from minipeft.errors import MinipeftError, short_repr
from minipeft.hub import cached_splits
from minipeft.problems.metrics import Array

HUB_NAME = "nyu-mll/glue"
ENDINGS = ("parquet", "jsonl", "tsv")
# Limits of a chunk, the unit that is in memory at once: the tokenizer needs about 250 bytes per character.
CHUNK_ROWS, CHUNK_CHARACTERS = 4096, 1 << 20

Row = tuple[str, str | None, Any]  # a text, its pair or None, its label or None


def choose_data(task: Task, data: str) -> tuple[str, str]:
    """Return where the splits of a task of GLUE come from, for `read_chunks`, and a description of it.

    `data` is a folder, "standin" (synthetic data), "nyu-mll/glue" (the cache of `datasets`, else the hub), or "auto":
    as nyu-mll/glue, and without a network synthetic data.
    """
    from minipeft.hub.network import datasets_offline_variable, hub_reachable

    if data == "standin" and task.name in standin.TASKS:
        return "standin", f"synthetic data for {task.name} (stand-in): not GLUE, not a benchmark"
    if data not in ("auto", HUB_NAME):
        if not Path(data).exists():
            from minipeft.data.tables.remote_tables.hub_rows import is_hub_name

            other = f", or leave --task {task.name} out for a data set of the hub" if is_hub_name(data) else ""
            raise MinipeftError(f"--data {data}: no such file or folder; check the path{other}")
        if _file(_folder(task, data), "train") is None and not (Path(data) / task.name).is_dir():
            raise MinipeftError(
                f"{data}: no folder {task.name} in it, as GLUE has, with train.parquet, jsonl or tsv; and no train.csv "
                "(tsv, jsonl, json, parquet or conll; --format reads any ending), as a custom dataset has"
            )
        folder = _folder(task, data)
        return str(Path(data).resolve()), f"{data}/{task.name}" if folder.name == task.name else data
    if cached_splits(HUB_NAME, task.name):
        return HUB_NAME, f"{HUB_NAME} ({task.name}), from the local cache"
    offline = datasets_offline_variable()
    if offline is None and hub_reachable():
        _glue(task, task.validation)
        return HUB_NAME, f"{HUB_NAME} ({task.name})"
    reason = "no answer from the hub" if offline is None else f"{offline} is set"
    if task.name in standin.TASKS and data == "auto":
        return "standin", f"synthetic data for {task.name} (stand-in): not GLUE, not a benchmark ({reason})"
    raise MinipeftError(f"no data for {task.name}: {reason}; pass --data with a folder that holds it")


def read_split(task: Task, split: str, source: str, limit: int | None = None) -> Split:
    """Read the first `limit` rows of a split as one Split. See `read_chunks`."""
    return _make_split(task, list(_read_rows(task, split, source, limit)))


def read_chunks(
    task: Task, split: str, source: str, limit: int | None = None, labelled: bool = True
) -> Iterator[Split]:
    """Read the first `limit` rows of a split, with or without labels, as a stream of small Splits.

    Raises:
        MinipeftError: for a missing column or split, an empty split, a missing text, or an unknown label. The message
            names the file and the row.
    """
    return chunk_examples(task, _read_rows(task, split, source, limit, labelled))


def _read_rows(task: Task, split: str, source: str, limit: int | None, labelled: bool = True) -> Iterator[Row]:
    remedy = f"{task.name} needs {', '.join(task.columns)} and {task.label_column}"
    examples = read_examples(task, _table(task, split, source), task.columns, remedy, labelled)
    if split in ("train", task.validation) and task.validation_rows is not None:
        mask = task.validation_rows == (split == task.validation)
        examples = (row for row, chosen in zip(examples, mask.tolist(), strict=True) if chosen)
    return islice(examples, limit)


def training_strata(task: Task, source: str, limit: int | None = None) -> tuple[int, Array | None, Any]:
    """Return the number of training examples, the class of each where draws are stratified, and which stay together.

    The last is what `connected_rows` returns, or None where a run draws nothing and its rows have no groups.
    """
    if task.train_rows is not None:
        from minipeft.data.tasks.folds import split_train_rows

        return split_train_rows(task, limit)
    table = _table(task, "train", source)
    table.require([task.label_column], f"{task.name} needs it")
    rows = islice(table.read_labelled([task.label_column]), limit)
    targets = task.problem.store(_read_target(task, value, place) for place, (value,) in rows)
    strata = task.problem.strata(targets)
    return len(targets), None if strata is None else np.asarray(strata), None


def _table(task: Task, split: str, source: str) -> Table:
    if task.is_custom:
        from minipeft.data.tables.remote_tables.hub_rows import hub_split, is_hub_source, open_split

        names = dict.fromkeys([*dict(task.files), task.validation])
        if split not in names and is_hub_source(source):
            return open_split(hub_split(source, split))
        if split not in names:
            raise MinipeftError(f"{source}: no {split} split; there are {', '.join(names)}")
        return task.open_split(split)
    if source == "standin":
        columns, place = standin.generate(task.name, split), f"synthetic {task.name} {split}"
        rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        return stream(place, tuple(columns), ((f"{place}, row {number}", row) for number, row in enumerate(rows, 1)))
    if source == HUB_NAME:
        return _glue(task, split)
    folder = _folder(task, source)
    if (path := _file(folder, split)) is None:
        found = sorted({file.name.split(".")[0].split("-")[0] for file in folder.glob("*.*")})
        there = f" (there are {', '.join(found)})" if found else ""
        raise MinipeftError(f"{folder}: no {split}.parquet, {split}.jsonl or {split}.tsv in it{there}; add one")
    from minipeft.data.tables.open_table import open_table

    return open_table(path)


def _folder(task: Task, source: str) -> Path:
    """The folder of a task's files: <source>/<task>, or the source itself if it holds a training file."""
    folder = Path(source) / task.name
    return folder if folder.is_dir() or _file(Path(source), "train") is None else Path(source)


def _file(folder: Path, split: str) -> str | None:
    """The file of a split; of several formats the first of ENDINGS."""
    from minipeft.data.tables.open_table import split_file

    return next(filter(None, (split_file(folder, [split], [ending]) for ending in ENDINGS)), None)


def _read_target(task: Task, label: Any, place: str) -> Any:
    """Return the target of a row's label."""
    return task.problem.read(label if task.is_custom else _glue_class(task, label, place), place)


def _glue_class(task: Task, label: Any, place: str) -> Any:
    """Return the class name of a label of GLUE, which its files have as an index, in a tsv file as text."""
    if label in task.labels or not task.labels:
        return label
    for number in (int, float) if isinstance(label, str) else ():
        with suppress(ValueError):
            label = number(label)
            break
    if isinstance(label, (int, float)) and label in range(len(task.labels)):
        return task.labels[int(label)]
    hidden = " (GLUE hides the labels of its test split)" if label in (-1, None) else ""
    classes = ", ".join(f"{index} {name}" for index, name in enumerate(task.labels))
    from minipeft.problems.labels import nearest_label

    meant = nearest_label(label, task.labels)
    raise MinipeftError(f"{place}: label {short_repr(label)} is not one of {task.name}'s: {classes}{hidden}{meant}")


def read_examples(
    task: Task, table: Table, columns: Sequence[str], remedy: str, labelled: bool = True
) -> Iterator[Row]:
    """Yield (text, pair or None, label or None) of each row; `remedy` ends the message about a missing column."""
    wanted = [*columns, task.label_column] if labelled else list(columns)
    table.require(wanted, remedy)
    place = None
    for place, values in table.read_labelled(wanted) if labelled else table.read(wanted):
        texts = [task.problem.read_text(text, name, place) for name, text in zip(columns, values, strict=False)]
        label = None
        if labelled:
            label = _read_target(task, values[-1], place)
            task.problem.check_row(texts[0], label, place)
        yield texts[0], texts[1] if len(columns) == 2 else None, label
    if place is None:
        raise MinipeftError(f"{table.place}: the split is empty; it needs at least one row")


def chunk_examples(task: Task, examples: Iterable[Row]) -> Iterator[Split]:
    """Yield examples in their order as Splits of bounded size; a label of None is left out."""
    rows: list[Row] = []
    characters = 0
    for row in examples:
        rows.append(row)
        characters += len(row[0]) + len(row[1] or "")
        if len(rows) == CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield _make_split(task, rows)
            rows, characters = [], 0
    if rows:
        yield _make_split(task, rows)


def _make_split(task: Task, rows: list[Row]) -> Split:
    pairs = [str(pair) for _, pair, _ in rows] if len(task.columns) == 2 else None
    return Split(task, [text for text, _, _ in rows], pairs, [label for _, _, label in rows if label is not None])


def _glue(task: Task, split: str) -> Table:
    """A split from the cache of `datasets`, or else from the hub."""
    from minipeft.data.tables.remote_tables.hub_rows import DownloadError, dataset_table, read_split_rows

    try:
        rows = read_split_rows(HUB_NAME, task.name, split)
    except DownloadError as error:
        raise MinipeftError(
            f"{HUB_NAME} {task.name}: the download from the hub failed ({error.reason}); try again, or pass "
            "--data with a folder that holds it" + (", or --data standin" if task.name in standin.TASKS else "")
        ) from None
    return dataset_table(rows, f"{HUB_NAME} {task.name} {split}", by_name=False)
