"""The splits of a task: where they come from, and their rows as a stream of examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipeft.data import standin
from minipeft.data.batching import holdout_mask
from minipeft.data.labels import read_label
from minipeft.data.rows import Table, open_table
from minipeft.data.tasks import Split, Task
from minipeft.errors import MinipeftError, first_line, is_unicode, shown

if TYPE_CHECKING:
    from datasets import Dataset

HUB_NAME = "nyu-mll/glue"
FORMATS = ("parquet", "jsonl", "tsv")
# Of a chunk, which is what is in memory at a time; a text of N characters takes the tokenizer about 250 N bytes.
CHUNK_ROWS, CHUNK_CHARACTERS = 4096, 1 << 20
LONGEST_TEXT = 1 << 21  # characters
# The part of one's own training file that validates, where no file of its own does: the same for every --seed, so that
# the figures of several seeds can be compared.
VALIDATION_FRACTION, VALIDATION_SEED = 0.1, 0


def choose_data(task: Task, data: str) -> tuple[str, str]:
    """Where a task's splits come from → (source, what it is in words). The source goes to `read_split`.

    A folder is taken as given, and so is "standin". "auto" is the datasets library's cache, else the hub, else the
    generated stand-in.
    """
    from minipeft.hub.network import hub_reachable

    if data == "standin" and task.name in standin.TASKS:
        return "standin", f"generated stand-in for {task.name}: not GLUE, no benchmark"
    if data != "auto":
        if not Path(data).exists():
            raise MinipeftError(f"--data {data}: no such file or folder; name one that is there")
        if not (Path(data) / task.name).is_dir():
            raise MinipeftError(
                f"{data}: no folder {task.name} in it; --data needs <task>/train.parquet "
                "(or jsonl, tsv) and a validation split, or is a file of your own"
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
    """The first `limit` rows of a split, from a source that `choose_data` gave, as one Split: see `read_chunks`."""
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
    """The first `limit` rows of a split, from a source that `choose_data` gave, as a stream of small Splits.

    Raises MinipeftError that names file and row for a missing column, an empty split, a null sentence, or a label
    outside the task's.
    """
    remedy = f"{task.name} needs {', '.join(task.columns)} and {task.label_column}"
    examples = read_examples(task, _table(task, split, source), task.columns, remedy, labelled)
    if task.is_custom and split in ("train", task.validation) and task.validation not in dict(task.files):
        held = holdout_mask(_count(task), VALIDATION_FRACTION, VALIDATION_SEED)
        examples = (row for row, chosen in zip(examples, held, strict=True) if chosen == (split == task.validation))
    return chunk_examples(task, islice(examples, limit))


def _count(task: Task) -> int:
    """Rows of one's own training file."""
    return sum(1 for _ in open_table(dict(task.files)["train"]).read([task.label_column]))


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
        place = f"stand-in {task.name} {split}"
        return Table(place, tuple(columns), lambda names: zip(*(columns[name] for name in names), strict=True))
    if source == "cache":
        from datasets import Dataset

        cached = _cached(task)
        if split not in cached:
            raise MinipeftError(f"{HUB_NAME} {task.name}: no split {split!r} in the cache; one of {', '.join(cached)}")
        return _table_of_dataset(Dataset.from_file(str(cached[split])), f"{HUB_NAME} {task.name} {split}")
    if source == "hub":
        return _table_of_dataset(_from_hub(task, split), f"{HUB_NAME} {task.name} {split}")
    for ending in FORMATS:
        path = Path(source) / task.name / f"{split}.{ending}"
        if path.is_file():
            return open_table(path)
    raise MinipeftError(f"{Path(source) / task.name}: no {split}.parquet, {split}.jsonl or {split}.tsv in it; add one")


def _table_of_dataset(rows: Dataset, place: str) -> Table:
    def read(names: Sequence[str]) -> Iterator[Sequence[Any]]:
        for batch in rows.select_columns(list(names)).iter(1000):
            yield from zip(*(batch[name] for name in names), strict=True)

    return Table(place, tuple(rows.column_names), read)


def read_examples(
    task: Task, table: Table, columns: Sequence[str], remedy: str, labelled: bool = True
) -> Iterator[tuple[str, str | None, Any]]:
    """(text, pair or None, label or None) of each row; `remedy` ends the message about a column that is missing."""
    wanted = [*columns, task.label_column] if labelled else list(columns)
    for name in wanted:
        if name not in table.columns:
            raise MinipeftError(f"{table.place}: no column {name!r} (there are {', '.join(table.columns)}); {remedy}")
    row = -1
    for row, values in enumerate(table.read(wanted)):
        for name, text in zip(columns, values, strict=False):
            if not isinstance(text, str):
                what = "null" if text is None else shown(text)
                raise MinipeftError(f"{table.place}, row {row}: {name} is {what}, no text; mend or remove the row")
            if not is_unicode(text):
                raise MinipeftError(
                    f"{table.place}, row {row}: {name} is {shown(text)}, no valid text (half a character); "
                    "mend or remove the row"
                )
            if len(text) > LONGEST_TEXT:
                raise MinipeftError(
                    f"{table.place}, row {row}: {name} has {len(text):,} characters; "
                    f"up to {LONGEST_TEXT:,} are taken: shorten the text"
                )
        label = read_label(task, values[-1], f"{table.place}, row {row}") if labelled else None
        yield values[0], values[1] if len(columns) == 2 else None, label
    if row < 0:
        raise MinipeftError(f"{table.place}: the split is empty; it needs at least one row")


def chunk_examples(task: Task, examples: Iterable[tuple[str, str | None, Any]]) -> Iterator[Split]:
    """Examples in their order, as Splits of so many that memory stays bounded; a label of None is left out."""
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
