"""A remote file (https://, s3://, hf://, … through fsspec) → a local copy in the cache of `datasets`."""

import hashlib
import json
import os
import re
import time
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Any

from minipeft.errors import MinipeftError, first_line, logger, printable
from minipeft.files import make_folder
from minipeft.hub.network import datasets_offline_variable

ATTEMPTS = 3
CONNECT_SECONDS, READ_SECONDS, WAIT_SECONDS = 5.0, 60.0, 0.5
# The fields of a file's version, as the file systems of fsspec name them.
VERSION_FIELDS = ("size", "ETag", "etag", "Last-Modified", "LastModified", "blob_id", "mtime")


def is_remote(path: str) -> bool:
    """Whether a path is an address such as https://host/file.csv."""
    return re.match(r"[a-z][a-z0-9+.-]+://", path) is not None


@lru_cache
def local_copy(path: str) -> str:
    """Return a local path unchanged, and an address as the path of its local copy.

    An address is looked up once per process. A version that is already in the cache is not downloaded again; without
    a network the version that was downloaded last is used.
    """
    if not is_remote(path):
        return path
    from datasets import config

    folder = Path(config.DOWNLOADED_DATASETS_PATH) / "minipeft" / hashlib.sha256(path.encode()).hexdigest()
    copies = sorted(folder.glob("[!.]*"), key=lambda copy: copy.stat().st_mtime)
    if variable := datasets_offline_variable():
        if not copies:
            raise MinipeftError(f"{path}: {variable} is set, and the file is not in the cache. Unset it.")
        return str(copies[-1])
    try:
        return str(_download_file(path, folder))
    except MinipeftError:
        raise
    except ImportError as error:  # aiohttp for https, s3fs for s3, …
        remedy = " Run pip install 'minipeft[remote]'." if path.startswith("http") else ""
        raise MinipeftError(f"{path}: {first_line(error)}.{remedy}") from None
    except Exception as error:  # each file system raises its own
        if _is_missing(error):
            raise MinipeftError(f"{path}: not found. Check the address.") from None
        reason = first_line(error.__cause__ or error)
        if not copies:
            raise MinipeftError(f"{path}: cannot be downloaded ({reason}). Try again.") from None
        logger.warning("%s", printable(f"{path}: cannot be downloaded ({reason}). The copy in the cache is used."))
        return str(copies[-1])


def _download_file(path: str, folder: Path) -> Path:
    from fsspec.core import url_to_fs

    for attempt in range(1, ATTEMPTS + 1):
        try:
            files, name = url_to_fs(path, **_options(path))
            info = files.info(name)
            version = json.dumps({field: str(info[field]) for field in VERSION_FIELDS if info.get(field) is not None})
            copy = folder / hashlib.sha256(version.encode()).hexdigest()
            if not copy.is_file():
                make_folder(folder)
                temporary = folder / f".{uuid.uuid4().hex}.partial"
                files.get_file(name, str(temporary))
                os.replace(temporary, copy)
            return copy
        except Exception as error:
            if attempt == ATTEMPTS or _is_missing(error) or isinstance(error, (ImportError, ValueError, MinipeftError)):
                raise
            time.sleep(attempt * WAIT_SECONDS)
    raise AssertionError


def _is_missing(error: Exception) -> bool:
    """Whether a file does not exist; fsspec raises FileNotFoundError for every failure of an HTTP server."""
    cause = error.__cause__
    return isinstance(error, FileNotFoundError) and (cause is None or getattr(cause, "status", None) == 404)


def _options(path: str) -> dict[str, Any]:
    """Return fsspec's options: for http the proxy of the environment, and no endless wait."""
    if not path.startswith(("http://", "https://")):
        return {}
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    return {"client_kwargs": {"trust_env": True, "timeout": timeout}}
