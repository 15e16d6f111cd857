"""minipeft push against a server on 127.0.0.1 that takes uploads as the hub does, and the model card."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from conftest import REPOSITORY, contents, environment, refused
from hub_push_server import PushServer
from hub_server import HubServer
from huggingface_hub import ModelCard

from minipeft import load_run
from minipeft.cli.cli import main
from minipeft.training.reporting.model_card import FOLDERS

TEXTS = ["a good film", "a bad film"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PushServer]:
    running = PushServer()
    running.start()
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    monkeypatch.setenv("HF_TOKEN", running.token)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    yield running
    running.stop()


def pushed(server: PushServer, name: str, folder: Path) -> Path:
    """The files of a repository in a folder."""
    folder.mkdir()
    for file, content in server.repos[name].items():
        (folder / file).write_bytes(content)
    return folder


def test_a_pushed_adapter_predicts_what_the_run_does(
    small_runs: dict[str, Path], server: PushServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_runs["sst2"]
    assert main(["push", str(run), "me/films", "--private"]) == 0
    assert capsys.readouterr().out == f"{server.url}/me/films\n"
    assert server.private["me/films"] is True
    files = server.repos["me/films"]
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert files["adapter_model.safetensors"] == (run / "adapter" / "adapter_model.safetensors").read_bytes()
    config = json.loads(files["adapter_config.json"])
    base = json.loads((run / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert config["base_model_name_or_path"] == Path(base).name == "tiny"  # no path of this machine
    assert not any(str(run.parent).encode() in content for content in files.values())
    folder = pushed(server, "me/films", tmp_path / "copy")
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
    assert load_run(folder, "cpu").predict(TEXTS) == load_run(run, "cpu", "fp32").predict(TEXTS)


def test_a_second_push_and_an_adapter_folder_replace_the_files(small_runs: dict[str, Path], server: PushServer) -> None:
    for folder in (small_runs["sst2"], small_runs["rte"] / "adapter"):
        assert main(["push", str(folder), "me/films"]) == 0
    card = (small_runs["rte"] / "adapter" / "README.md").read_bytes()
    assert (
        server.repos["me/films"]["README.md"].startswith(card[: card.index(b"## Use")])
        and server.private["me/films"] is False
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_push_that_is_ended_leaves_the_repository_as_it_was(
    number: signal.Signals, small_runs: dict[str, Path], server: PushServer
) -> None:
    assert main(["push", str(small_runs["sst2"]), "me/films"]) == 0
    before = dict(server.repos["me/films"])
    server.wait_at = "/commit/"
    command = [sys.executable, "-m", "minipeft", "push", str(small_runs["rte"]), "me/films"]
    variables = {"HF_ENDPOINT": server.url, "HF_TOKEN": server.token, "HF_HUB_OFFLINE": "", "HF_HUB_DISABLE_XET": "1"}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(**variables), stderr=subprocess.PIPE, text=True)
    assert server.waiting.wait(100)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode in (-number, 128 + number) and "Traceback" not in said, said
    assert server.repos["me/films"] == before
    server.wait_at = ""
    assert main(["push", str(small_runs["rte"]), "me/films"]) == 0
    card = (small_runs["rte"] / "adapter" / "README.md").read_bytes()
    assert server.repos["me/films"]["README.md"].startswith(card[: card.index(b"## Use")])


def test_a_merged_checkpoint_is_pushed_whole(small_runs: dict[str, Path], server: PushServer, tmp_path: Path) -> None:
    assert main(["merge", str(small_runs["sst2"]), str(tmp_path / "merged")]) == 0
    assert main(["push", str(tmp_path / "merged"), "me/merged"]) == 0
    assert set(server.repos["me/merged"]) == {path.name for path in (tmp_path / "merged").iterdir()}
    folder = pushed(server, "me/merged", tmp_path / "copy")
    assert load_run(folder, "cpu").predict(TEXTS) == load_run(tmp_path / "merged", "cpu").predict(TEXTS)


def test_a_dry_run_lists_the_files_without_a_token_or_a_connection(
    small_runs: dict[str, Path],
    server: PushServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["push", str(small_runs["sst2"]), "me/films", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    size = (small_runs["sst2"] / "adapter" / "adapter_model.safetensors").stat().st_size
    assert f"{size:,} bytes" in lines[2] and "nothing was uploaded" in lines[3]
    assert server.requests == [] and server.repos == {}


def test_what_cannot_be_pushed_is_one_line(
    small_runs: dict[str, Path],
    server: PushServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = small_runs["sst2"]
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "there is no token. Set HF_TOKEN" in refused(["push", run, "me/films"], tmp_path, capsys)
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    for token, name, message in (
        ("hf_old", "me/films", "the token is not valid (Invalid credentials in Authorization header). Renew"),
        (server.token, "you/films", "the token may not write there"),
        (server.token, "films", "'films' is not the name of a repository. Write it as owner/name"),
        (server.token, "me/../films", "is not the name of a repository"),
    ):
        monkeypatch.setenv("HF_TOKEN", token)
        assert message in refused(["push", run, name], tmp_path, capsys)
    (tmp_path / "empty").mkdir()
    assert "no adapter and no merged checkpoint" in refused(["push", tmp_path / "empty", "me/films"], tmp_path, capsys)
    server.fail_at = "/commit/"
    assert main(["push", str(run), "me/films"]) == 2
    *_, last = capsys.readouterr().err.splitlines()  # after the bar of the large file
    assert last.startswith("minipeft: cannot push to me/films") and ": 500, " in last
    assert server.repos["me/films"] == {}


def test_the_card_of_a_run_says_what_the_hub_and_a_reader_need(small_runs: dict[str, Path], tmp_path: Path) -> None:
    for task, run in small_runs.items():
        card = ModelCard.load(run / "adapter" / "README.md")
        content = json.loads((run / "result.json").read_text())
        data = card.data.to_dict()
        assert data["library_name"] == "peft" and data["pipeline_tag"] == "text-classification"
        assert data["tags"] == ["minipeft", "lora"] and data["metrics"] == ["accuracy"]
        for part in (
            "LoRA(rank=2",
            f"{content['parameters']['method']:,} trainable parameters",
            f"{content['best']['value']:.4f}",
            "seed 42",
            "PeftModel.from_pretrained",
            "minipeft.load_run",
        ):
            assert part in card.text, part
        assert ("second text" in card.text) == (task == "rte")
        assert str(run.parent) not in card.text


@pytest.mark.parametrize(
    ("description", "shown"),
    [
        (
            "/home/a/x.csv: 80 rows, validation from /tmp/b/y.csv; 2 classes",
            "x.csv: 80 rows, validation from y.csv; 2 classes",
        ),
        ("C:\\data\\x.csv: 80 rows", "x.csv: 80 rows"),
        ("nyu-mll/glue (rte), from the local cache", "nyu-mll/glue (rte), from the local cache"),
        ("https://a.org/b/x.csv: 80 rows", "https://a.org/b/x.csv: 80 rows"),
    ],
)
def test_no_folder_of_this_machine_is_in_the_card(description: str, shown: str) -> None:
    assert FOLDERS.sub("", description) == shown


@pytest.mark.full
def test_the_commands_of_an_uploaded_card_work_as_they_are(
    server: PushServer, tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    """Train on a model of the hub, push, and run both blocks of the card in processes that have nothing else."""
    hub = HubServer({"me/tiny": contents(tiny_checkpoint)})
    hub.start()
    try:
        names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN")
        variables = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", **dict.fromkeys(names, "")}

        def run(cache: str, *command: str) -> str:
            home = {"HF_HOME": str(tmp_path / cache), "HF_HUB_CACHE": str(tmp_path / cache / "hub")}
            done = subprocess.run(
                [sys.executable, *command],
                cwd=tmp_path,
                env=environment(**{**variables, **home}),
                text=True,
                capture_output=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        settings = ["--epochs", "1", "--train-limit", "16", "--eval-limit", "16", "--device", "cpu", "--quiet"]
        place = ["--task", "sst2", "--data", str(small_data), "--model", "me/tiny", "--output", str(tmp_path / "run")]
        run("first", "-m", "minipeft", "train", *place, *settings)
        assert main(["push", str(tmp_path / "run"), "me/films"]) == 0
        hub.repos["me/films"] = server.repos["me/films"]
        text = server.repos["me/films"]["README.md"].decode()
        blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
        assert len(blocks) == 2 and all("me/films" in block and "FOLDER" not in block for block in blocks)
        logits = (
            "import torch\nfrom transformers import AutoTokenizer\n"
            "inputs = AutoTokenizer.from_pretrained('me/tiny')(['a text'], return_tensors='pt')\n"
            "print(model.eval()(**inputs).logits.softmax(1)[0].tolist())"
        )
        ours = run("second", "-c", f"{blocks[0]}\nprint(run.predict_proba(['a text'])[0].tolist())")
        theirs = run("third", "-c", f"{blocks[1]}\n{logits}")
        assert json.loads(theirs.splitlines()[-1]) == pytest.approx(json.loads(ours.splitlines()[-1]), abs=1e-5)
    finally:
        hub.stop()
