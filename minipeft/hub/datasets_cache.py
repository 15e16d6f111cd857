"""The data sets of the hub in the cache of the `datasets` library, found without importing the library."""

import os
import re
from pathlib import Path


def cached_splits(name: str, config: str) -> dict[str, list[Path]]:
    """Return the arrow files of each split in the cache of `datasets`: as there, the version written last."""
    folders = [path for path in (datasets_cache() / name.replace("/", "___") / config).glob("*/*") if splits_in(path)]
    return splits_in(max(folders, key=lambda path: (path.stat().st_mtime, path))) if folders else {}


def splits_in(folder: Path) -> dict[str, list[Path]]:
    """Return the files of the splits in a folder of the cache; none if a shard is missing."""
    splits: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*-*.arrow")):
        stem = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
        if not stem.startswith("cache-"):  # what Dataset.map leaves
            splits.setdefault(stem.rpartition("-")[2], []).append(path)
    for files in splits.values():
        total = re.search(r"-of-(\d{5})$", files[-1].stem)
        if total and len(files) != int(total[1]):
            return {}
    return splits


def cached_configs(name: str) -> list[tuple[str, str]]:
    """Return the (name with owner, config) of each data set in the cache that a name may mean."""
    pattern = name.replace("/", "___") if "/" in name else f"*___{name}"
    return [
        (folder.name.replace("___", "/"), config.name)
        for folder in [datasets_cache() / name, *sorted(datasets_cache().glob(pattern))]
        if folder.is_dir()
        for config in sorted(folder.iterdir())
        if any(map(splits_in, config.glob("*/*")))
    ]


def datasets_cache() -> Path:
    """Return the folder that `datasets` uses as its cache; importing the library to ask it takes most of a second."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME) / "datasets")
