"""--checkpoint-copy: the checkpoints of a run at a second address, such as s3://bucket/run, through fsspec."""

from functools import partial
from pathlib import Path
from typing import Any

from minipeft.errors import MinipeftError, first_line, logger, printable
from minipeft.files import make_folder, write_atomically
from minipeft.training.run_folder.checkpoint_files import FOLDER, has_checkpoint, list_checkpoints


def copy_checkpoint(folder: Path, address: str) -> None:
    """Copy the last checkpoint of a run and its config.json to an address, and remove older ones there.

    A copy that fails is reported; the training continues.
    """
    newest = list_checkpoints(folder)[0]
    try:
        filesystem, root = _open(address)
        filesystem.makedirs(f"{root}/{FOLDER}", exist_ok=True)
        filesystem.put_file(str(folder / "config.json"), f"{root}/config.json")
        copied, local = _names(filesystem, root), {path.name: path for path in newest.parent.glob("step-*")}
        # A checkpoint exists when its JSON file does: that comes last.
        for name in sorted(local, key=lambda name: name.endswith(".json")):
            if name not in copied or name.startswith(newest.stem):
                filesystem.put_file(str(local[name]), f"{root}/{FOLDER}/{name}")
        for name in copied:
            if name not in local:
                filesystem.rm_file(f"{root}/{FOLDER}/{name}")
    except Exception as error:  # each file system raises its own errors
        message = f"--checkpoint-copy {address}: {newest.name} was not copied ({first_line(error)})"
        logger.warning("%s", printable(message))


def fetch_checkpoint(folder: Path, address: str) -> None:
    """Bring a run without a checkpoint on this machine back from its copy, where there is one."""
    if has_checkpoint(folder):
        return
    try:
        filesystem, root = _open(address)
        if not filesystem.exists(f"{root}/config.json"):
            return
        make_folder(folder / FOLDER)
        names = sorted(_names(filesystem, root), key=lambda name: name.endswith(".json"))
        for name in ("config.json", *(f"{FOLDER}/{name}" for name in names)):
            write_atomically(folder / name, partial(filesystem.get_file, f"{root}/{name}"))
    except Exception as error:  # each file system raises its own errors
        raise MinipeftError(
            f"--checkpoint-copy {address}: cannot be read ({first_line(error)}). Check the address and its credentials."
        ) from None
    logger.warning("%s: the checkpoints were fetched from %s", folder, printable(address))


def _open(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    from fsspec.core import url_to_fs

    filesystem, root = url_to_fs(address)
    return filesystem, root.rstrip("/")


def _names(filesystem: Any, root: str) -> list[str]:
    """Return the names of the checkpoints' files at an address, as the server has them now."""
    filesystem.invalidate_cache()
    found = filesystem.ls(f"{root}/{FOLDER}", detail=False) if filesystem.exists(f"{root}/{FOLDER}") else []
    return [name for path in found if (name := path.rpartition("/")[2]).startswith("step-")]
