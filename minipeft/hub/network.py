"""The Hugging Face hub's address, and whether it can be reached.

HF_ENDPOINT, HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE are read at each call.
"""

import math
import os
import re
import threading
import time

from minipeft.errors import MinipeftError

PROBE_SECONDS = 4.0  # longer than a slow hub takes, and less than the five seconds in which "auto" decides
PROBE_VALID_SECONDS = 10.0  # model and data are decided by one probe; a network may come or go later

_probes: dict[str, tuple[float, bool]] = {}  # by endpoint: when it was probed, and whether it answered


def endpoint() -> str:
    """Return the address of the hub, from HF_ENDPOINT where it is set."""
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not re.fullmatch(r"https?://([\w.-]+|\[[\da-fA-F:]+\])(:\d{1,5})?(/\S*)?", address, re.ASCII):
        raise MinipeftError(f"HF_ENDPOINT: {address!r} is not an http(s) address. Correct or unset it.")
    return address.rstrip("/")


def offline_variable() -> str | None:
    """Return the name of the variable that forbids requests, as huggingface_hub reads them, or None."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if value := os.environ.get(name):
            return name if value.upper() in ("1", "ON", "YES", "TRUE") else None
    return None


def datasets_offline_variable() -> str | None:
    """Return the name of the variable that forbids downloads of data sets, or None."""
    is_set = os.environ.get("HF_DATASETS_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return offline_variable() or ("HF_DATASETS_OFFLINE" if is_set else None)


def hub_reachable() -> bool:
    """Return whether the hub answers at all, decided in less than five seconds and valid for ten.

    A refused connection and a name that cannot be resolved mean that there is no network. A hub that has answered
    is reachable: a download that fails afterwards is an error.
    """
    address = endpoint()
    if offline_variable():
        return False
    probed, reachable = _probes.get(address, (-math.inf, False))
    if time.monotonic() - probed > PROBE_VALID_SECONDS:
        answers: list[bool] = []  # from a thread, because no timeout covers a name server that hangs
        probe = threading.Thread(target=lambda: answers.append(_responds(address)), daemon=True)
        probe.start()
        probe.join(PROBE_SECONDS)
        reachable = answers == [True]
        _probes[address] = time.monotonic(), reachable
    return reachable


def _responds(address: str) -> bool:
    from http.client import HTTPException
    from ssl import SSLCertVerificationError
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(address, method="HEAD"), timeout=PROBE_SECONDS).close()
    except HTTPError:
        return True  # an error status is an answer; the download retries it
    except (OSError, ValueError, HTTPException) as error:
        # An invalid certificate is an answer too: the download reports it.
        return isinstance(getattr(error, "reason", None), SSLCertVerificationError)
    return True
