"""A hub whose listing is invalid, and a checkpoint whose header is: nothing is written outside the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hostile import refused, safetensors
from hub_server import COMMIT, HubServer, git_sha1
from hub_support import checkpoint

import minipeft.hub as hub

pytest_plugins = ["hub_fixtures"]


class Hub(HubServer):
    """A hub whose listing is what a test makes of it."""

    change: dict[str, Any]

    def listing(self, repo: str) -> dict[str, Any]:
        return super().listing(repo) | self.change


def siblings(**config: Any) -> dict[str, Any]:
    """A complete listing with another entry for config.json."""
    entry = {"rfilename": "config.json", "size": 2, "blobId": git_sha1(b"{}")}
    others = [{"rfilename": name, "size": 1, "blobId": "a" * 40} for name in ("tokenizer.json", "model.safetensors")]
    return {"siblings": [entry | config, *others]}


LISTINGS: dict[str, dict[str, Any]] = {
    "a commit that is a path": {"sha": "../../../other/model"},
    "a commit of two lines": {"sha": COMMIT[:-2] + "\nx"},
    "files that are text": {"siblings": "config.json"},
    "a file that is a list": {"siblings": [["config.json"]]},
    "a negative size": siblings(size=-5),
    "a size of 400 digits": siblings(size=10**400),
    "an absolute name": siblings(rfilename="/etc/passwd"),
    "a name above the folder": siblings(rfilename="../config.json"),
    "a hash that is a path": siblings(blobId="../../../../a"),
    "no hash": siblings(blobId=None),
}


@pytest.mark.parametrize("change", LISTINGS)
def test_an_invalid_listing_downloads_nothing(
    change: str, server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = Hub({"owner/model": checkpoint(0.1)})
    hostile.change = LISTINGS[change]
    hostile.start()
    try:
        monkeypatch.setenv("HF_ENDPOINT", hostile.url)
        refused(lambda: hub.fetch("owner/model"), "owner/model")
    finally:
        hostile.stop()
    assert not list(cache.parent.rglob("*.json"))
    assert not hostile.asked("cdn", "")


@pytest.mark.parametrize("name", ["../../evil.json", "/etc/evil.json", "a\\..\\config.json", "x/../config.json"])
def test_a_file_with_a_hostile_name_is_not_downloaded(server: HubServer, cache: Path, name: str) -> None:
    server.extra_names = [name]
    assert hub.fetch("owner/model").is_relative_to(cache)
    assert {path.name for path in cache.rglob("*.json")} == {"config.json", "tokenizer.json"}
    assert not server.asked("hub", "evil")


@pytest.mark.parametrize("commit", ["../../../other", "..", "a/b"])
def test_a_commit_in_a_header_that_is_a_path_writes_nothing_outside_the_cache(
    server: HubServer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: str
) -> None:
    """The listing names a valid commit, and the header of the file another."""
    valid = server.listing("owner/model")
    server.commit = commit
    monkeypatch.setattr(server, "listing", lambda repo: valid)
    refused(lambda: hub.fetch("owner/model"), "owner/model")
    assert not [path for path in tmp_path.rglob("*.json") if not path.is_relative_to(cache / "models--owner--model")]


def test_a_header_that_is_nested_deeply_is_a_damaged_checkpoint(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint in weights/ is checked before it is used."""
    monkeypatch.setattr(hub, "weights_folder", lambda: model.parent)
    assert str(cache) == huggingface_hub.constants.HF_HUB_CACHE
    for text in (b"[" * 100_000, b'{"a":' * 50_000):
        (model / "model.safetensors").write_bytes(safetensors(text))
        refused(lambda: hub.fetch(model.name), str(model))
        (model / "config.json").write_bytes(text)
        refused(lambda: hub.fetch(model.name), str(model))
