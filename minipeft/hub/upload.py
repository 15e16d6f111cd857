"""An adapter or a merged checkpoint → a model repository of the Hugging Face hub."""

import json
from pathlib import Path
from typing import Any

from minipeft.errors import MinipeftError, first_line
from minipeft.files import read_json, user_path
from minipeft.hub.names import REPO_ID, base_name
from minipeft.hub.network import endpoint, offline_variable
from minipeft.hub.retries import describe_error, response_of

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
CHECKPOINT = ("config.json", "model.safetensors")
CARD = "README.md"
FURTHER = (CARD, "*.json", "vocab.txt", "merges.txt", "spm.model", "*.model", "*.safetensors")


def push(folder: str | Path, repo_id: str, private: bool = False, dry_run: bool = False) -> str:
    """Upload a run's adapter, an adapter folder or a merged checkpoint as one commit.

    The uploaded adapter_config.json names the base model as the hub does, without a path of this machine. A repository
    that does not exist is created, `private` or not.

    Returns:
        The repository's address; with `dry_run` the files and their sizes, one per line.

    Raises:
        MinipeftError: for another folder, without a token, and for an error of the hub; nothing is uploaded in part.
    """
    if not REPO_ID.fullmatch(repo_id):
        raise MinipeftError(f"{repo_id!r} is not the name of a repository. Write it as owner/name.")
    files = _files(user_path(folder), repo_id)
    if dry_run:
        sizes = {
            name: len(file) if isinstance(file, bytes) else Path(file).stat().st_size for name, file in files.items()
        }
        lines = [f"{name}  {size:,} bytes" for name, size in sizes.items()]
        return "\n".join([*lines, f"dry run: nothing was uploaded to {endpoint()}/{repo_id}"])
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if variable := offline_variable():
        raise MinipeftError(f"cannot push to {repo_id}: {variable} is set. Unset it, or pass --dry-run.")
    if get_token() is None:
        raise MinipeftError(
            f"cannot push to {repo_id}: there is no token. Set HF_TOKEN or run `hf auth login`; "
            "--dry-run lists the files without one."
        )
    hub = HfApi(endpoint=endpoint())
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    try:
        hub.create_repo(repo_id, private=private, exist_ok=True)
        hub.create_commit(repo_id, operations, commit_message="Upload with minipeft")
    except Exception as error:  # the library passes on the errors of every layer below it
        raise MinipeftError(f"cannot push to {repo_id} on {endpoint()}: {_explain(error)}") from None
    return f"{endpoint()}/{repo_id}"


def _files(folder: Path, repo_id: str) -> dict[str, str | bytes]:
    """Return the path, or the new content, of every file to upload, by its name in the repository."""
    source = folder / "adapter" if (folder / "adapter" / ADAPTER[0]).is_file() else folder
    kind = next((names for names in (ADAPTER, CHECKPOINT) if (source / names[0]).is_file()), None)
    if kind is None or not (source / kind[1]).is_file():
        raise MinipeftError(f"{folder}: no adapter and no merged checkpoint in it. Name a run with a finished epoch.")
    names = {path.name for pattern in (*kind, *FURTHER) for path in source.glob(pattern)}
    files: dict[str, str | bytes] = {name: str(source / name) for name in sorted(names)}
    if kind is ADAPTER:
        content = read_json(source / ADAPTER[0])
        base = content.get("base_model_name_or_path")
        content["base_model_name_or_path"] = base_name(base) if isinstance(base, str) else base
        files[ADAPTER[0]] = (json.dumps(content, indent=2) + "\n").encode()
        if CARD in files:
            files[CARD] = _card((source / CARD).read_text(encoding="utf-8"), repo_id).encode()
    return files


def _card(text: str, repo_id: str) -> str:
    """Return a model card whose commands open the repository, not a folder."""
    text = text.replace(" (`FOLDER` is this folder)", "")
    text = text.replace("import minipeft\n", "import minipeft\nfrom huggingface_hub import snapshot_download\n")
    text = text.replace('load_run("FOLDER"', f'load_run(snapshot_download("{repo_id}")')
    return text.replace('"FOLDER"', f'"{repo_id}"')


def _explain(error: Exception) -> str:
    """Return what is wrong and what to do."""
    response: Any = response_of(error)
    if response is None:
        return f"{describe_error(error)}. Check the network and HF_ENDPOINT, then run the same command again."
    said = response.headers.get("X-Error-Message") or first_line(error)
    if response.status_code == 401:
        return f"the token is not valid ({said}). Renew HF_TOKEN."
    if response.status_code == 403:
        return f"the token may not write there ({said}). Use a token with write access, or another owner."
    return f"{response.status_code}, {said}. Run the same command again later."
