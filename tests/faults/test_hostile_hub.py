"""A hub that lies in its listing, and a checkpoint that lies in its header: nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import contents
from hostile import refused, safetensors
from hub_server import COMMIT, HubServer


class Hub(HubServer):
    """A hub whose listing is what a test makes of it."""

    change: dict[str, Any]

    def listing(self, repo: str) -> dict[str, Any]:
        return super().listing(repo) | self.change


LISTINGS: dict[str, dict[str, Any]] = {
    "a commit that is a path": {"sha": "../../../other/model"},
    "a commit of two lines": {"sha": COMMIT[:-2] + "\nx"},
    "an answer of 70 MiB": {"padding": " " * (70 << 20)},
    "files that are text": {"siblings": "config.json"},
    "a file that is a list": {"siblings": [["config.json"]]},
    "a size below nothing": {"siblings": [{"rfilename": "config.json", "size": -5, "blobId": "a" * 40}]},
    "a size of 400 digits": {"siblings": [{"rfilename": "config.json", "size": 10**400, "blobId": "a" * 40}]},
    "an absolute name": {"siblings": [{"rfilename": "/etc/passwd", "size": 1, "blobId": "a" * 40}]},
    "a name above the folder": {"siblings": [{"rfilename": "../config.json", "size": 1, "blobId": "a" * 40}]},
    "a hash that is a path": {"siblings": [{"rfilename": "config.json", "size": 1, "blobId": "../../../../a"}]},
}


@pytest.mark.parametrize("change", LISTINGS)
def test_a_listing_that_lies_writes_nothing(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minipeft.hub import hub

    server = Hub({"owner/model": {"config.json": b"{}"}})
    server.change = LISTINGS[change]
    server.start()
    try:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        refused(lambda: hub.fetch("owner/model", tmp_path / "weights", progress=False), "owner/model")
    finally:
        server.stop()
    assert set(contents(tmp_path)) <= {"weights/.model.lock"}


def test_a_header_of_weights_that_is_nested_deeply_is_no_whole_checkpoint(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a folder under weights/ is looked at before it is used."""
    from minipeft.hub import hub

    for text in (b"[" * 100_000, b'{"a":' * 50_000):
        (model / "model.safetensors").write_bytes(safetensors(text))
        refused(lambda: hub.fetch(model.name, model.parent), str(model))
        (model / "config.json").write_bytes(text)
        refused(lambda: hub.fetch(model.name, model.parent), str(model))
