"""Remote files: read from a server on 127.0.0.1, kept in the cache, and read from there without a network."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from minipeft import MinipeftError
from minipeft.data.tables.open_table import open_table
from minipeft.data.tables.remote_tables import remote
from minipeft.data.tasks.custom import inspect_custom_data, is_custom
from minipeft.data.tasks.splits import read_split

ROWS = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(20)]


class FileServer:
    """Serves `files`, by path; `failures` requests are answered with 503 first."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.failures = 0
        self.requests: list[str] = []
        self.downloads = 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:
                self.requests.append(f"{handler.command} {handler.path}")
                content = self.files.get(handler.path.split("?")[0])
                self.failures, failed = max(0, self.failures - 1), self.failures > 0
                handler.send_response(503 if failed else 404 if content is None else 200)
                body = b"" if failed or content is None else content
                handler.send_header("Content-Length", str(len(body)))
                handler.send_header("ETag", f'"{hash(body)}"')
                handler.end_headers()
                if handler.command == "GET":
                    self.downloads += bool(body)  # before the client has the body
                    handler.wfile.write(body)

            do_HEAD = do_GET

            def log_message(handler, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    from datasets import config

    monkeypatch.setattr(config, "DOWNLOADED_DATASETS_PATH", tmp_path / "downloads")
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(remote, "WAIT_SECONDS", 0.0)
    remote.local_copy.cache_clear()
    running = FileServer()
    yield running
    running.server.shutdown()
    running.server.server_close()
    remote.local_copy.cache_clear()


def texts_of(address: str) -> list[str]:
    remote.local_copy.cache_clear()  # as in a new process
    return [values[0] for _, values in open_table(address).read(["text"])]


def test_an_address_is_a_custom_dataset(server: FileServer) -> None:
    server.files["/x/reviews.json.gz"] = gzip.compress(json.dumps(ROWS).encode())
    address = f"{server.url}/x/reviews.json.gz?download=true"
    assert is_custom("auto", address)
    data = inspect_custom_data(
        "auto", address, text_column=None, pair_column=None, label_column=None, label_type="auto", validation=address
    )
    assert (data.task.name, data.source, data.rows) == ("reviews", address, 20)
    assert read_split(data.task, "train", address).texts == [row["text"] for row in ROWS]
    assert read_split(data.task, "validation", address).texts == [row["text"] for row in ROWS]
    assert server.downloads == 1


def test_a_parquet_file_may_be_remote(server: FileServer, tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    server.files["/a.parquet"] = (tmp_path / "a.parquet").read_bytes()
    assert texts_of(f"{server.url}/a.parquet") == [row["text"] for row in ROWS]


def test_a_new_version_is_downloaded_and_an_old_one_is_not(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    address = f"{server.url}/a.txt"
    server.files["/a.txt"] = b"one\n"
    assert texts_of(address) == texts_of(address) == ["one"] and server.downloads == 1
    server.files["/a.txt"] = b"two\n"
    assert texts_of(address) == ["two"] and server.downloads == 2
    server.failures = 2
    assert texts_of(address) == ["two"] and server.downloads == 2 and not caplog.text
    server.failures = 100
    assert texts_of(address) == ["two"] and "The copy in the cache is used" in caplog.text
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    server.requests.clear()
    assert texts_of(address) == ["two"] and not server.requests


def test_what_cannot_be_downloaded_gives_one_line(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for address, message in (
        (f"{server.url}/none.csv", "none.csv: not found. Check the address."),
        ("http://127.0.0.1:1/a.csv", "a.csv: cannot be downloaded .*. Try again."),
        ("nonsense://x/a.csv", "a.csv: cannot be downloaded .*nonsense"),
        (f"{server.url}/a.zip", "unknown ending '.zip'"),
    ):
        with pytest.raises(MinipeftError, match=message) as caught:
            open_table(address)
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(MinipeftError, match="HF_DATASETS_OFFLINE is set, and the file is not in the cache"):
        open_table(f"{server.url}/other.csv")
