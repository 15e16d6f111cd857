"""Fixtures: a hub on 127.0.0.1, an empty Hugging Face cache, and a checkout with an empty weights/."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import huggingface_hub
import pytest
from hub_server import HubServer
from hub_support import ROBERTA, checkpoint, load_from

from minipeft.hub import network, retries


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the Hugging Face cache."""
    folder = tmp_path / "cache" / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    running = HubServer({ROBERTA: checkpoint(), "owner/model": checkpoint(0.1)})
    running.start()
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(retries, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(network, "_probes", {})  # an earlier test's server may have had the same port
    proxies = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", *proxies):
        monkeypatch.delenv(variable, raising=False)
    yield running
    running.stop()


@pytest.fixture
def checkout(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """hub.py loaded from another checkout, so that weights/ is empty and the test's."""
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    return load_from(tmp_path / "minipeft")
