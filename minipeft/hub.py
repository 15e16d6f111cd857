"""A model's name → a local folder under weights/, fetched from the Hugging Face hub and verified.

A download grows in weights/.<name>.partial, where it survives a cut or a kill, and becomes weights/<name> in one
rename once every size and hash is right. HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN are read at each call.
"""

import difflib
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from minipeft.errors import MinipeftError

FACEBOOK = ("roberta-base", "roberta-large", "xlm-roberta-base", "xlm-roberta-large")
ALIASES = {name: f"FacebookAI/{name}" for name in FACEBOOK}
ALIASES |= {"distilroberta-base": "distilbert/distilroberta-base", "camembert-base": "almanach/camembert-base"}
CONFIG, WEIGHTS, PICKLE = "config.json", "model.safetensors", "pytorch_model.bin"
INDEX, SHARD = "model.safetensors.index.json", re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
TOKENIZERS = ({"tokenizer.json"}, {"vocab.json", "merges.txt"})  # either is enough
EXTRAS = {"tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "sentencepiece.bpe.model"}
SOURCE = "source.txt"  # which repository and commit a fetched folder came from
PROBE_SECONDS, ANSWER_SECONDS = 2.5, 10.0
RERUN = "run the same command again, the download resumes"
BY_HAND = "or put config.json, model.safetensors and tokenizer.json in a folder and pass --model DIR"

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
    checkout = Path(__file__).resolve().parent.parent
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "weights"


def bundled(name: str = "roberta-mini") -> Path | None:
    """The checkpoint that comes with minipeft, in the checkout or in the installed package; None when absent."""
    package = Path(__file__).resolve().parent
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
    remote = _Remote(name, _repo_id(name), _endpoint())
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
            commit = _download_all(remote, staging, progress)
            if lack := _lacks(staging):
                raise remote.failure(f"what the hub holds lacks {lack}; choose another model, {BY_HAND}")
            (staging / SOURCE).write_text(f"{remote.repo_id} at commit {commit}\n")
            if target.is_dir():
                target.rmdir()  # an empty one
            os.rename(staging, target)
    except OSError as error:
        raise remote.failure(f"{error}; make {weights} writable or free some space, then {RERUN}") from error
    return target


class _File(NamedTuple):
    name: str
    size: int
    digest: str  # sha256 of a large file, git's sha1 of a small one


class _Remote(NamedTuple):
    name: str
    repo_id: str
    endpoint: str

    def failure(self, reason: str) -> MinipeftError:
        return MinipeftError(" ".join(f"cannot fetch {self.name!r} from {self.endpoint}: {reason}".split()))

    def refusal(self, status: int, code: str, what: str) -> MinipeftError:
        close = difflib.get_close_matches(self.name, ALIASES, n=1, cutoff=0.8)
        check = f"did you mean {close[0]!r}?" if close and self.name not in ALIASES else "check the name"
        if code == "GatedRepo":
            return self.failure(f"gated; accept its terms at {self.endpoint}/{self.repo_id} and set HF_TOKEN")
        if status in (401, 403):  # the hub says 401 for a model that does not exist, too
            return self.failure(f"{status} for the {what}; {check}, and set HF_TOKEN if it needs a token")
        if status == 404:
            return self.failure(f"404, there is no such {what}; {check}")
        return self.failure(f"{status} for the {what}; wait a little, then {RERUN}")

    @contextmanager
    def get(self, path: str, what: str, start: int = 0) -> Iterator[Any]:
        """The streamed response to a GET from byte `start` on. Raises ConnectionError when the network fails.

        The hub's own client minds proxies and certificates, and keeps the token from other hosts.
        """
        from huggingface_hub import get_session, get_token
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

        headers = {"Accept-Encoding": "identity", "User-Agent": "minipeft"}
        headers |= {"Range": f"bytes={start}-"} if start else {}
        if token := get_token():
            if not re.fullmatch(r"[!-~]+", token):
                raise self.failure("HF_TOKEN holds a character that no token has; set it again")
            headers["Authorization"] = f"Bearer {token}"
        options: dict[str, Any] = {"headers": headers, "timeout": ANSWER_SECONDS, "follow_redirects": True}
        try:
            with get_session().stream("GET", self.endpoint + path, **options) as response:
                if response.status_code not in (200, 206):
                    raise self.refusal(response.status_code, response.headers.get("X-Error-Code", ""), what)
                yield response
        except HTTPError as error:
            raise ConnectionError(str(error) or type(error).__name__) from error


def _download_all(remote: _Remote, staging: Path, progress: bool) -> str:
    """Fill the staging folder with the verified files of the hub's newest commit; returns that commit."""
    from tqdm import tqdm

    commit, listing = _listing(remote)
    parts = {file: staging / f"{file.name}.{file.digest[:16]}.part" for file in _choose(remote, listing)}
    for file in parts:  # what an earlier run left whole is read again: a power loss may have cut it
        if (whole := staging / file.name).exists() and _digest(whole, file) != file.digest:
            whole.unlink()
    for path in {*staging.iterdir()} - {*parts.values()} - {staging / file.name for file in parts}:
        path.unlink()  # of an older commit, or of another model with that name
    here = sum(_size(staging / file.name) or _size(part) for file, part in parts.items())
    total = sum(file.size for file in parts)
    disable = None if progress else True  # None: shown on a terminal only
    with tqdm(total=total, initial=here, unit="B", unit_scale=True, desc=remote.name, disable=disable) as bar:
        for file, part in parts.items():
            if not (staging / file.name).exists():
                _download(remote, commit, file, part, bar)
                os.replace(part, staging / file.name)
    return commit


def _listing(remote: _Remote) -> tuple[str, list[_File]]:
    """The newest commit and its files with their sizes and hashes, as the hub's API gives them."""
    try:
        with remote.get(f"/api/models/{remote.repo_id}?blobs=true", "model") as response:
            answer = json.loads(response.read())
        files = []
        for entry in answer["siblings"]:
            large = entry.get("lfs") or {}
            size, digest = large.get("size") or entry.get("size"), large.get("sha256") or entry.get("blobId")
            files.append(_File(str(entry["rfilename"]), int(size or 0), str(digest)))
        commit = str(answer["sha"])
    except ConnectionError as error:
        reason = f"no answer ({error}); check the network, HF_ENDPOINT and the proxy, {BY_HAND}"
        raise remote.failure(reason) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise remote.failure("its answer is no model hub's; check HF_ENDPOINT and the proxy") from error
    for name in (file.name for file in files):
        if ".." in name.split("/") or name.startswith("/") or "\\" in name:
            raise remote.failure(f"it lists a file named {name!r}, which is refused; choose another model")
    return commit, files


def _choose(remote: _Remote, listing: list[_File]) -> list[_File]:
    """Config, tokenizer and weights, the smallest first; a pickle only where there is no safetensors."""
    names = {file.name for file in listing}
    shards = {INDEX, *filter(SHARD.fullmatch, names)} if INDEX in names else set()
    weights = names & {WEIGHTS} or shards or names & {PICKLE}
    if CONFIG not in names or not weights or not any(tokenizer <= names for tokenizer in TOKENIZERS):
        raise remote.failure("it lacks config.json, weights or tokenizer.json; choose another model")
    wanted = {CONFIG, *EXTRAS, *weights}.union(*TOKENIZERS)
    chosen = sorted((file for file in listing if file.name in wanted), key=lambda file: file.size)
    for file in chosen:
        if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", file.digest):
            raise remote.failure(f"{file.name} comes without a hash to verify it by; choose another model")
    return chosen


def _download(remote: _Remote, commit: str, file: _File, part: Path, bar: Any) -> None:
    """Append to the part until it is whole, as long as every attempt brings new bytes; then verify it."""
    part.touch()
    while (start := _size(part)) < file.size:
        cut = "the connection ended early"
        try:
            with remote.get(f"/{remote.repo_id}/resolve/{commit}/{file.name}", file.name, start) as response:
                resumed = response.status_code == 206
                bar.update(0 if resumed else -start)
                with part.open("ab" if resumed else "wb") as out:
                    for chunk in response.iter_raw():
                        bar.update(out.write(chunk))
                        if out.tell() > file.size:
                            break
        except ConnectionError as error:
            cut = str(error)
        if _size(part) <= start:
            raise remote.failure(f"{file.name} was cut at {start:,} of {file.size:,} bytes ({cut}); {RERUN}")
    if _digest(part, file) != file.digest:
        part.unlink()
        raise remote.failure(f"{file.name} arrived with a wrong size or hash and was deleted; {RERUN}")


def _digest(path: Path, file: _File) -> str:
    """The file's sha256, or git's sha1 of its blob, whichever the hub gave; "" when its size is wrong."""
    digest = hashlib.sha256() if len(file.digest) == 64 else hashlib.sha1(b"blob %d\0" % file.size)
    with path.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() if _size(path) == file.size else ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


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
    return (folder / SOURCE).read_text().strip() if _size(folder / SOURCE) else ""


def _in_words(folder: Path) -> str:
    return f"{folder.name} ({', '.join(filter(None, (_source(folder), f'in {folder}')))})"


def _lacks(folder: Path) -> str:
    """What keeps the folder from being a whole checkpoint, "" if nothing does."""
    try:
        if not isinstance(json.loads((folder / CONFIG).read_text()), dict):
            return "a readable config.json"
        if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
            return "tokenizer.json"
        names = {WEIGHTS}
        if not (folder / WEIGHTS).exists() and (folder / INDEX).exists():
            names = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
        elif not (folder / WEIGHTS).exists() and _size(folder / PICKLE):
            return ""
        broken = [name for name in names if Path(name).name != name or not _whole(folder / name)]
        return f"a whole {min(broken)}" if broken else ""
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"a readable file ({error})"


def _whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, _size(path))))
    header.pop("__metadata__", None)
    return _size(path) == 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)


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
