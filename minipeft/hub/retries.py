"""Requests to the Hugging Face hub that are repeated after transient errors."""

import random
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from minipeft.errors import MinipeftError, first_line, logger
from minipeft.hub.network import endpoint

ATTEMPTS = 6
FIRST_WAIT_SECONDS = 1.0  # before the second attempt; each further wait is twice as long
LONGEST_WAIT_SECONDS = 120.0  # a server that asks for more ends the retries
TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)

T = TypeVar("T")


def with_retries(call: Callable[[bool | None], T]) -> T:
    """Return ``call(token)``, repeated after transient errors, and without the token if the hub rejects it.

    The hub answers 401 to an invalid token even for a public repository. The waits between the attempts grow
    exponentially, with jitter, and are at least what Retry-After asks for. `call` takes the argument `token` of
    huggingface_hub: None (the user's token) or False (none). Its last error is raised.
    """
    from huggingface_hub import get_session, get_token

    if (secret := get_token()) and not re.fullmatch(r"[!-~]+", secret):
        raise MinipeftError("HF_TOKEN: the token contains an invalid character. Set it again.")
    token: bool | None = None
    attempt = 1
    while True:
        hooks = get_session().event_hooks["response"]
        hooks += [] if _raise_on_long_wait in hooks else [_raise_on_long_wait]
        try:
            return call(token)
        except Exception as error:  # the libraries let through the errors of every layer below them
            response = response_of(error)
            if response is not None and response.status_code == 401 and token is None and secret:
                reason = response.headers.get("X-Error-Message", "401")
                logger.warning("HF_TOKEN: the hub rejected the token (%s). Trying without it.", reason)
                token = False
                continue
            wait = max(FIRST_WAIT_SECONDS * 2 ** (attempt - 1) * random.uniform(0.75, 1.25), requested_wait(response))
            if attempt == ATTEMPTS or wait > LONGEST_WAIT_SECONDS or not _is_transient(error):
                raise
            logger.warning("%s: %s. Next attempt in %.0f s.", endpoint(), describe_error(error), wait)
        time.sleep(wait)
        attempt += 1


def _raise_on_long_wait(response: Any) -> None:
    """Raise for an answer that asks for too long a wait: huggingface_hub would sleep for that time, several times."""
    if response.status_code in TRANSIENT_STATUSES and requested_wait(response) > LONGEST_WAIT_SECONDS:
        response.raise_for_status()


def response_of(error: BaseException) -> Any:
    """Return the HTTP response that caused an error, or None if there was none."""
    return getattr(_http_error(error), "response", None)


def describe_error(error: BaseException) -> str:
    """Return the status and the host of the response that caused an error, else the error's first line."""
    response = response_of(error)
    if response is None:
        return first_line(_http_error(error) or error)
    return f"{response.status_code} from {response.url.host}"


def _http_error(error: BaseException | None) -> BaseException | None:
    """Return the first HTTP error in a chain of causes."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    while error is not None and not isinstance(error, HTTPError):
        error = error.__cause__ or error.__context__
    return error


def _is_transient(error: Exception) -> bool:
    """Return whether the same request may succeed later."""
    response = response_of(error)
    if response is not None:
        # 403 without the hub's error code comes from a storage host: the signature of the link has expired.
        expired = not str(response.url).startswith(endpoint()) and "X-Error-Code" not in response.headers
        return response.status_code in TRANSIENT_STATUSES or (response.status_code == 403 and expired)
    if _http_error(error) is not None:
        return True  # no answer, or a cut connection
    # A wrong size or hash, or an error of hf_xet; the errors of the file system have a number.
    transient = type(error) in (OSError, ConnectionError, TimeoutError, RuntimeError)
    return transient and getattr(error, "errno", None) is None


def requested_wait(response: Any) -> float:
    """Return the seconds that Retry-After, or the hub's header of the rate limit, asks a client to wait."""
    if response is None:
        return 0.0
    seconds = response.headers.get("Retry-After", "").strip()
    limit = re.search(r"r=0;\s*t=(\d+)", response.headers.get("ratelimit", ""))
    return float(seconds if seconds.isdecimal() else limit[1] if limit else 0)
