"""The splits of a task: where they come from, and their rows as a stream of examples."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipeft.data import standin
from minipeft.data.batching import random_mask, stratified_mask
from minipeft.data.find_files import split_file
from minipeft.data.labels import read_label
from minipeft.data.rows import Table, open_table
from minipeft.data.tasks import Split, Task
from minipeft.errors import MinipeftError, first_line, is_unicode, short_repr

if TYPE_CHECKING:
    from datasets import Dataset

HUB_NAME = "nyu-mll/glue"
ENDINGS = ("parquet", "jsonl", "tsv")
# Limits of a chunk, the unit that is in memory at once: the tokenizer needs about 250 bytes per character.
CHUNK_ROWS, CHUNK_CHARACTERS = 4096, 1 << 20
LONGEST_TEXT = 1 << 21  # characters
# The validation split of custom data without a validation file, as a fraction of the training file. Its seed does not
# depend on --seed, so that the metrics of several seeds can be compared.
VALIDATION_FRACTION, VALIDATION_SEED = 0.1, 0


def choose_data(task: Task, data: str) -> tuple[str, str]:
    """Choose the source of a task's splits.

    Args:
        task: A task of GLUE.
        data: A folder, "standin" (synthetic data), or "auto": the cache of `datasets`, else the Hub, else, without a
            network, synthetic data.

    Returns:
        (source, description). The source is for `read_split`.

    Raises:
        MinipeftError: for a folder without the task, and if the Hub answers but the download fails.
    """
    from minipeft.hub.network import hub_reachable, offline_variable

    if data == "standin" and task.name in standin.TASKS:
        return "standin", f"synthetic data for {task.name} (stand-in): not GLUE, not a benchmark"
    if data != "auto":
        if not Path(data).exists():
            raise MinipeftError(f"--data {data}: no such file or folder; check the path")
        if _file(_folder(task, data), "train") is None and not (Path(data) / task.name).is_dir():
            raise MinipeftError(
                f"{data}: no folder {task.name} in it; --data needs <task>/train.parquet "
                "(or jsonl, tsv) and a validation split, or is a custom dataset"
            )
        folder = _folder(task, data)
        return str(Path(data).resolve()), f"{data}/{task.name}" if folder.name == task.name else data
    if _cached(task):
        return HUB_NAME, f"{HUB_NAME} ({task.name}), from the local cache"
    offline = offline_variable() or ("HF_DATASETS_OFFLINE" if _datasets_offline() else None)
    if offline is None and hub_reachable():
        _from_hub(task, None)
        return HUB_NAME, f"{HUB_NAME} ({task.name})"
    reason = "no answer from the hub" if offline is None else f"{offline} is set"
    if task.name in standin.TASKS:
        return "standin", f"synthetic data for {task.name} (stand-in): not GLUE, not a benchmark ({reason})"
    raise MinipeftError(f"no data for {task.name}: {reason}; pass --data with a folder that holds it")


def normalize_source(source: str) -> str:
    """Return a recorded source as `choose_data` names it: earlier versions wrote "hub" or "cache" for GLUE."""
    return HUB_NAME if source in ("hub", "cache") else source


def read_split(task: Task, split: str, source: str, limit: int | None = None) -> Split:
    """Read the first `limit` rows of a split as one Split. See `read_chunks`."""
    texts: list[str] = []
    pairs: list[str] = []
    labels: list[Any] = []
    for chunk in read_chunks(task, split, source, limit):
        texts += chunk.texts
        pairs += chunk.pairs or []
        labels += chunk.labels
    return Split(task, texts, pairs if len(task.columns) == 2 else None, labels)


def read_chunks(
    task: Task, split: str, source: str, limit: int | None = None, labelled: bool = True
) -> Iterator[Split]:
    """Read the first `limit` rows of a split as a stream of small Splits.

    Args:
        task: The task.
        split: Name of the split.
        source: The source, from `choose_data`.
        limit: Number of rows; None for all.
        labelled: Whether to read the labels.

    Raises:
        MinipeftError: for a missing column or split, an empty split, a missing text, or an unknown label. The message
            names the file and the row.
    """
    remedy = f"{task.name} needs {', '.join(task.columns)} and {task.label_column}"
    examples = read_examples(task, _table(task, split, source), task.columns, remedy, labelled)
    if task.is_custom and split in ("train", task.validation) and task.validation not in dict(task.files):
        mask = _validation_mask(task)
        examples = (row for row, chosen in zip(examples, mask, strict=True) if chosen == (split == task.validation))
    return chunk_examples(task, islice(examples, limit))


def count_rows(task: Task, split: str, source: str, limit: int) -> int:
    """Return how many rows of a split `read_chunks` gives, up to `limit`."""
    if task.is_custom and split in ("train", task.validation) and task.validation not in dict(task.files):
        mask = _validation_mask(task)
        rows = sum(mask) if split == task.validation else len(mask) - sum(mask)
    else:
        rows = sum(1 for _ in islice(_table(task, split, source).read([task.label_column]), limit))
    return min(rows, limit)


def _validation_mask(task: Task) -> bytearray:
    """1 for the rows of the training file that are the validation split."""
    rows = open_table(dict(task.files)["train"]).read([task.label_column])
    labels = [read_label(task, value, place) for place, (value,) in rows]
    if task.is_regression or not task.stratified:
        return random_mask(len(labels), VALIDATION_FRACTION, VALIDATION_SEED)
    return stratified_mask(labels, VALIDATION_FRACTION, VALIDATION_SEED)


def _table(task: Task, split: str, source: str) -> Table:
    if task.is_custom:
        files = dict(task.files)
        if split not in files and split != task.validation:
            raise MinipeftError(
                f"{source}: no {split} split; there are {', '.join(dict.fromkeys([*files, task.validation]))}"
            )
        return open_table(files.get(split, files["train"]))
    if source == "standin":
        columns = standin.generate(task.name, split)
        place = f"synthetic {task.name} {split}"
        return _numbered(place, tuple(columns), lambda names: zip(*(columns[name] for name in names), strict=True))
    if normalize_source(source) == HUB_NAME:
        return _table_of_dataset(*_glue(task, split))
    folder = _folder(task, source)
    if (path := _file(folder, split)) is None:
        found = sorted({file.name.split(".")[0].split("-")[0] for file in folder.glob("*.*")})
        there = f" (there are {', '.join(found)})" if found else ""
        raise MinipeftError(f"{folder}: no {split}.parquet, {split}.jsonl or {split}.tsv in it{there}; add one")
    return open_table(path)


def _folder(task: Task, source: str) -> Path:
    """The folder of a task's files: <source>/<task>, or the source itself if it holds a training file."""
    folder = Path(source) / task.name
    return folder if folder.is_dir() or _file(Path(source), "train") is None else Path(source)


def _file(folder: Path, split: str) -> str | None:
    """The file of a split; of several formats the first of ENDINGS."""
    return next(filter(None, (split_file(folder, split, [ending]) for ending in ENDINGS)), None)


def _numbered(place: str, columns: tuple[str, ...], values: Any) -> Table:
    def read(names: Sequence[str]) -> Iterator[tuple[str, Sequence[Any]]]:
        return ((f"{place}, row {row}", row_values) for row, row_values in enumerate(values(names)))

    return Table(place, columns, read)


def _table_of_dataset(rows: Dataset, place: str) -> Table:
    def values(names: Sequence[str]) -> Iterator[Sequence[Any]]:
        for batch in rows.select_columns(list(names)).iter(1000):
            yield from zip(*(batch[name] for name in names), strict=True)

    return _numbered(place, tuple(rows.column_names), values)


def read_examples(
    task: Task, table: Table, columns: Sequence[str], remedy: str, labelled: bool = True
) -> Iterator[tuple[str, str | None, Any]]:
    """Yield (text, pair or None, label or None) of each row; `remedy` ends the message about a missing column."""
    wanted = [*columns, task.label_column] if labelled else list(columns)
    for name in wanted:
        if name not in table.columns:
            raise table.missing(name, remedy)
    place = None
    for place, values in table.read(wanted):
        for name, text in zip(columns, values, strict=False):
            if not isinstance(text, str):
                what = "null" if text is None else short_repr(text)
                raise MinipeftError(f"{place}: {name} is {what}, not a text; fix or remove the row")
            if not is_unicode(text):
                raise MinipeftError(
                    f"{place}: {name} is {short_repr(text)}, not valid Unicode (half a character); "
                    "fix or remove the row"
                )
            if len(text) > LONGEST_TEXT:
                raise MinipeftError(
                    f"{place}: {name} has {len(text):,} characters, more than {LONGEST_TEXT:,}; shorten the text"
                )
        label = read_label(task, values[-1], place) if labelled else None
        yield values[0], values[1] if len(columns) == 2 else None, label
    if place is None:
        raise MinipeftError(f"{table.place}: the split is empty; it needs at least one row")


def chunk_examples(task: Task, examples: Iterable[tuple[str, str | None, Any]]) -> Iterator[Split]:
    """Yield examples in their order as Splits of bounded size; a label of None is left out."""
    texts: list[str] = []
    pairs: list[str] = []
    labels: list[Any] = []
    characters = 0
    for text, pair, label in examples:
        texts.append(text)
        if pair is not None:
            pairs.append(pair)
        if label is not None:
            labels.append(label)
        characters += len(text) + len(pair or "")
        if len(texts) == CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield Split(task, texts, pairs if len(task.columns) == 2 else None, labels)
            texts, pairs, labels, characters = [], [], [], 0
    if texts:
        yield Split(task, texts, pairs if len(task.columns) == 2 else None, labels)


def _glue(task: Task, split: str) -> tuple[Dataset, str]:
    """A split from the cache of `datasets`, or else from the Hub, and its name in messages."""
    name = f"{HUB_NAME} {task.name} {split}"
    if not (cached := _cached(task)):
        return _from_hub(task, split), name
    if split not in cached:
        raise MinipeftError(f"{HUB_NAME} {task.name}: no split {split!r} in the cache; one of {', '.join(cached)}")
    return _from_cache(cached[split]), name


def _from_cache(path: Path) -> Dataset:
    """Open a file of arrow records whose records are all there."""
    import pyarrow
    from datasets import Dataset

    try:
        with pyarrow.memory_map(str(path)) as file:
            pyarrow.ipc.open_stream(file).read_all()  # maps the records without copying them; raises if truncated
        return Dataset.from_file(str(path))
    except Exception as error:  # pyarrow raises exceptions of many kinds
        raise MinipeftError(
            f"{path}: damaged ({first_line(error)}); delete the folder {path.parent} so that it is downloaded again"
        ) from None


def _from_hub(task: Task, split: str | None) -> Any:
    """Load a task with `datasets`."""
    from datasets import load_dataset

    from minipeft.hub.network import with_retries

    try:
        return with_retries(lambda token: load_dataset(HUB_NAME, task.name, split=split, token=token))
    except Exception as error:  # the library passes on the errors of every layer below it
        raise MinipeftError(
            f"{HUB_NAME} {task.name}: the download from the hub failed ({first_line(error)}); try again, or pass "
            "--data with a folder that holds it" + (", or --data standin" if task.name in standin.TASKS else "")
        ) from None


def _cached(task: Task) -> dict[str, Path]:
    """The arrow files of a task's splits in the cache of `datasets`: as there, the most recently written version."""
    from datasets import config

    home = Path(config.HF_DATASETS_CACHE) / HUB_NAME.replace("/", "___") / task.name
    versions = [path.parent for path in home.glob(f"*/*/glue-{task.validation}.arrow")]
    versions = [folder for folder in versions if (folder / "glue-train.arrow").is_file()]
    if not versions:
        return {}
    newest = max(versions, key=lambda folder: (folder.stat().st_mtime, folder))
    return {path.stem.removeprefix("glue-"): path for path in sorted(newest.glob("glue-*.arrow"))}


def _datasets_offline() -> bool:
    return os.environ.get("HF_DATASETS_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def with_recorded_split(task: Task, settings: dict[str, Any]) -> Task:
    """Return the task with the kind of draw of a recorded config.json: earlier versions did not stratify."""
    return replace(task, stratified=bool(settings.get("stratified", False)))
