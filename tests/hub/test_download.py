"""download.py, retries.py and network.py against a server on 127.0.0.1 that answers, and fails, as the hub does."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import huggingface_hub
import pytest
import torch
from hub_server import COMMIT, Failure, HubServer, git_sha1
from hub_support import ROBERTA, checkpoint, error_of, refused_address, start_python
from huggingface_hub.utils import _http
from safetensors.torch import load_file, save

from minipeft.errors import MinipeftError
from minipeft.hub import network, retries

pytest_plugins = ["hub_fixtures"]

REJECTED_TOKEN = "Invalid credentials in Authorization header"


# What a download writes


def test_a_download_has_the_layout_of_the_hugging_face_cache(
    server: HubServer, checkout: ModuleType, cache: Path
) -> None:
    folder = checkout.fetch("roberta-base")
    repository = cache / "models--FacebookAI--roberta-base"
    assert folder == repository / "snapshots" / COMMIT
    assert (repository / "refs" / "main").read_text() == COMMIT
    assert (folder / "model.safetensors").resolve().parent == repository / "blobs"
    files = server.repos[ROBERTA]
    names = {"config.json", "tokenizer.json", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    assert all((folder / name).read_bytes() == files[name] for name in names)
    assert len(load_file(folder / "model.safetensors")) == 4
    assert not server.asked("hub", "pytorch_model.bin") and len(server.asked("cdn", "model.safetensors")) == 1


def test_shards_are_downloaded_with_their_index(server: HubServer, checkout: ModuleType) -> None:
    files = server.repos["owner/model"]
    shards = {f"model-0000{i}-of-00002.safetensors": save({f"w{i}": torch.randn(30_000)}) for i in (1, 2)}
    index = {"weight_map": {f"w{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}}
    del files["model.safetensors"]
    files |= shards | {"model.safetensors.index.json": json.dumps(index).encode()}
    folder = checkout.fetch("owner/model")
    assert {path.name for path in folder.glob("*.safetensors")} == set(shards)
    server.down = True
    assert checkout.fetch("owner/model") == folder
    server.down = False
    (folder / "model-00002-of-00002.safetensors").unlink()  # the rest is in the cache
    assert checkout.fetch("owner/model") == folder and (folder / "model-00002-of-00002.safetensors").is_file()


def test_a_shard_that_the_repository_lacks_is_reported(server: HubServer, checkout: ModuleType) -> None:
    files = server.repos["owner/model"]
    del files["model.safetensors"]
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors", "v": "../model.safetensors"}}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    assert "is missing or damaged" in error_of(checkout.fetch, "owner/model")


def test_shards_of_a_pickle_are_named(server: HubServer, checkout: ModuleType) -> None:
    files = server.repos["owner/model"]
    for name in ("model.safetensors", "pytorch_model.bin"):
        del files[name]
    files |= {"pytorch_model.bin.index.json": b"{}", "pytorch_model-00001-of-00001.bin": b"x"}
    assert "the weights are shards of pytorch_model.bin" in error_of(checkout.fetch, "owner/model")


def test_a_pickle_is_downloaded_only_if_there_is_no_safetensors_file(server: HubServer, checkout: ModuleType) -> None:
    del server.repos["owner/model"]["model.safetensors"]
    folder = checkout.fetch("owner/model")
    assert (folder / "pytorch_model.bin").read_bytes() == server.repos["owner/model"]["pytorch_model.bin"]


@pytest.mark.parametrize(
    ("name", "repository", "tokenizer"),
    [
        ("deberta-v3-base", "microsoft/deberta-v3-base", "spm.model"),  # the hub has no tokenizer.json of it
        ("electra-small-discriminator", "google/electra-small-discriminator", "vocab.txt"),
        ("distilbert-base-uncased", "distilbert/distilbert-base-uncased", "tokenizer.json"),
        ("modernbert-large", "answerdotai/ModernBERT-large", "tokenizer.json"),
    ],
)
def test_families_are_found_by_name_with_the_tokenizer_that_they_have(
    server: HubServer, checkout: ModuleType, name: str, repository: str, tokenizer: str
) -> None:
    files = checkpoint(0.1)
    files[tokenizer] = files.pop("tokenizer.json")
    server.repos[repository] = files
    folder = checkout.fetch(name)
    assert {path.name for path in folder.iterdir()} == {"config.json", tokenizer, "model.safetensors"}
    server.down = True
    assert checkout.fetch(name) == folder


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_repository_without_a_config_or_a_tokenizer_is_an_error(
    server: HubServer, checkout: ModuleType, missing: str
) -> None:
    del server.repos["owner/model"][missing]
    assert missing in error_of(checkout.fetch, "owner/model")


def test_a_pinned_revision_is_its_own_snapshot(server: HubServer, checkout: ModuleType) -> None:
    first = checkout.fetch("owner/model")
    server.commit, server.repos["owner/model"] = "f" * 40, checkpoint(0.2)
    assert checkout.fetch("owner/model") == first  # the cache comes before the hub
    pinned = checkout.fetch(f"owner/model@{'f' * 40}")
    assert pinned.name == "f" * 40
    assert (pinned / "model.safetensors").read_bytes() == server.repos["owner/model"]["model.safetensors"]
    assert checkout.fetch(f"owner/model@{COMMIT}") == first
    assert "revision 'v9' does not exist" in error_of(checkout.fetch, "owner/model@v9")
    assert "revision is invalid" in error_of(checkout.fetch, "owner/model@../x")


def test_a_renamed_repository_is_followed_to_its_canonical_name(server: HubServer, checkout: ModuleType) -> None:
    server.renamed = {"old-owner/old-name": "owner/model"}
    folder = checkout.fetch("old-owner/old-name")
    assert (folder / "config.json").read_bytes() == server.repos["owner/model"]["config.json"]


# Faults that pass


API, FILE, LINK = "GET /api/models", "GET /FacebookAI/roberta-base/resolve", "HEAD /FacebookAI/roberta-base/resolve"


@pytest.mark.parametrize("status", [0, 429, 500, 503])
@pytest.mark.parametrize(("host", "word"), [("hub", API), ("hub", FILE), ("hub", LINK), ("cdn", "GET")])
def test_a_single_fault_does_not_end_a_download(
    server: HubServer, checkout: ModuleType, host: str, word: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.failures = [Failure(host, word, status)]
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # its wait is a second
    folder, description = checkout.resolve_model("auto")
    assert server.failures[0].times == 0 and ROBERTA in description
    assert (folder / "model.safetensors").read_bytes() == server.repos[ROBERTA]["model.safetensors"]


def test_five_faults_in_a_row_do_not_end_a_download(server: HubServer, checkout: ModuleType) -> None:
    server.failures = [Failure("cdn", "GET", 503, times=5)]
    checkout.fetch("roberta-base")
    server.failures = [Failure("hub", API, 503, times=100)]
    message = error_of(checkout.fetch, "owner/model")
    assert "503 from 127.0.0.1, in 6 attempts" in message and server.failures[0].times == 94


def test_the_waits_grow_and_obey_retry_after(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", waits.append)
    monkeypatch.setattr(retries, "FIRST_WAIT_SECONDS", 1.0)
    hub = huggingface_hub.HfApi(endpoint=server.url)

    def waits_for(headers: dict[str, str]) -> list[float]:
        waits.clear()
        server.failures = [Failure("hub", API, 429, headers, times=100)]
        with pytest.raises(huggingface_hub.errors.HTTPError):
            retries.with_retries(lambda token: hub.model_info("owner/model"))
        return [wait for wait in waits if wait]  # the server sleeps for 0 seconds

    plain = waits_for({})
    assert len(plain) == 5 and sum(plain) < 120
    assert all(0.75 * 2**n <= wait <= 1.25 * 2**n for n, wait in enumerate(plain)) and waits_for({}) != plain
    assert waits_for({"Retry-After": "7"})[:3] == [7.0] * 3
    assert waits_for({"ratelimit": '"api";r=0;t=9'})[:3] == [9.0] * 3
    assert waits_for({"Retry-After": "3600"}) == []


@pytest.mark.parametrize(("host", "word"), [("hub", API), ("hub", FILE), ("hub", LINK), ("cdn", "GET")])
def test_a_host_that_asks_for_an_hour_is_reported_at_once(
    server: HubServer, checkout: ModuleType, monkeypatch: pytest.MonkeyPatch, host: str, word: str
) -> None:
    """huggingface_hub would sleep for it, five times, for a file but not for the listing."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.failures = [Failure(host, word, 429, {"Retry-After": "3600"}, times=100)]
    message = error_of(checkout.fetch, "roberta-base")
    assert "429" in message and "asks for a wait of 3600 s. Wait a few minutes" in message and "attempts" not in message
    assert max(waits, default=0) < 3600


def test_a_cut_connection_is_resumed_with_a_range_request(
    server: HubServer, checkout: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)  # what a cut may lose
    server.cuts, server.cut_at = 1, 500_000
    folder = checkout.fetch("roberta-base")
    first, second = server.asked("cdn", "model.safetensors")
    start = int(second.headers["Range"].removeprefix("bytes=").removesuffix("-"))
    assert "Range" not in first.headers and 0 < start <= 500_000
    assert (folder / "model.safetensors").read_bytes() == server.repos[ROBERTA]["model.safetensors"]


@pytest.mark.parametrize("ignore_range", [False, True])
@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_connection_never_damages_a_file(
    server: HubServer, checkout: ModuleType, reset: bool, ignore_range: bool
) -> None:
    server.cuts, server.cut_at, server.cut_by_reset, server.ignore_range = 2, 500_000, reset, ignore_range
    folder = checkout.fetch("roberta-base")
    assert (folder / "model.safetensors").read_bytes() == server.repos[ROBERTA]["model.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_wrong_bytes_are_deleted_and_reported(server: HubServer, checkout: ModuleType, cache: Path, name: str) -> None:
    server.corrupt = {name}
    message = error_of(checkout.fetch, "roberta-base")
    assert name in message and "hash" in message
    assert not [path for path in cache.rglob("*") if path.name == name]
    server.corrupt = set()
    assert (checkout.fetch("roberta-base") / name).read_bytes() == server.repos[ROBERTA][name]


def test_a_killed_download_is_recovered_by_the_next(server: HubServer, checkout: ModuleType, cache: Path) -> None:
    server.bytes_per_second = 1e6
    child = start_python("import minipeft.hub as hub; hub.fetch('roberta-base')", HF_HUB_CACHE=str(cache))
    while server.bytes_served < 300_000 and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, child.communicate()[1]
    server.down = True  # what is in the cache now is not a checkpoint
    assert "503" in error_of(checkout.resolve_model, "roberta-base")
    server.down, server.bytes_per_second = False, 0.0
    folder, _ = checkout.resolve_model("roberta-base")
    assert (folder / "model.safetensors").read_bytes() == server.repos[ROBERTA]["model.safetensors"]
    assert len(server.asked("hub", "GET /FacebookAI/roberta-base/resolve/main/config.json")) == 0  # it was complete


def test_two_processes_download_a_model_once(server: HubServer, cache: Path) -> None:
    server.bytes_per_second = 2e6
    script = "import minipeft.hub as hub; print(hub.fetch('roberta-base'))"
    children = [start_python(script, HF_HUB_CACHE=str(cache)) for _ in range(2)]
    outputs = [child.communicate(timeout=60)[0] for child in children]
    assert outputs == [f"{cache / 'models--FacebookAI--roberta-base' / 'snapshots' / COMMIT}\n"] * 2
    assert len(server.asked("cdn", "model.safetensors")) == 1


def test_threads_may_download_the_same_model(server: HubServer, checkout: ModuleType) -> None:
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(checkout.fetch("owner/model"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(folders) == 3 and len(set(folders)) == 1 and len(server.asked("cdn", "model.safetensors")) == 1


def test_a_cache_that_cannot_be_written_is_reported(
    server: HubServer, checkout: ModuleType, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache.parent / "file").parent.mkdir(parents=True, exist_ok=True)
    (cache.parent / "file").write_text("not a folder")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache.parent / "file"))
    message = error_of(checkout.fetch, "roberta-base")
    assert str(cache.parent / "file") in message and "free some space" in message
    assert os.strerror(errno.ENOTDIR) in message or os.strerror(errno.EEXIST) in message


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit for the size of files")
def test_a_full_disk_is_reported_at_once(server: HubServer, cache: Path) -> None:
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
        "import minipeft.hub as hub; hub.fetch('roberta-base')"
    )
    errors = start_python(script, HF_HUB_CACHE=str(cache)).communicate(timeout=60)[1]
    assert f"{os.strerror(errno.EFBIG)}. Make {cache} writable or free some space" in errors.splitlines()[-1]
    assert len(server.asked("hub", "/api/models/")) == 1


# Tokens and errors


def test_a_stale_token_does_not_hide_a_public_model(
    server: HubServer, checkout: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.stale_token = "hf_stale"
    monkeypatch.setenv("HF_TOKEN", "hf_stale")
    checkout.fetch("roberta-base")
    assert f"the hub rejected the token ({REJECTED_TOKEN})" in caplog.text and "hf_stale" not in caplog.text
    server.statuses["owner/model"] = (401, "RepoNotFound")
    message = error_of(checkout.fetch, "owner/model")
    assert "rejected the token" in message and "renew HF_TOKEN" in message and "hf_stale" not in message


def test_an_expired_link_is_requested_again(server: HubServer, checkout: ModuleType) -> None:
    server.expired_links = 2
    checkout.fetch("roberta-base")
    assert [request.path[-7:] for request in server.asked("cdn", "")] == ["expired", "expired", "e=valid"]
    server.expired_links = 100
    assert "the link to a file has expired" in error_of(checkout.fetch, "owner/model")


def test_a_missing_model_suggests_a_close_name(
    server: HubServer, checkout: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = error_of(checkout.fetch, "roberta-bse")  # the hub answers 401 without a token
    assert "401" in message and "'roberta-base'" in message and "HF_TOKEN" in message
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    message = error_of(checkout.fetch, "owner/nothing")
    assert "404" in message and "owner/nothing" in message and "hf_secret" not in message


def test_the_token_goes_to_the_hub_and_not_to_the_storage_host(
    server: HubServer, checkout: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "hf_secret"
    assert "HF_TOKEN" in error_of(checkout.fetch, "roberta-base")
    monkeypatch.setenv("HF_TOKEN", "hf_\x01é secret")
    assert "secret" not in error_of(checkout.fetch, "roberta-base")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    checkout.fetch("roberta-base")
    assert server.asked("hub", "resolve")[-1].headers["authorization"] == "Bearer hf_secret"
    sent = [{name.lower() for name in request.headers} for request in server.asked("cdn", "")]
    assert sent and all("authorization" not in names for names in sent)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(403, "GatedRepo", "Accept the terms"), (403, "", "HF_TOKEN"), (429, "", "Wait"), (500, "", "Wait")],
)
def test_an_error_status_says_what_to_do(
    server: HubServer, checkout: ModuleType, status: int, code: str, words: str
) -> None:
    server.statuses["owner/model"] = (status, code)
    message = error_of(checkout.fetch, "owner/model")
    assert words in message and server.url in message


def test_a_login_page_is_not_a_hub(server: HubServer, checkout: ModuleType) -> None:
    server.portal = True
    assert "HF_ENDPOINT" in error_of(checkout.fetch, "roberta-base")


def test_a_closed_port_names_the_host_and_the_remedy(
    server: HubServer, checkout: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refused_address() as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        message = error_of(checkout.fetch, "roberta-base")
    assert address in message and "--model DIR" in message


def test_a_process_that_started_offline_reports_it_in_one_line(server: HubServer, cache: Path) -> None:
    script = (
        "import os, huggingface_hub.constants, minipeft.hub as hub\n"
        "del os.environ['HF_HUB_OFFLINE']; hub.fetch('roberta-base')"
    )
    child = start_python(script, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(cache))
    assert "unset the `HF_HUB_OFFLINE`" in child.communicate(timeout=60)[1].splitlines()[-1]


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://huggingface.co", "http://", "http://a b", "http://[x"])
def test_an_invalid_endpoint_is_named(
    server: HubServer, checkout: ModuleType, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    for call in (lambda: checkout.fetch("roberta-base"), lambda: checkout.resolve_model("auto"), network.hub_reachable):
        assert endpoint in error_of(call)


# Reaching the hub


def test_hub_reachable_follows_the_endpoint_and_the_offline_variables(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert network.hub_reachable() and network.hub_reachable()
    assert len(server.requests) == 1
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(variable, "1")
        assert network.offline_variable() and not network.hub_reachable()
        monkeypatch.delenv(variable)
    with refused_address() as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert not network.offline_variable() and not network.hub_reachable()


def test_a_slow_hub_and_one_that_is_overloaded_are_reachable(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.seconds = 3.0
    assert network.hub_reachable()
    server.seconds, server.down = 0.0, True
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/overloaded")
    assert network.hub_reachable()


def test_importing_hub_is_cheap_and_changes_no_variable() -> None:
    script = (
        "import os, sys; before = dict(os.environ); import minipeft.hub\n"
        "print(sorted({'torch', 'huggingface_hub', 'tqdm', 'ssl'} & set(sys.modules)), before == os.environ)"
    )
    assert start_python(script).communicate(timeout=60)[0] == "[] True\n"


def test_the_hashes_of_the_server_are_those_of_git() -> None:
    if not shutil.which("git"):
        pytest.skip("needs git")
    output = subprocess.run(["git", "hash-object", "--stdin"], input=b"hello", capture_output=True, check=True).stdout
    assert output.decode().strip() == git_sha1(b"hello")


def test_with_retries_returns_at_once_after_an_error_of_another_kind(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[bool | None] = []

    def fail(token: bool | None) -> None:
        calls.append(token)
        raise MinipeftError("row 3: the label is missing.")

    with caplog.at_level(logging.WARNING), pytest.raises(MinipeftError):
        retries.with_retries(fail)
    assert calls == [None] and not caplog.text
