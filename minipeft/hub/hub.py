"""A model's name → a local folder under weights/, fetched from the Hugging Face hub and verified.

A download grows in weights/.<name>.partial, where it survives a cut or a kill, and becomes weights/<name> in one
rename once every size and hash is right. HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN are read at each call.
"""

import os
import re
import threading
from pathlib import Path

from minipeft.errors import MinipeftError
from minipeft.files import LARGEST_SMALL_FILE, parse_json, read_small
from minipeft.hub.download import (
    ALIASES,
    BY_HAND,
    CONFIG,
    INDEX,
    PICKLE,
    RERUN,
    TOKENIZERS,
    WEIGHTS,
    Remote,
    download_all,
    size_of,
)

SOURCE = "source.txt"  # which repository and commit a fetched folder came from
PROBE_SECONDS = 2.5

_reachable: dict[str, bool] = {}  # by endpoint, for this process


def resolve_model(name_or_dir: str) -> tuple[Path, str]:
    """The local folder for a name, a folder or "auto", and what was used in words.

    "auto" is weights/roberta-base, else the hub's roberta-base, else the bundled roberta-mini, and the words say why.
    Any other value gives that very model or raises MinipeftError.
    """
    if name_or_dir == "auto":
        try:
            folder = _local("roberta-base", weights_folder())
            if folder is None and not _offline() and not hub_reachable():
                raise MinipeftError(f"no answer from {_endpoint()}")
            folder = folder or fetch("roberta-base")
        except MinipeftError as reason:
            if (folder := bundled()) is None:
                raise MinipeftError(f"{reason}; roberta-mini is missing too: pass --model DIR") from reason
            return folder, f"{folder.name}, the bundled stand-in (no roberta-base: {reason})"
        return folder, _in_words(folder)
    path = Path(name_or_dir).expanduser()
    if name_or_dir and path.is_dir():
        return path, f"the folder {name_or_dir}"
    if path.is_file() or name_or_dir.startswith((".", "/", "~")) or "\\" in name_or_dir:
        raise MinipeftError(f"{name_or_dir!r} is no folder; pass one with config.json and model.safetensors")
    folder = _local(name_or_dir, weights_folder())
    if folder is None and "/" not in name_or_dir:
        folder = bundled(name_or_dir)
    folder = folder or fetch(name_or_dir)
    return folder, _in_words(folder)


def weights_folder() -> Path:
    """Where checkpoints live: the checkout's weights/, or ./weights when minipeft is installed."""
    checkout = Path(__file__).resolve().parents[2]
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "weights"


def bundled(name: str = "roberta-mini") -> Path | None:
    """The checkpoint that comes with minipeft, in the checkout or in the installed package; None when absent."""
    package = Path(__file__).resolve().parents[1]
    home = package.parent if (package.parent / "pyproject.toml").is_file() else package
    return None if _lacks(home / "weights" / name) else home / "weights" / name


def hub_reachable() -> bool:
    """Whether the hub answers at all, decided once per endpoint in under 3 seconds; False with HF_HUB_OFFLINE=1."""
    endpoint = os.environ.get("HF_ENDPOINT", "")
    if endpoint not in _reachable and not _offline():
        answers: list[bool] = []  # a thread, because no timeout covers a name server that hangs
        probe = threading.Thread(target=lambda: answers.append(_answers()), daemon=True)
        probe.start()
        probe.join(PROBE_SECONDS)
        _reachable[endpoint] = answers == [True]
    return not _offline() and _reachable[endpoint]


def _answers() -> bool:
    from http.client import HTTPException
    from ssl import SSLCertVerificationError
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(_endpoint(), method="HEAD"), timeout=PROBE_SECONDS).close()
    except HTTPError as error:
        return error.code not in (502, 503, 504)  # what a proxy says when it cannot get through
    except (OSError, ValueError, HTTPException, MinipeftError) as error:
        # A certificate is an answer too: the download judges it with its own store.
        return isinstance(getattr(error, "reason", None), SSLCertVerificationError)
    return True


def fetch(name: str, weights: Path | None = None, progress: bool = True) -> Path:
    """Download a checkpoint from the hub into weights/<name>, resumable and verified; returns the folder.

    A whole weights/<name> is returned untouched, and nothing is ever overwritten. Raises MinipeftError.
    """
    weights = weights or weights_folder()
    if folder := _local(name, weights):
        return folder
    remote = Remote(name, _repo_id(name), _endpoint())
    if _offline():
        raise remote.failure(f"HF_HUB_OFFLINE is set; unset it, {BY_HAND}")
    from filelock import FileLock

    target = weights / remote.repo_id.split("/")[-1]
    staging = weights / f".{target.name}.partial"
    try:
        weights.mkdir(parents=True, exist_ok=True)
        with FileLock(weights / f".{target.name}.lock"):
            if folder := _local(name, weights):  # another process was faster
                return folder
            staging.mkdir(exist_ok=True)
            commit = download_all(remote, staging, progress)
            if lack := _lacks(staging):
                raise remote.failure(f"what the hub holds lacks {lack}; choose another model, {BY_HAND}")
            (staging / SOURCE).write_text(f"{remote.repo_id} at commit {commit}\n")
            if target.is_dir():
                target.rmdir()  # an empty one
            os.rename(staging, target)
    except OSError as error:
        raise remote.failure(f"{error}; make {weights} writable or free some space, then {RERUN}") from error
    return target


def _local(name: str, weights: Path) -> Path | None:
    """weights/<name> when it is whole and is that very model; None when there is none; else MinipeftError."""
    repo_id = _repo_id(name)
    folder = weights / repo_id.split("/")[-1]
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    if lack := _lacks(folder):
        raise MinipeftError(f"{folder} is no whole checkpoint: it lacks {lack}; move it away and run again")
    origin = (_source(folder) or _repo_id(folder.name)).split()[0]
    if "/" in repo_id and origin.lower() != repo_id.lower():
        raise MinipeftError(f"{folder} holds {origin}, not {repo_id}; move it away, or pass --model {folder}")
    return folder


def _source(folder: Path) -> str:
    return (folder / SOURCE).read_text().strip() if size_of(folder / SOURCE) else ""


def _in_words(folder: Path) -> str:
    return f"{folder.name} ({', '.join(filter(None, (_source(folder), f'in {folder}')))})"


def _lacks(folder: Path) -> str:
    """What keeps the folder from being a whole checkpoint, "" if nothing does."""
    try:
        if not isinstance(parse_json(read_small(folder / CONFIG)), dict):
            return "a readable config.json"
        if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
            return "tokenizer.json"
        names = {WEIGHTS}
        if not (folder / WEIGHTS).exists() and (folder / INDEX).exists():
            names = set(parse_json(read_small(folder / INDEX))["weight_map"].values())
        elif not (folder / WEIGHTS).exists() and size_of(folder / PICKLE):
            return ""
        broken = [name for name in names if Path(name).name != name or not _whole(folder / name)]
        return f"a whole {min(broken)}" if broken else ""
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"a readable file ({error})"


def _whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_SMALL_FILE:
            return False
        header = parse_json(file.read(length))
    header.pop("__metadata__", None)
    return size_of(path) == 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)


def _repo_id(name: str) -> str:
    part = r"(?!.*(\.\.|--))\w([\w.-]{0,94}\w)?"
    if not re.fullmatch(f"({part}/)?{part}", name, re.ASCII):
        raise MinipeftError(f"{name!r} is no model's name; pass 'roberta-base', 'owner/name' or a folder")
    return ALIASES.get(name, name)


def _endpoint() -> str:
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not re.fullmatch(r"https?://([\w.-]+|\[[\da-fA-F:]+\])(:\d{1,5})?(/\S*)?", endpoint, re.ASCII):
        raise MinipeftError(f"HF_ENDPOINT is {endpoint!r}, which is no http(s) address; correct or unset it")
    return endpoint.rstrip("/")


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
