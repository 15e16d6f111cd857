"""hub.py against a real server on 127.0.0.1 that answers, and fails, as the Hugging Face hub does."""

import errno
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hub_server import COMMIT, HubServer, git_sha1, sha256
from safetensors.torch import load_file, save

from minipeft.errors import MinipeftError
from minipeft.hub import hub

ROBERTA = "FacebookAI/roberta-base"
ROOT = Path(hub.__file__).parents[2]


def checkpoint(megabytes: float = 1.0) -> dict[str, bytes]:
    """A repository with real safetensors of random weights, and files that are not to be fetched."""
    torch.manual_seed(0)
    weights = {
        f"roberta.encoder.layer.{i}.output.dense.weight": torch.randn(256, int(256 * megabytes)) for i in (0, 1, 2, 3)
    }
    tokenizer = {"version": "1.0", "model": {"type": "BPE", "vocab": {"<s>": 0}, "merges": []}}
    return {
        "README.md": b"# a model card\n",
        "config.json": json.dumps({"model_type": "roberta", "hidden_size": 256}).encode(),
        "tokenizer.json": json.dumps(tokenizer).encode(),
        "model.safetensors": save(weights),
        "pytorch_model.bin": b"\x80\x02" + bytes(100_000),
        "onnx/model.onnx": b"onnx",
    }


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    running = HubServer({ROBERTA: checkpoint(), "owner/model": checkpoint(0.1)})
    running.start()
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    for variable in ("HF_HUB_OFFLINE", "HF_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    yield running
    running.stop()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """hub.py loaded from a checkout of its own, so that weights/ is empty and the test's."""
    (tmp_path / "minipeft").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    return load_from(tmp_path / "minipeft")


def served(server: HubServer, count: int) -> bool:
    """Whether the server has sent so many bytes; it counts a chunk after the client may have read it."""
    until = time.monotonic() + 10
    while server.bytes_served < count and time.monotonic() < until:
        time.sleep(0.01)
    return server.bytes_served == count


def load_from(package: Path) -> ModuleType:
    (package / "hub").mkdir(parents=True, exist_ok=True)
    path = Path(shutil.copy(hub.__file__, package / "hub" / "hub.py"))
    spec = importlib.util.spec_from_file_location("hub_in_its_own_checkout", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def place(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_bytes(files[name])
    return folder


def refusal(call: object, *args: object) -> str:
    """The one line of the MinipeftError that the call raises."""
    with pytest.raises(MinipeftError) as caught:
        call(*args)  # type: ignore[operator]
    message = str(caught.value)
    assert "\n" not in message and 20 < len(message) < 400
    return message


def in_a_child(script: str, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=pipe, stderr=pipe, text=True)


# What a fetch brings


def test_fetch_brings_the_safetensors_the_config_and_the_tokenizer_and_nothing_else(
    server: HubServer, tmp_path: Path
) -> None:
    folder = hub.fetch("roberta-base", tmp_path)
    assert folder == tmp_path / "roberta-base"
    files = server.repos[ROBERTA]
    names = {"config.json", "tokenizer.json", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == names | {"source.txt"}
    assert all((folder / name).read_bytes() == files[name] for name in names)
    assert len(load_file(folder / "model.safetensors")) == 4
    assert (folder / "source.txt").read_text() == f"{ROBERTA} at commit {COMMIT}\n"
    assert not (tmp_path / ".roberta-base.partial").exists()
    assert not server.asked("hub", "pytorch_model.bin") and not server.asked("hub", "README.md")
    assert len(server.asked("cdn", "model.safetensors")) == 1


def test_a_whole_checkpoint_is_neither_fetched_again_nor_overwritten(server: HubServer, tmp_path: Path) -> None:
    folder = place(tmp_path / "roberta-base", server.repos["owner/model"])
    assert hub.fetch("roberta-base", tmp_path) == hub.fetch(ROBERTA, tmp_path) == folder
    assert (folder / "model.safetensors").read_bytes() == server.repos["owner/model"]["model.safetensors"]
    assert not server.requests


def test_shards_are_fetched_with_their_index(server: HubServer, tmp_path: Path) -> None:
    files = server.repos["owner/model"]
    shards = {f"model-0000{i}-of-00002.safetensors": save({f"w{i}": torch.randn(30_000)}) for i in (1, 2)}
    index = {"weight_map": {f"w{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}}
    del files["model.safetensors"]
    files |= shards | {"model.safetensors.index.json": json.dumps(index).encode()}
    folder = hub.fetch("owner/model", tmp_path)
    assert {path.name for path in folder.glob("*.safetensors")} == set(shards)
    assert hub.fetch("owner/model", tmp_path) == folder
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in refusal(hub.fetch, "owner/model", tmp_path)


def test_a_shard_that_the_repository_lacks_is_noticed(server: HubServer, tmp_path: Path) -> None:
    files = server.repos["owner/model"]
    del files["model.safetensors"]
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors", "v": "../model.safetensors"}}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    assert "lacks" in refusal(hub.fetch, "owner/model", tmp_path)
    assert not (tmp_path / "model").exists()


def test_a_pickle_is_taken_only_where_there_is_no_safetensors(server: HubServer, tmp_path: Path) -> None:
    del server.repos["owner/model"]["model.safetensors"]
    folder = hub.fetch("owner/model", tmp_path)
    assert (folder / "pytorch_model.bin").read_bytes() == server.repos["owner/model"]["pytorch_model.bin"]


@pytest.mark.parametrize("lacking", ["config.json", "tokenizer.json"])
def test_a_repository_without_a_config_or_a_tokenizer_is_refused(
    server: HubServer, tmp_path: Path, lacking: str
) -> None:
    del server.repos["owner/model"][lacking]
    assert lacking in refusal(hub.fetch, "owner/model", tmp_path)


def test_the_progress_bar_counts_the_bytes_of_all_files(
    server: HubServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fetch("owner/model", tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")  # not a terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    hub.fetch("owner/model", tmp_path / "shown", progress=True)
    shown = capfd.readouterr().err
    assert "owner/model: 100%" in shown
    hub.fetch("owner/model", tmp_path / "hidden", progress=False)
    assert capfd.readouterr() == ("", "")


# Cuts, kills and wrong bytes


def test_a_connection_cut_once_is_taken_up_again_where_it_was_cut(server: HubServer, tmp_path: Path) -> None:
    server.cuts, server.cut_at = 1, 500_000
    hub.fetch("roberta-base", tmp_path)
    first, second = server.asked("cdn", "model.safetensors")
    start = int(second.headers["Range"].removeprefix("bytes=").removesuffix("-"))
    assert "Range" not in first.headers and 0 < start <= 500_000  # bytes under way when it was cut may be lost
    assert served(server, 500_000 - start + len(server.repos[ROBERTA]["model.safetensors"]))


def test_after_a_lost_connection_the_next_fetch_resumes(server: HubServer, tmp_path: Path) -> None:
    server.cuts, server.cut_at, server.down_after_cut = 1, 500_000, True
    message = refusal(hub.fetch, "roberta-base", tmp_path)
    assert "503" in message and "resumes" in message
    assert not (tmp_path / "roberta-base").exists()
    server.down = False
    folder = hub.fetch("roberta-base", tmp_path)
    weights = server.repos[ROBERTA]["model.safetensors"]
    assert server.asked("cdn", "model.safetensors")[-1].headers["Range"] == "bytes=500000-"
    assert served(server, len(weights)) and (folder / "model.safetensors").read_bytes() == weights
    assert len(server.asked("hub", "resolve/" + COMMIT + "/config.json")) == 1


def test_a_connection_that_is_always_cut_ends_in_one_line(server: HubServer, tmp_path: Path) -> None:
    server.cuts, server.cut_at = 1000, 0
    message = refusal(hub.fetch, "roberta-base", tmp_path)
    assert "was cut at 0 of" in message and "resumes" in message


def test_a_server_that_ignores_range_is_read_from_the_start(server: HubServer, tmp_path: Path) -> None:
    server.cuts, server.cut_at, server.ignore_range = 1, 500_000, True
    folder = hub.fetch("roberta-base", tmp_path)
    assert (folder / "model.safetensors").read_bytes() == server.repos[ROBERTA]["model.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_wrong_bytes_are_deleted_and_refused(server: HubServer, tmp_path: Path, name: str) -> None:
    server.corrupt = {name}
    message = refusal(hub.fetch, "roberta-base", tmp_path)
    assert name in message and "hash" in message
    assert not (tmp_path / "roberta-base").exists()
    assert not list((tmp_path / ".roberta-base.partial").glob(f"{name}*"))
    server.corrupt = set()
    assert (hub.fetch("roberta-base", tmp_path) / name).read_bytes() == server.repos[ROBERTA][name]


def test_a_file_damaged_in_the_staging_folder_is_fetched_again(server: HubServer, tmp_path: Path) -> None:
    staging = tmp_path / ".roberta-base.partial"
    staging.mkdir()
    (staging / "config.json").write_bytes(b"{}")
    (staging / "model.safetensors.0000000000000000.part").write_bytes(b"of an older commit")
    (staging / "vocab.txt").write_bytes(b"of another repository")
    folder = hub.fetch("roberta-base", tmp_path)
    assert (folder / "config.json").read_bytes() == server.repos[ROBERTA]["config.json"]
    assert len(list(folder.iterdir())) == 4


def test_a_fetch_killed_in_the_middle_is_resumed_by_the_next(server: HubServer, checkout: ModuleType) -> None:
    server.bytes_per_second = 1e6
    child = in_a_child(
        "import hub; hub.fetch('roberta-base')",
        PYTHONPATH=f"{checkout.weights_folder().parent / 'minipeft' / 'hub'}:{ROOT}",
    )
    while server.bytes_served < 300_000 and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, child.communicate()[1]
    before = server.bytes_served
    weights = checkout.weights_folder()
    assert not (weights / "roberta-base").exists() and list((weights / ".roberta-base.partial").glob("*.part"))

    server.down = True  # what is there now is not a checkpoint
    assert "roberta-base" in refusal(checkout.resolve_model, "roberta-base")
    server.down, server.bytes_per_second = False, 0.0
    folder, words = checkout.resolve_model("roberta-base")
    content = server.repos[ROBERTA]["model.safetensors"]
    assert folder == weights / "roberta-base" and (folder / "model.safetensors").read_bytes() == content
    assert ROBERTA in words and COMMIT in words
    resumed = int(server.asked("cdn", "model.safetensors")[-1].headers["Range"].removeprefix("bytes=").rstrip("-"))
    assert resumed > 0.5 * before and server.bytes_served < 1.5 * len(content)


def test_two_processes_fetch_the_same_name_once(server: HubServer, tmp_path: Path) -> None:
    server.bytes_per_second = 2e6
    script = (
        f"import pathlib, minipeft.hub.hub as hub; print(hub.fetch('roberta-base', pathlib.Path({str(tmp_path)!r})))"
    )
    children = [in_a_child(script) for _ in range(2)]
    outputs = [child.communicate(timeout=60) for child in children]
    assert outputs == [(f"{tmp_path / 'roberta-base'}\n", "")] * 2
    assert len(server.asked("cdn", "model.safetensors")) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"roberta-base", ".roberta-base.lock"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_says_so(server: HubServer, tmp_path: Path) -> None:
    staging = tmp_path / ".roberta-base.partial"
    staging.mkdir()
    weights = server.repos[ROBERTA]["model.safetensors"]
    (staging / f"model.safetensors.{sha256(weights)[:16]}.part").symlink_to("/dev/full")
    message = refusal(hub.fetch, "roberta-base", tmp_path)
    assert os.strerror(errno.ENOSPC) in message and "free some space" in message


# Refusals


def test_a_missing_model_names_a_close_one(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(hub.fetch, "roberta-bse", tmp_path)  # the hub says 401 without a token
    assert "401" in message and "'roberta-base'" in message and "HF_TOKEN" in message
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    message = refusal(hub.fetch, "owner/nothing", tmp_path)
    assert "404" in message and "owner/nothing" in message and "hf_secret" not in message


def test_the_token_goes_to_the_hub_and_not_to_the_cdn(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "hf_secret"
    assert "HF_TOKEN" in refusal(hub.fetch, "roberta-base", tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_\x01é secret")
    assert "secret" not in refusal(hub.fetch, "roberta-base", tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.fetch("roberta-base", tmp_path)
    assert server.asked("hub", "resolve")[-1].headers["Authorization"] == "Bearer hf_secret"
    assert all("Authorization" not in request.headers for request in server.asked("cdn", ""))


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(403, "GatedRepo", "accept its terms"), (403, "", "HF_TOKEN"), (429, "", "wait"), (500, "", "wait")],
)
def test_a_refused_model_says_what_to_do(server: HubServer, tmp_path: Path, status: int, code: str, words: str) -> None:
    server.statuses["owner/model"] = (status, code)
    message = refusal(hub.fetch, "owner/model", tmp_path)
    assert words in message and server.url in message


def test_a_login_page_is_not_taken_for_a_hub(server: HubServer, tmp_path: Path) -> None:
    server.portal = True
    assert "HF_ENDPOINT" in refusal(hub.fetch, "roberta-base", tmp_path)


def test_no_network_names_the_host_and_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", closed_port())
    message = refusal(hub.fetch, "roberta-base", tmp_path)
    assert os.environ["HF_ENDPOINT"] in message and "--model DIR" in message


def test_offline_makes_no_attempt(server: HubServer, checkout: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in refusal(checkout.fetch, "roberta-base")
    place(checkout.weights_folder() / "roberta-mini", server.repos["owner/model"])
    folder, words = checkout.resolve_model("auto")
    assert folder.name == "roberta-mini" and "HF_HUB_OFFLINE" in words
    assert not checkout.hub_reachable() and not server.requests


def test_offline_when_the_process_began_is_one_line_too(server: HubServer, tmp_path: Path) -> None:
    script = (
        "import os, pathlib, huggingface_hub.constants, minipeft.hub.hub as hub\n"
        f"del os.environ['HF_HUB_OFFLINE']; hub.fetch('roberta-base', pathlib.Path({str(tmp_path)!r}))"
    )
    child = in_a_child(script, HF_HUB_OFFLINE="1")
    assert "unset the `HF_HUB_OFFLINE`" in child.communicate(timeout=60)[1].splitlines()[-1]


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://huggingface.co", "http://", "http://a b", "http://[x"])
def test_a_bad_endpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert endpoint in refusal(hub.fetch, "roberta-base", tmp_path)
    assert not hub.hub_reachable()


@pytest.mark.parametrize(
    "name",
    ["", "../x", "a/b/c", "a//b", "/x", "x/", "-", "a\\b", "a b", "é", "a..b", "a--b", "x\n", "x" * 97],
)
def test_what_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    assert repr(name) in refusal(hub.fetch, name, tmp_path / "weights")
    assert repr(name) in refusal(hub.resolve_model, name)
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("name", ["../../evil.json", "/etc/evil.json", "a\\..\\config.json", "x/../config.json"])
def test_a_listing_with_a_hostile_name_is_refused(server: HubServer, tmp_path: Path, name: str) -> None:
    server.extra_names = [name]
    assert "refused" in refusal(hub.fetch, "roberta-base", tmp_path / "weights")
    assert not list(tmp_path.rglob("*.json")) and not server.asked("hub", "resolve")


def test_files_without_hashes_are_refused(server: HubServer, tmp_path: Path) -> None:
    server.hide_hashes = True
    assert "hash" in refusal(hub.fetch, "roberta-base", tmp_path)


# Which folder a name means


def test_auto_takes_the_hubs_roberta_base_and_then_the_local_one(server: HubServer, checkout: ModuleType) -> None:
    place(checkout.weights_folder() / "roberta-mini", server.repos["owner/model"])
    folder, words = checkout.resolve_model("auto")
    assert folder == checkout.weights_folder() / "roberta-base" and ROBERTA in words
    server.down = True
    count = len(server.requests)
    assert checkout.resolve_model("auto") == (folder, words) and len(server.requests) == count


def test_auto_falls_back_and_says_why(server: HubServer, checkout: ModuleType) -> None:
    del server.repos[ROBERTA]
    assert "roberta-mini" in refusal(checkout.resolve_model, "auto")  # nothing is bundled
    mini = place(checkout.weights_folder() / "roberta-mini", server.repos["owner/model"])
    folder, words = checkout.resolve_model("auto")
    assert folder == mini and "401" in words and "stand-in" in words
    assert checkout.resolve_model("roberta-mini")[0] == mini


def test_auto_decides_in_five_seconds_when_nobody_answers(
    server: HubServer, checkout: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    mini = place(checkout.weights_folder() / "roberta-mini", server.repos["owner/model"])
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are accepted and never answered
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        folder, words = checkout.resolve_model("auto")
        assert folder == mini and "no answer" in words
        assert time.monotonic() - began < 5
        began = time.monotonic()
        assert not checkout.hub_reachable() and time.monotonic() - began < 0.1  # asked once


def test_auto_decides_in_five_seconds_when_the_name_server_hangs(server: HubServer, checkout: ModuleType) -> None:
    """A child whose own getaddrinfo never returns, as with a dead name server; it must also exit."""
    place(checkout.weights_folder() / "roberta-mini", server.repos["owner/model"])
    script = (
        "import socket, time; socket.getaddrinfo = lambda *a, **k: time.sleep(60)\n"
        "import hub; print(hub.resolve_model('auto')[1])"
    )
    began = time.monotonic()
    path = f"{checkout.weights_folder().parent / 'minipeft' / 'hub'}:{ROOT}"
    child = in_a_child(script, HF_ENDPOINT="http://hub.example", PYTHONPATH=path)
    output, errors = child.communicate(timeout=30)
    assert "no answer from http://hub.example" in output and not errors
    assert time.monotonic() - began < 5


def test_an_explicit_name_is_never_replaced(server: HubServer, checkout: ModuleType) -> None:
    weights = checkout.weights_folder()
    place(weights / "roberta-mini", server.repos["owner/model"])
    assert "roberta-base" in refusal(checkout.resolve_model, "roberta-bse")
    server.down = True
    assert "503" in refusal(checkout.resolve_model, "roberta-base")
    assert "503" in refusal(checkout.resolve_model, "owner/model")
    server.down = False
    place(weights / "roberta-base", server.repos["owner/model"])
    server.repos["someone/roberta-base"] = checkpoint(0.1)
    assert "holds FacebookAI/roberta-base, not someone" in refusal(checkout.resolve_model, "someone/roberta-base")
    assert "not someone/roberta-mini" in refusal(checkout.resolve_model, "someone/roberta-mini")
    shutil.rmtree(weights / "roberta-base")
    checkout.fetch("someone/roberta-base")
    assert "holds someone/roberta-base" in refusal(checkout.resolve_model, "roberta-base")


def test_half_a_checkpoint_in_weights_is_refused_and_left_alone(server: HubServer, checkout: ModuleType) -> None:
    folder = place(checkout.weights_folder() / "roberta-base", server.repos[ROBERTA])
    content = server.repos[ROBERTA]["model.safetensors"]
    for half in (content[:500_000], content[:100], content + b"\0", b""):
        (folder / "model.safetensors").write_bytes(half)
        assert str(folder) in refusal(checkout.resolve_model, "roberta-base")
        assert (folder / "model.safetensors").read_bytes() == half
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text('{"hidden_size": 25')
    assert str(folder) in refusal(checkout.fetch, "roberta-base")
    (folder / "config.json").unlink()
    assert str(folder) in refusal(checkout.fetch, "roberta-base")
    assert not server.requests


def test_an_existing_folder_is_used_as_it_is(server: HubServer, checkout: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    folder, words = checkout.resolve_model(str(tmp_path / "mine"))
    assert folder == tmp_path / "mine" and str(folder) in words
    assert checkout.resolve_model("mine")[0] == Path("mine")
    assert "./nothing" in refusal(checkout.resolve_model, "./nothing")
    (tmp_path / "model.safetensors").touch()
    assert "model.safetensors" in refusal(checkout.resolve_model, "model.safetensors")
    assert not server.requests


def test_an_installed_package_brings_its_own_bundle_and_downloads_to_the_current_folder(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "minipeft"
    mini = place(package / "weights" / "roberta-mini", server.repos["owner/model"])
    installed = load_from(package)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert installed.bundled() == installed.resolve_model("roberta-mini")[0] == mini
    assert installed.resolve_model("roberta-base")[0] == tmp_path / "work" / "weights" / "roberta-base"


# Reaching the hub


def test_hub_reachable_follows_the_endpoint_and_the_offline_switch(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub.hub_reachable() and hub.hub_reachable()
    assert len(server.requests) == 1
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub.hub_reachable()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", closed_port())
    assert not hub.hub_reachable()


def test_threads_may_ask_together(server: HubServer, tmp_path: Path) -> None:
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(hub.fetch("owner/model", tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert folders == [tmp_path / "model"] * 3 and len(server.asked("cdn", "model.safetensors")) == 1


def test_importing_hub_is_cheap_and_changes_no_variable() -> None:
    script = (
        "import os, sys; before = dict(os.environ); import minipeft.hub.hub\n"
        "print(sorted({'torch', 'huggingface_hub', 'tqdm', 'httpx2', 'ssl'} & set(sys.modules)), before == os.environ)"
    )
    assert in_a_child(script).communicate(timeout=60)[0] == "[] True\n"


def test_the_servers_hashes_are_gits_own() -> None:
    """`printf hello | git hash-object --stdin` on one side, the listing that hub.py is tested with on the other."""
    if not shutil.which("git"):
        pytest.skip("needs git")
    output = subprocess.run(["git", "hash-object", "--stdin"], input=b"hello", capture_output=True, check=True).stdout
    assert output.decode().strip() == git_sha1(b"hello")


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"
