"""A data set of the Hugging Face hub, through the `datasets` library and from its cache.

A data set is named "owner/name:config", and a split of it "owner/name:config[split]". What is in the cache is used
without asking the hub, so that every process and every resumed run reads the same rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipeft.data.tables.lines import ending_of
from minipeft.data.tables.memory import PLACE, MemorySplit
from minipeft.data.tables.open_table import ENDINGS, open_table
from minipeft.data.tables.remote_tables.remote import is_remote
from minipeft.data.tables.table import Table, name_class
from minipeft.errors import MinipeftError, first_line, format_names
from minipeft.hub import cached_configs, cached_splits
from minipeft.hub.names import SEGMENT
from minipeft.hub.network import datasets_offline_variable, endpoint, hub_reachable
from minipeft.hub.retries import with_retries

if TYPE_CHECKING:
    from datasets import Dataset

NAME = re.compile(rf"(?P<name>(?:{SEGMENT}/)?{SEGMENT})(?::(?P<config>[\w.+ -]+))?(?:\[(?P<split>[\w.]+)\])?", re.ASCII)
NOT_HUB = ("auto", "standin")


class DownloadError(MinipeftError):
    """A data set that cannot be loaded from the hub; `reason` is the first line of the library's error."""

    def __init__(self, name: str, error: Exception) -> None:
        self.reason = first_line(error).rstrip(".")
        super().__init__(f"{name}: the download from the hub failed ({self.reason}). Try again.")


def is_hub_name(data: str) -> bool:
    """Whether --data may name a data set of the hub: "name", "owner/name" or "owner/name:config"."""
    match = NAME.fullmatch(data)
    if match is None or match["split"] or data in NOT_HUB or is_remote(data) or Path(data).exists():
        return False
    return ending_of(data) not in ENDINGS


def is_hub_source(source: str) -> bool:
    """Whether a recorded source is a data set of the hub; a file's or folder's is an absolute path or an address."""
    return not Path(source).is_absolute() and not is_remote(source) and NAME.fullmatch(source) is not None


def hub_split(source: str, split: str) -> str:
    """Return the name of a split, for `open_split`."""
    return f"{source}[{split}]"


def is_hub_split(path: str) -> bool:
    """Whether a path is the name that `hub_split` gives."""
    match = NAME.fullmatch(path)
    return match is not None and match["split"] is not None


def open_split(path: str | MemorySplit, file_format: str | None = None) -> Table:
    """Open rows in memory, a split of a data set of the hub, or a file as `open_table` does."""
    if isinstance(path, MemorySplit):
        return dataset_table(path.rows, path.place, in_memory=True)
    if path == PLACE:
        raise MinipeftError(f"the run was trained on {PLACE}; evaluate it on a file, by --input")
    match = NAME.fullmatch(path)
    if match is None or match["split"] is None:
        return open_table(path, file_format)
    return dataset_table(read_split_rows(match["name"], match["config"] or "default", match["split"]), path)


def find_dataset(data: str) -> tuple[str, tuple[str, ...], str]:
    """Find a data set in the cache of `datasets`, or download it from the hub.

    Without a config it is the data set's default or only one.

    Returns:
        Its name with owner and config, the names of its splits, and the commit, "" if it is not known.
    """
    match = NAME.fullmatch(data)
    assert match is not None
    name, config = match["name"], match["config"]
    not_a_file = f"--data {data}: no such file or folder, and "
    cached = cached_configs(name)
    found = [(full_name, cached_config) for full_name, cached_config in cached if config in (None, cached_config)]
    if config is None or (name, config) not in found:
        offline = datasets_offline_variable()
        if offline is None and hub_reachable():
            try:
                found = [_download_dataset(name, config)]
            except DownloadError as error:
                raise MinipeftError(
                    f"{not_a_file}no data set of the hub can be loaded ({error.reason}). Check the name."
                ) from None
        elif not found:
            reason = f"{offline} is set" if offline else f"no answer from {endpoint()}"
            others = f" (there are {format_names([':'.join(pair) for pair in cached])})" if cached else ""
            raise MinipeftError(
                f"{not_a_file}no such data set in the cache{others}; {reason}. Check the name, or the network."
            )
    found = [pair for pair in found if pair[0] == name] or found
    if len(found) > 1:
        names = format_names([":".join(pair) for pair in found])
        raise MinipeftError(f"--data {data}: the cache holds {names}. Name one of them.")
    splits = cached_splits(*found[0])
    folder = next(iter(splits.values()))[0].parent.name
    commit = folder if re.fullmatch("[0-9a-f]{40}", folder) else ""
    return ":".join(found[0]), tuple(splits), commit


def _download_dataset(name: str, config: str | None) -> tuple[str, str]:
    """Download a data set into the cache; return its name with the owner, and its config."""
    try:
        builder = with_retries(lambda token: _prepare(name, config, token))
    except MinipeftError:
        raise
    except Exception as error:  # the library passes on the errors of every layer below it
        raise DownloadError(name if config is None else f"{name}:{config}", error) from None
    return str(builder.repo_id), str(builder.config.name)


def _prepare(name: str, config: str | None, token: bool | None) -> Any:
    from datasets import load_dataset_builder
    from huggingface_hub import HfApi

    if "/" not in name:  # an old name, such as imdb: the hub answers with the present one
        name = HfApi(endpoint=endpoint(), token=token).dataset_info(name).id
    builder = load_dataset_builder(name, config, token=token)
    builder.download_and_prepare()
    return builder


def read_split_rows(name: str, config: str, split: str) -> Dataset:
    """Return a split from the cache, downloaded if it is not there; each file is checked to be complete."""
    splits = cached_splits(name, config)
    if not splits:
        _download_dataset(name, config)
        splits = cached_splits(name, config)
    if split not in splits:
        raise MinipeftError(f"{name}:{config}: no split {split!r} (there are {', '.join(splits)}); name another")
    from datasets import concatenate_datasets

    return concatenate_datasets([_read_arrow(path) for path in splits[split]])


def _read_arrow(path: Path) -> Dataset:
    """Open a file of arrow records, which are mapped and not copied."""
    from datasets import Dataset

    try:
        return Dataset.from_file(str(path))  # raises if the file is truncated
    except Exception as error:  # pyarrow raises exceptions of many kinds
        raise MinipeftError(
            f"{path}: damaged ({first_line(error)}); delete the folder {path.parent} so that it is downloaded again"
        ) from None


def dataset_table(rows: Dataset, place: str, by_name: bool = True, in_memory: bool = False) -> Table:
    """Return the rows of a Dataset as a table; `by_name` reads classes as their names, and not as their indices."""
    found = {name: _class_names(feature) for name, feature in rows.features.items()} if by_name else {}
    classes = {name: names for name, names in found.items() if names}

    def read(names: Sequence[str]) -> Iterator[tuple[str, Sequence[Any]]]:
        number = 0 if in_memory else 1
        for batch in rows.select_columns(list(names)).iter(1000):
            where = f"{place}, from {'index' if in_memory else 'row'} {number} on"
            columns = (
                [name_class(value, classes[name], where) for value in batch[name]] if name in classes else batch[name]
                for name in names
            )
            for values in zip(*columns, strict=True):
                yield f"{place}, {'index' if in_memory else 'row'} {number}", values
                number += 1

    return Table(place, tuple(rows.column_names), read, classes)


def _class_names(feature: Any) -> tuple[str, ...]:
    """Return the class names of a ClassLabel, or of a list of them; none for other features."""
    feature = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
    return tuple(feature.names or ()) if type(feature).__name__ == "ClassLabel" else ()
