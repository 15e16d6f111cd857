"""What surrounds a run: a closed terminal, a clock set back, a user without rights, odd paths, a power cut."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, contents, environment
from hub_server import HubServer
from runs import Process, assert_same, finish, run_here, start, training

from minipeft import load_run, train
from minipeft.cli.cli import main


def test_a_closed_terminal_saves_and_resumes(
    unbroken_run: Path, tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    arguments = training(tiny_checkpoint, small_data, tmp_path / "run", "--resume")
    process = start(tmp_path / "log", arguments)
    process.wait_until_training()
    process.kill(signal.SIGHUP)
    assert process.end() == 128 + signal.SIGHUP, process.said()
    assert "Traceback" not in process.said() and (tmp_path / "run" / "checkpoint").is_dir()
    finish(arguments)
    assert_same(tmp_path / "run", unbroken_run)


@pytest.mark.full
def test_nohup_keeps_a_run_alive(unbroken_run: Path, tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> None:
    arguments = training(tiny_checkpoint, small_data, tmp_path / "run")
    process = Process(tmp_path / "log", ["nohup", sys.executable, *arguments])
    process.wait_until_training()
    process.kill(signal.SIGHUP)
    assert process.end() == 0, process.said()
    assert_same(tmp_path / "run", unbroken_run)


CLOCK = """
import time
real, start = time.time, time.time()
time.time = lambda: real() - (3600 if real() - start > {seconds} else 0)
real_ns, start_ns = time.time_ns, time.time_ns()
time.time_ns = lambda: real_ns() - (3600 * 10**9 if real_ns() - start_ns > {seconds} * 10**9 else 0)
"""


@pytest.mark.full
def test_a_clock_set_back_by_an_hour_changes_nothing(
    unbroken_run: Path, tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    """In the run's process the wall clock jumps back; meanwhile another process is refused the run's folder."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CLOCK.format(seconds=3))
    run, path = tmp_path / "run", f"{tmp_path / 'site'}:{REPOSITORY}"
    process = start(tmp_path / "log", training(tiny_checkpoint, small_data, run), PYTHONPATH=path)
    process.wait_until_training()
    os.utime(run / ".owner", (0, 0))  # as the file system of a clock set back would write it
    status, said = run_here(training(tiny_checkpoint, small_data, run, "--resume"))  # at once: the run is a short one
    assert status == 2 and f"is in use by process {process.process.pid} on " in said[-1], said
    assert process.end() == 0, process.said()
    assert_same(run, unbroken_run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["seconds"] < 600 and row["samples_per_second"] > 0 for row in rows)


def without_rights() -> list[str]:
    """The start of a command that leaves root without the rights that other users lack."""
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []


@pytest.mark.full
def test_a_read_only_installation_and_odd_paths(tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> None:
    home = tmp_path / "Überraschung, zweimal 'zitiert' 你好"
    package, model, data = home / "the package", home / "ein Modell é", home / "data ñ"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "minipeft", package / "minipeft", ignore=ignored)
    shutil.copytree(tiny_checkpoint, model)
    shutil.copytree(small_data, data)
    (home / "tmp dir ü").mkdir()
    (home / "work").mkdir()
    read_only = [path for folder in (package, model, data) for path in [folder, *folder.rglob("*")]]
    for path in read_only:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = contents(package)
    variables = {"PYTHONPATH": str(package), "TMPDIR": str(home / "tmp dir ü"), "HOME": str(home / "work")}
    program = "import sys; from minipeft.cli.cli import main; sys.exit(main(sys.argv[1:]))"
    flags = ["--task", "sst2", "--model", model, "--data", data, "--epochs", 1, "--train-limit", 16, "--device", "cpu"]
    texts = home / "work" / "Texte ö.csv"
    texts.write_text("text\na film\nanother one\n")
    for words in (
        ["train", *flags, "--output", "ein Lauf €"],
        ["predict", "ein Lauf €", "--input", texts, "--output", home / "work" / "aus gabe.jsonl"],
        ["merge", "ein Lauf €", "zusammen geführt"],
        ["evaluate", "ein Lauf €"],
    ):
        done = subprocess.run(
            [*without_rights(), sys.executable, "-c", program, *map(str, words)],
            cwd=home / "work", env=environment(**variables), text=True, capture_output=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert contents(package) == before
    assert len((home / "work" / "aus gabe.jsonl").read_text().splitlines()) == 2
    done = subprocess.run(
        [*without_rights(), sys.executable, "-c", program, "train", *map(str, flags), "--output", str(package / "run")],
        cwd=home / "work", env=environment(**variables), text=True, capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and str(package) in done.stderr, done.stderr
    for path in reversed(read_only):
        path.chmod(0o755)  # so that pytest can remove it


FETCH = "import sys; from minipeft.cli.cli import main; sys.exit(main(['fetch', 'owner/model']))"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_fetch_that_is_interrupted_says_so_and_is_continued(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    files = {
        "config.json": b'{"model_type": "roberta"}',
        "tokenizer.json": b'{"version": "1.0", "model": {"type": "BPE"}}',
        "model.safetensors": b"\x02" + bytes(7) + b"{}" + bytes(3_000_000),
    }
    server = HubServer({"owner/model": files}, bytes_per_second=500_000)
    server.start()
    cache = tmp_path / "cache"
    try:
        variables = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "", "HF_HUB_CACHE": str(cache)}
        process = Process(tmp_path / "log", [sys.executable, "-c", FETCH], **variables)
        process.wait_until(lambda: any(cache.rglob("*.incomplete")))
        process.kill(number)
        assert process.end(60) in (status, -number), process.said()
        assert "Traceback" not in process.said(), process.said()
        assert not any(cache.rglob("model.safetensors"))
    finally:
        server.stop()


@pytest.mark.full
def test_every_rename_follows_a_sync_and_is_followed_by_one_of_the_folder(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    """Then a power cut leaves each file either as it was or as it is to be, in the order of the renames."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    calls = "trace=rename,renameat,renameat2,fsync,fdatasync,write,pwrite64"
    command = ["strace", "-f", "-y", "-s", "0", "-e", calls, "-o", str(trace), sys.executable]
    arguments = training(tiny_checkpoint, small_data, tmp_path / "run", epochs=1)
    done = subprocess.run([*command, *arguments], cwd=REPOSITORY, env=environment(), capture_output=True, timeout=500)
    assert done.returncode == 0, done.stderr
    run = str(tmp_path / "run")
    synced: set[str] = set()
    pending: set[str] = set()  # folders with a rename that is not synced
    renamed = []
    for line in trace.read_text(errors="replace").splitlines():
        if found := re.search(r"(fsync|fdatasync)\(\d+<(.*?)>", line):
            synced.add(found[2])
            pending.discard(found[2])
        elif found := re.search(r"p?write(?:64)?\(\d+<(.*?)>", line):
            synced.discard(found[1])
        elif found := re.search(r'rename\w*\((?:AT_FDCWD\S* )?"(.*?)", (?:AT_FDCWD\S* )?"(.*?)"', line):
            if run not in found[2] or found[2].endswith(".partial"):  # safetensors renames its own temporary file
                continue
            renamed.append(found[2])
            assert found[1] in synced, line
            pending.add(str(Path(found[2]).parent))
    assert {Path(name).name for name in renamed} >= {"config.json", "adapter_model.safetensors", "result.json"}
    assert not pending


def test_markup_in_names_does_not_reach_the_page(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Labels, columns, the model's folder and the output with markup: page.html holds them as text."""
    markup = "<img src=x onerror=alert(1)>"
    (tmp_path / "data.csv").write_text(
        "text,label\n" + "".join(f"text {n},{markup if n % 2 else '&amp;<b>'}\n" for n in range(40))
    )
    model = shutil.copytree(tiny_checkpoint, tmp_path / "<b>model")
    flags = ["--task", "a<i>b", "--data", tmp_path / "data.csv", "--method", "head", "bitfit", "--model", model]
    flags += ["--epochs", 1, "--seed", 1, "--device", "cpu", "--quiet"]
    assert main([*map(str, ["compare", *flags, "--output", tmp_path / "<i>out"])]) == 0
    pages = list((tmp_path / "<i>out").rglob("*.html"))
    assert pages
    for page in pages:
        assert "<img src=x" not in page.read_text() and "<b>model" not in page.read_text()


def test_markup_in_labels_is_text_in_tensorboard_and_in_the_model_card(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A metric's name has the class in it: it is the tag of its values, whatever it looks like, and no file's name."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    markup, place = "<img src=x onerror=alert(1)>", "../../<b>|a"
    rows = [{"text": f"text {number}", "label": (markup, place)[number % 2]} for number in range(40)]
    flags = {"epochs": 1, "device": "cpu", "precision": "fp32", "quiet": True, "method": "head"}
    for label in (markup, place):
        run = tmp_path / "runs" / str(len(label))
        train(data=rows, model=str(tiny_checkpoint), select_by=f"f1:{label}", output=str(run), **flags)
        events = accumulators.EventAccumulator(str(run / "tensorboard"))
        events.Reload()
        (value,) = events.Scalars(f"f1:{label}")
        (row,) = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
        assert value.value == pytest.approx(row[f"f1:{label}"])
        assert [path.name[:20] for path in (run / "tensorboard").iterdir()] == ["events.out.tfevents."]
        tables = (run / "adapter" / "README.md").read_text().split("---\n", 2)[2]
        assert "<img" not in tables and "<b>" not in tables and "&lt;img src=x" in tables and "&lt;b&gt;\\|a" in tables
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_thousand_labels(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Multi-label with 1,000 labels: trained, saved, read again and predicted."""
    rows = [
        {"text": f"text {number}", "label": [f"label {number}", f"label {(7 * number) % 1000}"]}
        for number in range(1000)
    ]
    flags = {"epochs": 1, "batch_size": 64, "device": "cpu", "precision": "fp32", "quiet": True, "method": "head"}
    output = str(tmp_path / "run")
    result = train(data=rows, model=str(tiny_checkpoint), label_type="multilabel", output=output, **flags)
    (prediction,) = load_run(output, "cpu").predict(["text 1"])
    assert prediction == result.predict(["text 1"])[0] and len(prediction["probabilities"]) == 1000
