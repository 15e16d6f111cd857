"""One checkpoint's files from the Hugging Face hub: listed, chosen, downloaded in resumable parts, verified.

huggingface_hub lends its HTTP session and token; its own download functions keep no part of a file that was cut.
"""

import difflib
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from minipeft.errors import MinipeftError, shown
from minipeft.files import LARGEST_SMALL_FILE, parse_json

FACEBOOK = ("roberta-base", "roberta-large", "xlm-roberta-base", "xlm-roberta-large")
BERT = ("bert-base-uncased", "bert-base-cased", "bert-large-uncased", "bert-large-cased")
ALIASES = {name: f"FacebookAI/{name}" for name in FACEBOOK} | {name: f"google-bert/{name}" for name in BERT}
ALIASES |= {"distilroberta-base": "distilbert/distilroberta-base", "camembert-base": "almanach/camembert-base"}
CONFIG, WEIGHTS, PICKLE = "config.json", "model.safetensors", "pytorch_model.bin"
INDEX, SHARD = "model.safetensors.index.json", re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
TOKENIZERS = ({"tokenizer.json"}, {"vocab.json", "merges.txt"})  # either is enough
EXTRAS = {"tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "sentencepiece.bpe.model"}
RERUN = "run the same command again, the download resumes"
BY_HAND = "or put config.json, model.safetensors and tokenizer.json in a folder and pass --model DIR"
ANSWER_SECONDS = 10.0


class _File(NamedTuple):
    name: str
    size: int
    digest: str  # sha256 of a large file, git's sha1 of a small one


class Remote(NamedTuple):
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


def download_all(remote: Remote, staging: Path, progress: bool) -> str:
    """Fill the staging folder with the verified files of the hub's newest commit; returns that commit."""
    from tqdm import tqdm

    commit, listing = _listing(remote)
    parts = {file: staging / f"{file.name}.{file.digest[:16]}.part" for file in _choose(remote, listing)}
    for file in parts:  # what an earlier run left whole is read again: a power loss may have cut it
        if (whole := staging / file.name).exists() and _digest(whole, file) != file.digest:
            whole.unlink()
    for path in {*staging.iterdir()} - {*parts.values()} - {staging / file.name for file in parts}:
        path.unlink()  # of an older commit, or of another model with that name
    here = sum(size_of(staging / file.name) or size_of(part) for file, part in parts.items())
    total = sum(file.size for file in parts)
    disable = None if progress else True  # None: shown on a terminal only
    with tqdm(total=total, initial=here, unit="B", unit_scale=True, desc=remote.name, disable=disable) as bar:
        for file, part in parts.items():
            if not (staging / file.name).exists():
                _download(remote, commit, file, part, bar)
                os.replace(part, staging / file.name)
    return commit


def _listing(remote: Remote) -> tuple[str, list[_File]]:
    """The newest commit and its files with their sizes and hashes, as the hub's API gives them."""
    try:
        with remote.get(f"/api/models/{remote.repo_id}?blobs=true", "model") as response:
            answer = parse_json(_read(response))
        files = []
        for entry in answer["siblings"]:
            large = entry.get("lfs") or {}
            size, digest = large.get("size") or entry.get("size"), large.get("sha256") or entry.get("blobId")
            files.append(_File(str(entry["rfilename"]), int(size or 0), str(digest)))
        commit = str(answer["sha"])
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise ValueError(f"{shown(commit)} is no commit")
    except ConnectionError as error:
        reason = f"no answer ({error}); check the network, HF_ENDPOINT and the proxy, {BY_HAND}"
        raise remote.failure(reason) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise remote.failure("its answer is no model hub's; check HF_ENDPOINT and the proxy") from error
    for name in (file.name for file in files):
        if ".." in name.split("/") or name.startswith("/") or "\\" in name:
            raise remote.failure(f"it lists a file named {name!r}, which is refused; choose another model")
    return commit, files


def _read(response: Any) -> bytes:
    """The body of an answer that has no business being large."""
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > LARGEST_SMALL_FILE:
            raise ValueError("the answer does not end")
    return bytes(body)


def _choose(remote: Remote, listing: list[_File]) -> list[_File]:
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


def _download(remote: Remote, commit: str, file: _File, part: Path, bar: Any) -> None:
    """Append to the part until it is whole, as long as every attempt brings new bytes; then verify it."""
    part.touch()
    while (start := size_of(part)) < file.size:
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
        if size_of(part) <= start:
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
    return digest.hexdigest() if size_of(path) == file.size else ""


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
