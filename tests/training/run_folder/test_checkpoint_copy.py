"""--checkpoint-copy: a local folder, the memory file system and an S3 server; a lost run continues from its copy."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from small_runs import adapter, interrupted_at, rows, same_tensors, small_run, without_times

from minipeft import MinipeftError, train
from minipeft.cli.cli import main
from minipeft.errors import Interrupted


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of moto's server, which speaks S3."""
    for name in ("s3fs", "moto", "flask"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket/run"
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize("kind", ["local", "memory", "s3"])
def test_a_run_whose_machine_is_lost_continues_from_the_copy(
    kind: str, request: pytest.FixtureRequest, tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    addresses = {"local": (tmp_path / "copy").as_uri(), "memory": f"memory://{tmp_path}/copy"}
    address = addresses.get(kind) or request.getfixturevalue("s3")
    folder = tmp_path / "run"
    settings: dict[str, Any] = {"epochs": 3, "checkpoint_copy": address}
    small_run(tiny_checkpoint, small_data, tmp_path / "whole", epochs=3)
    with pytest.raises(Interrupted), interrupted_at(8):
        small_run(tiny_checkpoint, small_data, folder, **settings)
    filesystem, root = fsspec.core.url_to_fs(address)
    copied = {path.rpartition("/")[2] for path in filesystem.ls(f"{root}/checkpoint", detail=False)}
    assert copied == {path.name for path in (folder / "checkpoint").iterdir()}
    shutil.rmtree(folder)
    small_run(tiny_checkpoint, small_data, folder, resume=True, **settings)
    assert without_times(rows(folder)) == without_times(rows(tmp_path / "whole"))
    assert same_tensors(adapter(folder), adapter(tmp_path / "whole"))


def test_a_copy_that_fails_is_reported_and_the_run_ends(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    address = (tmp_path / "file" / "copy").as_uri()
    assert small_run(tiny_checkpoint, small_data, tmp_path / "run", checkpoint_copy=address, epochs=1).content["best"]
    (line,) = [record.message for record in caplog.records if "was not copied" in record.message]
    assert line.startswith(f"--checkpoint-copy {address}: step-00000003.json was not copied (")
    with pytest.raises(MinipeftError, match="--checkpoint-copy nowhere://x: cannot be read"):
        small_run(tiny_checkpoint, small_data, tmp_path / "new", checkpoint_copy="nowhere://x", resume=True)


@pytest.mark.parametrize("command", ["train", "compare", "pretrain", "predict", "merge", "evaluate"])
def test_an_output_at_an_address_is_refused(
    command: str, small_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("a text\n")
    run, text, address = str(small_runs["sst2"]), str(tmp_path / "text.txt"), "s3://bucket/output"
    words = {
        "train": ["--output", address],
        "compare": ["--task", "sst2", "--method", "head", "--output", address],
        "pretrain": ["--text", text, "--output", address],
        "predict": [run, "--input", text, "--output", address],
        "merge": [run, address],
        "evaluate": [run, "--report", address],
    }
    before = sorted(os.listdir())
    assert main([command, *words[command]]) == 2
    error = capsys.readouterr().err
    assert f"{address}: a" in error and "address is not supported" in error and len(error.splitlines()) == 1, error
    assert sorted(os.listdir()) == before


def test_the_setting_is_one_of_train(tmp_path: Path) -> None:
    with pytest.raises(MinipeftError, match="--checkpoint-copy 5 is not a path or a name"):
        train(checkpoint_copy=5, output=str(tmp_path / "run"))


def test_the_secrets_of_the_address_reach_no_file_and_no_message(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = "nowhere://user:pw0rd@host/run?token=0123abcd"
    small_run(tiny_checkpoint, small_data, tmp_path / "run", checkpoint_copy=address, epochs=1)
    assert "--checkpoint-copy nowhere://host/run: step-" in caplog.text
    held = "".join(path.read_text(errors="replace") for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert '"checkpoint_copy": "nowhere://host/run"' in held
    assert not any(secret in caplog.text + held for secret in ("pw0rd", "0123abcd"))
