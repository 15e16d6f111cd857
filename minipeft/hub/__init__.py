"""The name of a model or a data set → local files: weights/, the Hugging Face caches, a download into them."""

import os
import re
from pathlib import Path

from minipeft.errors import MinipeftError
from minipeft.files import parse_json, read_small
from minipeft.hub.names import ALIASES, CONFIG, INDEX, PICKLE, SHORT_NAMES, TOKENIZERS, WEIGHTS, parse_model_name
from minipeft.hub.network import endpoint, hub_reachable, offline_variable


def resolve_model(name_or_dir: str) -> tuple[Path, str]:
    """Return the local folder of a checkpoint, downloaded if necessary.

    A name is looked up in weights/, then in the Hugging Face cache, then on the hub. "auto" is roberta-base, and
    the bundled roberta-mini on a machine without a network. Every other name gives that model or an error.

    Args:
        name_or_dir: a folder, "auto", or a name: "roberta-base", "owner/name", "owner/name@revision".

    Returns:
        The folder, and a description of what was used and where it came from.

    Raises:
        MinipeftError: if the name is invalid, the checkpoint is damaged, or the download fails.
    """
    if name_or_dir == "auto":
        return _resolve_auto()
    path = Path(name_or_dir).expanduser()
    if name_or_dir and path.is_dir():
        return path, f"the folder {name_or_dir}"
    if path.is_file() or name_or_dir.startswith((".", "/", "~")) or "\\" in name_or_dir:
        raise MinipeftError(f"{name_or_dir!r} is not a folder. Pass one with config.json and model.safetensors.")
    return _find_local(name_or_dir) or _download(name_or_dir)


def fetch(name: str) -> Path:
    """Return the folder of a model by name, downloaded into the Hugging Face cache if it is not there yet."""
    return (_find_local(name) or _download(name))[0]


def weights_folder() -> Path:
    """Return the first place where checkpoints are looked up: the checkout's weights/, or ./weights if installed."""
    checkout = Path(__file__).resolve().parents[2]
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "weights"


def bundled(name: str = "roberta-mini") -> Path | None:
    """Return the checkpoint that comes with minipeft, in the checkout or the installed package; None if absent."""
    package = Path(__file__).resolve().parents[1]
    home = package.parent if (package.parent / "pyproject.toml").is_file() else package
    return None if _missing_file(home / "weights" / name) else home / "weights" / name


def _resolve_auto() -> tuple[Path, str]:
    if found := _find_local("roberta-base"):
        return found
    if hub_reachable():
        try:
            return _download("roberta-base")
        except MinipeftError as error:
            raise MinipeftError(f"{error} Or set HF_HUB_OFFLINE=1 to train the bundled roberta-mini.") from error
    variable = offline_variable()
    reason = f"{variable} is set" if variable else f"no answer from {endpoint()}"
    if (folder := bundled()) is None:
        raise MinipeftError(f"roberta-base: {reason}, and roberta-mini is missing too. Pass --model DIR.")
    return folder, f"{folder.name}, the bundled fallback model (stand-in; no roberta-base: {reason})"


def _find_local(name: str) -> tuple[Path, str] | None:
    """Return a checkpoint in weights/, in the package or in the cache, with its description."""
    repo_id, revision = parse_model_name(name)
    if revision is None:
        folder = _in_weights(repo_id) or (bundled(name) if "/" not in name else None)
        if folder is not None:
            return folder, f"{folder.name} (weights folder, {folder})"
    for known in dict.fromkeys((repo_id, SHORT_NAMES.get(repo_id, repo_id))):  # older caches have the short name
        if folder := _in_cache(known, revision):
            return folder, f"{known} at commit {folder.name} (Hugging Face cache, {folder})"
    return None


def _download(name: str) -> tuple[Path, str]:
    from minipeft.hub.download import download_checkpoint

    repo_id, revision = parse_model_name(name)
    folder = download_checkpoint(name, repo_id, revision)
    if missing := _missing_file(folder):
        raise MinipeftError(f"{name!r} from {endpoint()}: {missing} is missing or damaged. Choose another model.")
    return folder, f"{repo_id} at commit {folder.name} (fetched from {endpoint()}, {folder})"


def _in_weights(repo_id: str) -> Path | None:
    """Return the folder in weights/ if it exists; raise if it is damaged or holds another model."""
    folder = weights_folder() / repo_id.split("/")[-1]
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    if missing := _missing_file(folder):
        raise MinipeftError(f"{folder}: {missing} is missing or damaged. Move the folder away and run again.")
    origin = ALIASES.get(folder.name, folder.name)
    if "/" in repo_id and origin.lower() != repo_id.lower():
        raise MinipeftError(f"{folder}: the checkpoint is {origin}, not {repo_id}. Move it, or pass --model {folder}.")
    return folder


def _in_cache(repo_id: str, revision: str | None) -> Path | None:
    """Return a complete snapshot in the Hugging Face cache, which may be a copy of another machine's.

    Such a copy may lack refs/, or hold only some of the snapshots. Without a revision, and where refs/main names no
    snapshot that is there, the newest one that is not another branch's is used.
    """
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"
    snapshots = {path.name: path for path in (repository / "snapshots").glob("*") if path.is_dir()}
    files = [path for path in (repository / "refs").rglob("*") if path.is_file()]
    commits = {path.relative_to(repository / "refs").as_posix(): path.read_text("utf-8", "replace") for path in files}
    commits = {branch: commit.strip() for branch, commit in commits.items()}
    named = snapshots.get(commits.get(revision or "main", revision or ""))
    chosen = [] if named is None else [named]
    if revision is None and named is None:
        chosen = [path for name, path in snapshots.items() if name not in commits.values()]
        chosen.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in chosen if not _missing_file(path)), None)


def _missing_file(folder: Path) -> str:
    """Return the name of a file without which a checkpoint is incomplete, "" if nothing is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    name = CONFIG
    try:
        if not isinstance(parse_json(read_small(folder / CONFIG)), dict):
            return CONFIG
        if not any(all((folder / file).is_file() for file in files) for files in TOKENIZERS):
            return "tokenizer.json"
        name, files = WEIGHTS, {WEIGHTS}
        if not (folder / WEIGHTS).exists() and (folder / INDEX).exists():
            name = INDEX
            files = set(parse_json(read_small(folder / INDEX))["weight_map"].values())
        elif not (folder / WEIGHTS).exists() and (folder / PICKLE).is_file():
            return "" if (folder / PICKLE).stat().st_size else PICKLE
        for name in sorted(files):
            if Path(name).name != name:
                return name
            with safe_open(folder / name, "numpy"):  # reads the header and compares it with the file's length
                pass
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError):
        return name
    return ""


def cached_splits(name: str, config: str) -> dict[str, list[Path]]:
    """Return the arrow files of each split of a data set in the cache of `datasets`, of the version written last."""
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
