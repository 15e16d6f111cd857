"""A checkpoint of the Hugging Face hub → the Hugging Face cache, verified by size and hash."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipeft.errors import MinipeftError, first_line
from minipeft.files import sha256
from minipeft.hub.names import ALIASES, CONFIG, INDEX, PICKLE, TOKENIZER_FILES, TOKENIZERS, WEIGHTS
from minipeft.hub.network import endpoint, offline_variable
from minipeft.hub.retries import (
    ATTEMPTS,
    LONGEST_WAIT_SECONDS,
    describe_error,
    requested_wait,
    response_of,
    with_retries,
)

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
RERUN = "run the same command again"
BY_HAND = "put config.json, model.safetensors and tokenizer.json in a folder and pass --model DIR"
ANSWER_SECONDS = 10.0


def download_checkpoint(name: str, repo_id: str, revision: str | None) -> Path:
    """Download the config, tokenizer and weights of a model; return the snapshot's folder in the Hugging Face cache.

    `name` is what the user gave, for messages. A revision is a branch, a tag or a commit; None is the main branch.
    """
    if variable := offline_variable():
        raise _failure(name, f"{variable} is set and the model is not in the cache. Unset it, or {BY_HAND}.")
    endpoint()  # an invalid address is not a failed download
    try:
        return with_retries(lambda token: _download_once(name, repo_id, revision, token))
    except MinipeftError:
        raise
    except Exception as error:
        raise _failure(name, _explain(name, repo_id, revision, error)) from error


def _download_once(name: str, repo_id: str, revision: str | None, token: bool | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    hub = HfApi(endpoint=endpoint(), token=token)
    info = hub.model_info(repo_id, revision=revision, files_metadata=True, timeout=ANSWER_SECONDS)
    if not re.fullmatch("[0-9a-f]{40}", str(info.sha)):
        raise ValueError("the answer has no commit")
    for file in _choose(name, info.siblings or []):
        path = Path(hf_hub_download(repo_id, file.rfilename, revision=revision, endpoint=endpoint(), token=token))
        if path.parent.name != info.sha:
            raise OSError(f"{repo_id} was changed during the download")
        _verify(path, file)
    return path.parent


def _choose(name: str, listing: list[RepoSibling]) -> list[RepoSibling]:
    """Return the config, tokenizer and weights, the smallest first; a pickle only if there is no safetensors file."""
    names = {file.rfilename for file in listing}
    shards = {INDEX, *filter(SHARD.fullmatch, names)} if INDEX in names else set()
    weights = names & {WEIGHTS} or shards or names & {PICKLE}
    if CONFIG not in names or not weights or not any(tokenizer <= names for tokenizer in TOKENIZERS):
        if not weights and f"{PICKLE}.index.json" in names:
            raise _failure(
                name, f"the weights are shards of {PICKLE}; of shards only safetensors are read. Choose another model."
            )
        raise _failure(name, "config.json, the weights or tokenizer.json is missing. Choose another model.")
    wanted = {CONFIG, *weights, *TOKENIZER_FILES}
    chosen = [file for file in listing if file.rfilename in wanted]
    for file in chosen:
        if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", _expected(file)[1]) or _expected(file)[0] < 0:
            raise _failure(name, f"{file.rfilename} has no valid size and hash to verify it. Choose another model.")
    return sorted(chosen, key=lambda file: _expected(file)[0])


def _expected(file: RepoSibling) -> tuple[int, str]:
    """Return the size and the hash of a file: sha256 of a large file, git's sha1 of a small one."""
    return (file.lfs.size, str(file.lfs.sha256)) if file.lfs else (int(file.size or 0), str(file.blob_id))


def _verify(path: Path, file: RepoSibling) -> None:
    """Compare a downloaded file with the hub's size and hash, which huggingface_hub does not; delete a wrong one."""
    from huggingface_hub.utils.sha import git_hash

    size, expected = _expected(file)
    found = sha256(path) if len(expected) == 64 else git_hash(path.read_bytes())
    if path.stat().st_size != size or found != expected:
        path.resolve().unlink()  # the blob
        path.unlink(missing_ok=True)  # the link to it
        raise OSError(f"{path.name} arrived with a wrong size or hash and was deleted")


def _explain(name: str, repo_id: str, revision: str | None, error: Exception) -> str:
    """Return what is wrong and what to do."""
    from huggingface_hub import constants, get_token

    response: Any = response_of(error)
    if response is not None:
        status, code = response.status_code, response.headers.get("X-Error-Code", "")
        said = response.headers.get("X-Error-Message", "")
        wait = requested_wait(response)
        too_long = f", which asks for a wait of {wait:.0f} s"
        attempts = too_long if wait > LONGEST_WAIT_SECONDS else f", in {ATTEMPTS} attempts"
        if code == "GatedRepo":
            return f"access is restricted. Accept the terms at {endpoint()}/{repo_id} and set HF_TOKEN."
        if code == "RevisionNotFound":
            return f"revision {revision!r} does not exist. Check what follows the @."
        if not str(response.url).startswith(endpoint()):
            cause = "the link to a file has expired" if status == 403 else f"{describe_error(error)} for a file"
            return f"{cause}{attempts}. Wait a few minutes, then {RERUN}."
        close = difflib.get_close_matches(name, ALIASES, n=1, cutoff=0.8)
        check = f"Did you mean {close[0]!r}?" if close and name not in ALIASES else "Check the name"
        if status == 401 and get_token():
            return (
                f"the hub rejected the token ({said or status}), and without it the model. {check}, or renew HF_TOKEN."
            )
        if status in (401, 403):  # the hub answers 401 for a model that does not exist, too
            return f"{said or status}: the model does not exist or needs a token. {check}, or set HF_TOKEN."
        if status == 404:
            return f"404, the model does not exist. {check}."
        return f"{describe_error(error)}{attempts}. Wait a few minutes, then {RERUN}."
    if isinstance(error, (ValueError, KeyError, TypeError, AttributeError)):
        return "the answer is not that of a model hub. Check HF_ENDPOINT and the proxy."
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.strerror}. Make {constants.HF_HUB_CACHE} writable or free some space, then {RERUN}."
    if isinstance(error, OSError) and error.__cause__ is None:  # a wrong hash, or huggingface_hub's offline mode
        return f"{first_line(error)}. Check the network, then {RERUN}."
    return f"no answer ({describe_error(error)}). Check the network, HF_ENDPOINT and the proxy, or {BY_HAND}."


def _failure(name: str, reason: str) -> MinipeftError:
    return MinipeftError(" ".join(f"cannot fetch {name!r} from {endpoint()}: {reason}".split()))
