"""What leaves the machine or reaches a terminal: no secrets of addresses, no control characters, no formulas."""

from __future__ import annotations

import csv
import errno
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import environment, run_command
from hypothesis import given
from hypothesis import strategies as st

from minipeft import MinipeftError, load_run, train
from minipeft.cli.cli import main
from minipeft.data.tables.remote_tables import remote
from minipeft.errors import printable, public_address

SMALL: dict[str, Any] = {"epochs": 1, "method": "head", "batch_size": 8, "device": "cpu", "precision": "fp32"}
SECRETS = ("alice", "pass:w0rd", "X-Amz-Signature", "0123abcd")
CONTROLS = "bad\x1b[31m\u202egood\x07"  # a colour, a reversed direction, a bell


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("https://alice:pw@host:8080/a/b.csv?X-Amz-Signature=1&b=2#c", "https://host:8080/a/b.csv"),
        ("s3://bucket/key.parquet: not found. Check it.", "s3://bucket/key.parquet: not found. Check it."),
        (
            "https://h/a.csv?x=1: cannot be read (https://u@h/b?y=2). Try",
            "https://h/a.csv: cannot be read (https://h/b). Try",
        ),
        ("'HTTPS://u:p@h/a?q', line 2", "'HTTPS://h/a', line 2"),
        ("http://u:p@@h/?a, b", "http://h/, b"),
        ("zip://a.csv::https://u:p@h/a.zip?x=1", "zip://a.csv::https://h/a.zip"),
        ("simplecache::http://u:p@[::1]:80/a?x", "simplecache::http://[::1]:80/a"),
        ("a@b.c is no address, nor is C:\\x?y", "a@b.c is no address, nor is C:\\x?y"),
    ],
)
def test_an_address_in_text_has_neither_user_nor_query(text: str, public: str) -> None:
    assert public_address(text) == public


@pytest.mark.parametrize("part", ["a", "a.", "a://", ":", "::a", "a@", "?:", "#"])
def test_text_of_any_length_is_public_at_once(part: str) -> None:
    for text in (part * 100_000, f"https://{part * 100_000}", f"https://host/?{part * 100_000}"):
        assert len(public_address(text)) <= len(text)


@given(st.text())
def test_printable_text_is_printable_and_stays_as_it_is_where_it_was(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() and (shown == public_address(text) or not text.isprintable())


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A file that a server gives out for this query alone."""
    from datasets import config

    monkeypatch.setattr(config, "DOWNLOADED_DATASETS_PATH", tmp_path / "downloads")
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    remote.local_copy.cache_clear()
    rows = "text,label\n" + "".join(f"film {n},{('good', CONTROLS)[n % 2]}\n" for n in range(40))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = "X-Amz-Signature=0123abcd" in self.path
            self.send_response(200 if known else 403)
            self.send_header("Content-Length", str(len(rows.encode()) if known else 0))
            self.end_headers()
            if known and self.command == "GET":
                self.wfile.write(rows.encode())

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/reviews.csv?X-Amz-Signature=0123abcd"
    server.shutdown()
    server.server_close()
    remote.local_copy.cache_clear()


def test_a_run_on_a_signed_address_keeps_its_secrets_and_shows_no_control_characters(
    address: str, tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(data=address, model=str(tiny_checkpoint), output=str(run), **SMALL)
    train(data=address, model=str(tiny_checkpoint), output=str(run), resume=True, **SMALL)
    assert main(["evaluate", str(run), "--report", str(tmp_path / "report"), "--input", address]) == 0
    shown = "".join(capfd.readouterr())
    files = [path for folder in (run, tmp_path / "report") for path in folder.rglob("*") if path.is_file()]
    for secret in SECRETS:
        assert secret not in shown and not [path for path in files if secret.encode() in path.read_bytes()]
    assert "reviews.csv: 40 rows" in shown and json.loads((run / "config.json").read_text())["data"].endswith(".csv")
    pages = (run / "adapter" / "README.md", tmp_path / "report" / "confusion_matrix.txt")
    for text in (shown, *(page.read_text() for page in (*pages, tmp_path / "report" / "report.html"))):
        assert "\\x1b[31m\\u202egood" in text and not {"\x1b", "\u202e", "\x07"} & set(text)
    assert CONTROLS in load_run(run).task.labels
    with_user = address.replace("127.0.0.1", "alice:pass%3Aw0rd@127.0.0.1")
    for wrong in (with_user.replace("0123abcd", "9999"), address.replace("0123abcd", "9999&a")):
        with pytest.raises(MinipeftError, match=r"http://127\.0\.0\.1:\d+/reviews\.csv: ") as caught:
            remote.local_copy(wrong)
        assert not any(secret in str(caught.value) for secret in (*SECRETS, "pass", "9999"))


def test_a_name_with_dollar_signs_is_drawn(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.delitem(sys.modules, "minipeft.training.reporting.curves", raising=False)  # conftest's no_plots
    rows = "".join(f"film {n},{('$x_$', '$y^$')[n % 2]}\n" for n in range(20))
    (tmp_path / "a$^b$c{.csv").write_text("text,label\n" + rows)
    train(
        data=str(tmp_path / "a$^b$c{.csv"),
        model=str(tiny_checkpoint),
        output=str(tmp_path / "run"),
        quiet=True,
        **SMALL,
    )
    assert (tmp_path / "run" / "curves.png").is_file()


def test_a_class_for_each_row_is_trained_or_refused_in_one_line(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No row can be drawn for validation without taking a class's only one."""
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"film {n},class {n}\n" for n in range(12)))
    flags = ["--data", str(tmp_path / "a.csv"), "--label-type", "classes", "--model", str(tiny_checkpoint)]
    flags += [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    status = main(["train", *flags, "--output", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert status == 2 and len(error.splitlines()) == 1 and "--validation" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
@pytest.mark.parametrize("arguments", [["--text", "good"], ["--input", "in.txt"]])
def test_a_full_standard_output_is_one_line(arguments: list[str], small_runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("good\nbad\n")
    arguments = [str(tmp_path / word) if word == "in.txt" else word for word in arguments]
    command = [sys.executable, "-m", "minipeft", "predict", str(small_runs["sst2"]), *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment())
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert f"standard output: cannot be written ({os.strerror(errno.ENOSPC)})" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_an_interruption_while_modules_are_imported_is_one_line(tmp_path: Path) -> None:
    """sitecustomize sends the signal at the import of a module; the first ones belong to minipeft's own start."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "def at(event, arguments):\n"
        "    if event == 'import' and arguments[0] == os.environ['AT']:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "sys.addaudithook(at)\n"
    )
    for module in ("argparse", "minipeft.cli.flags", "safetensors", "torch", "minipeft.training.loop"):
        paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
        done = run_command("-m", "minipeft", "train", "--output", tmp_path / "run", AT=module, PYTHONPATH=paths)
        assert (done.returncode, done.stderr) == (130, "minipeft: interrupted\n"), (module, done.stderr)


# -- values and fields that a shell, JSON or a spreadsheet reads differently --


def test_values_that_begin_with_a_dash_can_be_given(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"film {n},{n % 3 - 1}\n" for n in range(30)))
    flags = ["--data", str(tmp_path / "a.csv"), "--model", str(tiny_checkpoint), "--quiet"]
    flags += [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    run = tmp_path / "run"
    assert main(["train", *flags, "--output", str(run), "--class-weights", "-1=2", "0=1", "1=1"]) == 0
    assert json.loads((run / "config.json").read_text())["class_weights"] == {"-1": 2, "0": 1, "1": 1}
    capsys.readouterr()
    for text in ("-_-", "-5", "-.-"):
        assert main(["predict", str(run), "--text", text]) == 0
    assert main(["predict", str(run), "--text=--good--"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    with pytest.raises(SystemExit):
        main(["predict", str(run), "--text", "--good--"])
    assert "a value that begins with - is written --text=VALUE" in capsys.readouterr().err


def test_what_json_has_no_form_of_is_null_or_text_in_an_answer(small_runs: dict[str, Path], tmp_path: Path) -> None:
    import datetime

    from datasets import Dataset

    (tmp_path / "in.jsonl").write_text('{"text": "a", "id": NaN, "more": [1e999, {"x": -Infinity}]}\n')
    Dataset.from_dict({"text": ["a"], "day": [datetime.date(2026, 1, 2)]}).to_parquet(tmp_path / "in.parquet")
    for name, echo, expected in (
        ("in.jsonl", ["id", "more"], {"id": None, "more": [None, {"x": None}]}),
        ("in.parquet", ["day"], {"day": "2026-01-02"}),
    ):
        arguments = ["--input", str(tmp_path / name), "--output", str(tmp_path / f"{name}.out"), "--echo", *echo]
        assert main(["predict", str(small_runs["sst2"]), *arguments]) == 0

        def refuse(constant: str) -> None:
            raise AssertionError(constant)

        row = json.loads((tmp_path / f"{name}.out").read_text(), parse_constant=refuse)
        assert {name: row[name] for name in echo} == expected


def test_no_field_of_a_csv_answer_is_a_formula(small_runs: dict[str, Path], tmp_path: Path) -> None:
    texts = ["=1+1", "+cmd", "-2 stars", "@SUM(A1)", "-2.5", "fine", "\t=1"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text, "half": "\ud800"}) + "\n" for text in texts))
    arguments = ["--input", str(tmp_path / "in.jsonl"), "--echo", "text", "half", "--output", str(tmp_path / "out.csv")]
    assert main(["predict", str(small_runs["sst2"]), *arguments]) == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").open(newline="", encoding="utf-8")))
    assert [row["text"] for row in rows] == ["'=1+1", "'+cmd", "'-2 stars", "'@SUM(A1)", "-2.5", "fine", "'\t=1"]


def test_an_interruption_signal_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    from minipeft.cli import main as command

    before = signal.getsignal(signal.SIGINT)
    assert command(["methods", "lora"]) == 0 and signal.getsignal(signal.SIGINT) is before
