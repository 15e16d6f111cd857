"""hub.py: which folder a name means, in weights/, in the Hugging Face cache and on a hub on 127.0.0.1."""

import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import huggingface_hub
import pytest
from hub_server import COMMIT, HubServer
from hub_support import ROBERTA, ROOT, checkpoint, error_of, load_from, place, refused_address, start_python
from safetensors.torch import load_file, save

from minipeft.hub import network
from minipeft.hub.names import model_name
from minipeft.model.pretrained import load_pretrained

pytest_plugins = ["hub_fixtures"]


# The order: weights/, the Hugging Face cache, the hub


def test_weights_come_before_the_cache_and_the_cache_before_the_hub(server: HubServer, checkout: ModuleType) -> None:
    fetched, description = checkout.resolve_model("roberta-base")
    assert description == f"{ROBERTA} at commit {COMMIT} (fetched from {server.url}, {fetched})"
    server.requests.clear()
    folder, description = checkout.resolve_model("roberta-base")
    assert folder == fetched and description == f"{ROBERTA} at commit {COMMIT} (Hugging Face cache, {folder})"
    placed = place(checkout.weights_folder() / "roberta-base", server.repos["owner/model"])
    folder, description = checkout.resolve_model(ROBERTA)
    assert folder == placed and description == f"roberta-base (weights folder, {folder})"
    assert checkout.resolve_model("auto")[1] == description
    assert checkout.resolve_model(f"roberta-base@{COMMIT}")[0] == fetched  # weights/ knows no revisions
    assert not server.requests


@pytest.mark.parametrize("repo_id", [ROBERTA, "roberta-base"])
def test_a_cache_that_huggingface_hub_wrote_is_used_offline(
    server: HubServer, checkout: ModuleType, cache: Path, repo_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.renamed = {"roberta-base": ROBERTA}
    for name in ("config.json", "model.safetensors"):
        written = Path(huggingface_hub.hf_hub_download(repo_id, name, endpoint=server.url)).parent
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    assert "TRANSFORMERS_OFFLINE" in error_of(checkout.resolve_model, "roberta-base")  # without a tokenizer
    huggingface_hub.hf_hub_download(repo_id, "tokenizer.json", endpoint=server.url)
    for name in ("auto", "roberta-base", ROBERTA, f"roberta-base@{COMMIT}", "roberta-base@main"):
        folder, description = checkout.resolve_model(name)
        assert folder == written and description.startswith(f"{repo_id} at commit {COMMIT} (Hugging Face cache")
    assert model_name(folder) == "roberta-base"
    assert "TRANSFORMERS_OFFLINE" in error_of(checkout.resolve_model, f"roberta-base@{'a' * 40}")


COPIES: dict[str, Callable[[Path], object]] = {
    "a trailing newline": lambda repository: (repository / "refs" / "main").write_text(f"{COMMIT}\r\n"),
    "no refs": lambda repository: shutil.rmtree(repository / "refs"),
    "an empty ref": lambda repository: (repository / "refs" / "main").write_text(""),
    "a ref to a snapshot that was not copied": lambda repository: (repository / "refs" / "main").write_text("0" * 40),
    "an older snapshot": lambda repository: _older_snapshot(repository),
    "files for links": lambda repository: _files_for_links(repository),
    "a ref out of the folder": lambda repository: (repository / "refs" / "main").write_text("../../elsewhere"),
}


def _older_snapshot(repository: Path) -> None:
    shutil.rmtree(repository / "refs")
    older = shutil.copytree(repository / "snapshots" / COMMIT, repository / "snapshots" / "another")
    os.utime(older, (0, 0))


def _files_for_links(repository: Path) -> None:
    copy = shutil.copytree(repository, repository.with_name("copy"))  # follows the links
    shutil.rmtree(copy / "blobs")
    shutil.rmtree(repository)
    copy.rename(repository)


@pytest.mark.parametrize("kind", COPIES)
def test_a_copied_cache_is_found(kind: str, server: HubServer, checkout: ModuleType) -> None:
    folder = checkout.fetch("owner/model")
    COPIES[kind](folder.parents[1])
    before = len(server.requests)
    assert checkout.fetch("owner/model") == folder
    assert len(server.requests) == before


def test_a_copied_cache_without_blobs_is_downloaded_again(server: HubServer, checkout: ModuleType) -> None:
    folder = checkout.fetch("owner/model")
    shutil.rmtree(folder.parents[1] / "blobs")  # the links lead nowhere
    assert checkout.fetch("owner/model") == folder and (folder / "config.json").is_file()


def test_a_tag_or_branch_is_downloaded_and_then_found_in_the_cache(
    server: HubServer, checkout: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.revisions |= {"v1.0", "next"}
    fetched, description = checkout.resolve_model("owner/model@v1.0")
    assert fetched.name == COMMIT and "fetched from" in description
    written = Path(huggingface_hub.snapshot_download("owner/model", revision="next", endpoint=server.url))
    assert "revision 'v2' does not exist" in error_of(checkout.resolve_model, "owner/model@v2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for revision in ("v1.0", "next", COMMIT):
        folder, description = checkout.resolve_model(f"owner/model@{revision}")
        assert folder == written == fetched and "Hugging Face cache" in description
    assert "HF_HUB_OFFLINE is set" in error_of(checkout.resolve_model, "owner/model")  # main was not downloaded


def test_the_variables_of_the_cache_are_those_of_huggingface_hub(server: HubServer, cache: Path) -> None:
    huggingface_hub.hf_hub_download("owner/model", "config.json", endpoint=server.url)
    script = "from minipeft.hub import fetch; print(fetch('owner/model'))"
    for variables in ({"HF_HOME": str(cache.parent)}, {"HF_HUB_CACHE": str(cache)}):
        output, _ = start_python(script, **variables).communicate(timeout=60)
        assert output == f"{cache / 'models--owner--model' / 'snapshots' / COMMIT}\n"
    assert len(server.asked("cdn", "")) == 1


def test_a_damaged_file_in_the_cache_is_downloaded_again(server: HubServer, checkout: ModuleType) -> None:
    folder = checkout.fetch("owner/model")
    weights = server.repos["owner/model"]["model.safetensors"]
    (folder / "model.safetensors").resolve().write_bytes(weights[:-1])
    assert (checkout.fetch("owner/model") / "model.safetensors").read_bytes() == weights


def test_a_run_says_where_its_encoder_came_from(server: HubServer, cache: Path, tmp_path: Path) -> None:
    mini = ROOT / "weights" / "roberta-mini"
    server.repos["owner/mini"] = {
        name: (mini / name).read_bytes() for name in ("config.json", "tokenizer.json", "model.safetensors")
    }
    run = tmp_path / "run"
    script = (
        "import sys; from minipeft.cli.cli import main\n"
        "limits = '--epochs 1 --train-limit 16 --eval-limit 16'.split()\n"
        f"sys.exit(main(['train', '--task', 'sst2', '--model', 'owner/mini', '--output', {str(run)!r}, *limits]))"
    )
    assert start_python("from minipeft.hub import fetch; fetch('owner/mini')", HF_HUB_CACHE=str(cache)).wait() == 0
    child = start_python(script, HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE="1")
    assert child.communicate(timeout=120) and child.returncode == 0
    folder = cache / "models--owner--mini" / "snapshots" / COMMIT
    model = json.loads((run / "result.json").read_text())["model"]
    assert model == f"owner/mini at commit {COMMIT} (Hugging Face cache, {folder})"
    assert json.loads((run / "config.json").read_text())["model"] == "owner/mini"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's list of mapped files")
def test_weights_in_the_cache_are_memory_mapped(server: HubServer, checkout: ModuleType) -> None:
    mini = ROOT / "weights" / "roberta-mini"
    files = {name: (mini / name).read_bytes() for name in ("config.json", "tokenizer.json")}
    weights = {name: tensor.float() for name, tensor in load_file(mini / "model.safetensors").items()}
    server.repos["owner/mini"] = files | {"model.safetensors": save(weights)}
    folder = checkout.fetch("owner/mini")
    model = load_pretrained(folder)
    assert str((folder / "model.safetensors").resolve()) in Path("/proc/self/maps").read_text()
    assert model.folder == folder


# "auto"


def test_auto_is_roberta_base(server: HubServer, checkout: ModuleType) -> None:
    folder, description = checkout.resolve_model("auto")
    assert model_name(folder) == "roberta-base" and ROBERTA in description
    server.down = True
    assert checkout.resolve_model("auto")[0] == folder


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_auto_offline_is_the_bundled_model_and_makes_no_request(
    server: HubServer, checkout: ModuleType, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    assert f"{variable} is set" in error_of(checkout.resolve_model, "auto")  # nothing is bundled
    mini = place(checkout.weights_folder() / "roberta-mini", server.repos["owner/model"])
    folder, description = checkout.resolve_model("auto")
    assert folder == mini and f"{variable} is set" in description and "fallback" in description
    assert f"{variable} is set" in error_of(checkout.fetch, "roberta-base")
    assert checkout.resolve_model("roberta-mini")[0] == mini and not server.requests


def test_auto_is_an_error_if_the_hub_answers_and_the_download_fails(server: HubServer, checkout: ModuleType) -> None:
    place(checkout.weights_folder() / "roberta-mini", server.repos["owner/model"])
    server.down = True
    message = error_of(checkout.resolve_model, "auto")
    assert "503" in message and "HF_HUB_OFFLINE=1" in message
    server.down = False
    del server.repos[ROBERTA]
    assert "401" in error_of(checkout.resolve_model, "auto")
    place(checkout.weights_folder() / "roberta-base", checkpoint(0.1))
    (checkout.weights_folder() / "roberta-base" / "config.json").unlink()
    assert "config.json is missing" in error_of(checkout.resolve_model, "auto")


def test_auto_falls_back_in_five_seconds_if_nothing_answers(
    server: HubServer, checkout: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    mini = place(checkout.weights_folder() / "roberta-mini", server.repos["owner/model"])
    assert network.PROBE_SECONDS < 5
    monkeypatch.setattr(network, "PROBE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are accepted and never answered
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        folder, description = checkout.resolve_model("auto")
        assert folder == mini and "no answer" in description


@pytest.mark.parametrize("answered_before", [False, True])
def test_a_refused_connection_is_no_network_whatever_answered_earlier(
    answered_before: bool, server: HubServer, checkout: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server may have had the port, and a network may be gone: an old answer of the hub does not count."""
    mini = place(checkout.weights_folder() / "roberta-mini", server.repos["owner/model"])
    with refused_address() as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        if answered_before:
            network._probes[address] = (time.monotonic() - network.PROBE_VALID_SECONDS - 1, True)
        folder, description = checkout.resolve_model("auto")
    assert folder == mini and f"no answer from {address}" in description


def test_a_name_that_cannot_be_resolved_is_no_network(
    server: HubServer, checkout: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    mini = place(checkout.weights_folder() / "roberta-mini", server.repos["owner/model"])
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    assert checkout.resolve_model("auto")[0] == mini


def test_a_hub_that_refuses_connections_after_it_has_answered_is_an_error(
    server: HubServer, checkout: ModuleType
) -> None:
    place(checkout.weights_folder() / "roberta-mini", server.repos["owner/model"])
    assert network.hub_reachable()
    server.stop()
    message = error_of(checkout.resolve_model, "auto")
    assert "no answer" in message and "HF_HUB_OFFLINE=1" in message
    network._probes.clear()  # later, or in another process
    assert "stand-in" in checkout.resolve_model("auto")[1]


def test_auto_falls_back_in_five_seconds_if_the_name_server_hangs(server: HubServer, checkout: ModuleType) -> None:
    """In a process whose getaddrinfo never returns, as with a dead name server; it must also exit."""
    place(checkout.weights_folder() / "roberta-mini", server.repos["owner/model"])
    script = (
        "import socket, time; socket.getaddrinfo = lambda *a, **k: time.sleep(60)\n"
        "from minipeft.hub import network; network.PROBE_SECONDS = 0.3\n"
        "import hub; print(hub.resolve_model('auto')[1])"
    )
    path = f"{checkout.weights_folder().parent / 'minipeft' / 'hub'}{os.pathsep}{ROOT}"
    child = start_python(script, HF_ENDPOINT="http://hub.example", PYTHONPATH=path)
    output, errors = child.communicate(timeout=30)
    assert "no answer from http://hub.example" in output and not errors


# Other names and folders


def test_an_explicit_name_is_never_replaced(server: HubServer, checkout: ModuleType) -> None:
    weights = checkout.weights_folder()
    place(weights / "roberta-mini", server.repos["owner/model"])
    assert "roberta-base" in error_of(checkout.resolve_model, "roberta-bse")
    server.down = True
    assert "503" in error_of(checkout.resolve_model, "roberta-base")
    assert "503" in error_of(checkout.resolve_model, "owner/model")
    server.down = False
    place(weights / "roberta-base", server.repos["owner/model"])
    server.repos["someone/roberta-base"] = checkpoint(0.1)
    assert "is FacebookAI/roberta-base, not someone" in error_of(checkout.resolve_model, "someone/roberta-base")
    assert "not someone/roberta-mini" in error_of(checkout.resolve_model, "someone/roberta-mini")


def test_an_incomplete_checkpoint_in_weights_is_an_error_and_is_not_changed(
    server: HubServer, checkout: ModuleType
) -> None:
    folder = place(checkout.weights_folder() / "roberta-base", server.repos[ROBERTA])
    content = server.repos[ROBERTA]["model.safetensors"]
    for half in (content[:500_000], content[:100], content + b"\0", b""):
        (folder / "model.safetensors").write_bytes(half)
        assert f"{folder}: model.safetensors" in error_of(checkout.resolve_model, "roberta-base")
        assert (folder / "model.safetensors").read_bytes() == half
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text('{"hidden_size": 25')
    assert f"{folder}: config.json" in error_of(checkout.fetch, "roberta-base")
    (folder / "config.json").unlink()
    assert f"{folder}: config.json" in error_of(checkout.fetch, "roberta-base")
    assert not server.requests


def test_shards_in_weights_are_checked_one_by_one(server: HubServer, checkout: ModuleType) -> None:
    folder = place(checkout.weights_folder() / "model", server.repos["owner/model"])
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("vw", shards, strict=True))})
    )
    assert shards[1] in error_of(checkout.resolve_model, "model")
    (folder / shards[1]).write_bytes(save({}))
    assert checkout.resolve_model("model")[0] == folder


def test_an_existing_folder_is_used_as_it_is(server: HubServer, checkout: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    folder, description = checkout.resolve_model(str(tmp_path / "mine"))
    assert folder == tmp_path / "mine" and description == f"the folder {folder}"
    assert checkout.resolve_model("mine")[0] == Path("mine")
    assert "./nothing" in error_of(checkout.resolve_model, "./nothing")
    (tmp_path / "model.safetensors").touch()
    assert "model.safetensors" in error_of(checkout.resolve_model, "model.safetensors")
    assert not server.requests


@pytest.mark.parametrize(
    "name",
    ["", "../x", "a/b/c", "a//b", "/x", "x/", "-", "a\\b", "a b", "é", "a..b", "a--b", "x\n", "x" * 97, "x@", "x@ y"],
)
def test_an_invalid_name_is_an_error(server: HubServer, checkout: ModuleType, cache: Path, name: str) -> None:
    assert repr(name) in error_of(checkout.fetch, name)
    assert repr(name) in error_of(checkout.resolve_model, name)
    assert not cache.exists() and not server.requests


def test_an_installed_package_has_the_bundled_model_and_uses_the_cache_of_the_user(
    server: HubServer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "minipeft"
    mini = place(package / "weights" / "roberta-mini", server.repos["owner/model"])
    installed = load_from(package)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert installed.bundled() == installed.resolve_model("roberta-mini")[0] == mini
    assert cache in installed.resolve_model("roberta-base")[0].parents
    assert not list((tmp_path / "work").iterdir())
