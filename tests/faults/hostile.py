"""What the tests of hostile files share: how one is made, and what reading it may end with."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from minipeft import MinipeftError

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused(call: Callable[[], object], *words: str) -> str:
    """The message of the MinipeftError that a call ends with: one line that holds the words."""
    with pytest.raises(MinipeftError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and len(message) < 1000, message
    for word in words:
        assert word in message
    return message


def survived(call: Callable[[], object]) -> None:
    """A call gives a result or a MinipeftError of one line, nothing else."""
    try:
        call()
    except MinipeftError as error:
        assert len(str(error).splitlines()) == 1, str(error)


def safetensors(header: Any, data: bytes = b"", claimed: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + data


def damaged(data: st.DataObject, whole: bytes, reach: int | None = None) -> bytes:
    """Bytes with some of the first `reach` changed, taken out, put in or cut off."""
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, min(reach or len(whole), len(whole)) - 1)))
        kind = data.draw(st.sampled_from(["change", "take", "put", "cut"]))
        new = data.draw(st.binary(min_size=1, max_size=9)) if kind in ("change", "put") else b""
        rest = {"change": place + len(new), "take": place + data.draw(st.integers(1, 40)), "put": place}
        whole = whole[:place] + new + (whole[rest[kind] :] if kind in rest else b"")
    return whole
