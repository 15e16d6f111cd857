"""Predictions and metrics over files: every format, any size, several processes, and a process that is killed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, contents, environment
from hypothesis import given, settings
from hypothesis import strategies as st

import minipeft
from minipeft.cli import main
from minipeft.data.tasks import CHUNK_CHARACTERS, CHUNK_ROWS, share_out
from minipeft.predict import LoadedRun, load_run

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def runs(tiny_checkpoint: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of a task on single texts, and of one on pairs."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        for task in ("sst2", "rte"):
            minipeft.train(
                task=task,
                model=str(tiny_checkpoint),
                data=str(small_data),
                epochs=1,
                batch_size=8,
                grad_accum=1,
                device="cpu",
                quiet=True,
                output=str(folder / task),
            )
    return {task: folder / task for task in ("sst2", "rte")}


@pytest.fixture(scope="module")
def single(runs: dict[str, Path]) -> LoadedRun:
    return load_run(runs["sst2"], "cpu")


def write(path: Path, rows: Rows) -> Path:
    """The rows in the format of the file's ending."""
    from datasets import Dataset

    columns = Dataset.from_list(rows)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        columns.to_parquet(path)
    elif path.suffix == ".csv":
        columns.to_csv(path, index=False)
    else:
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    return path


def predicted(capsys: pytest.CaptureFixture[str], *arguments: object) -> Rows:
    capsys.readouterr()
    assert main(["predict", *map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: object) -> str:
    """The one line of a refusal; nothing in `folder` has changed."""
    before = contents(folder)
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 2
    out, error = capsys.readouterr()
    assert out == "" and len(error.splitlines()) == 1 and error.startswith("minipeft: "), error
    assert contents(folder) == before
    return error


SENTENCES = [
    "A quiet film, not a bad one.",
    'He said: "no, never"',
    "2020-01-01",
    "12",
    "null",
    "# a",
    "naïve 😀 שלום",
    " ",
]
PAIRS: Rows = [
    {"sentence1": text, "sentence2": SENTENCES[-1 - place], "label": place % 2} for place, text in enumerate(SENTENCES)
]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("task", ["sst2", "rte"])
def test_every_format_gives_what_the_texts_give_in_their_order(
    task: str, ending: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("sentence",) if task == "sst2" else ("sentence1", "sentence2")
    rows = [{**dict(zip(names, row.values(), strict=False)), "label": row["label"]} for row in PAIRS]
    path = write(tmp_path / f"in.{ending}", rows)
    expected = load_run(runs[task], "cpu").predict(
        [row[names[0]] for row in rows], [row[names[1]] for row in rows] if task == "rte" else None
    )
    assert predicted(capsys, runs[task], "--input", path) == expected
    assert predicted(capsys, runs[task], "--input", path, "--output", tmp_path / "out.jsonl") == []
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == expected
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [path.name, "out.jsonl"]  # no part is left


def test_a_plain_text_has_a_text_a_line_an_empty_one_too(
    runs: dict[str, Path], single: LoadedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["one", "", "two  ", '{"text": 3}', ""]
    (tmp_path / "in.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(texts).encode() + b"\r\n")
    assert predicted(capsys, runs["sst2"], "--input", tmp_path / "in.txt") == single.predict(texts)


@pytest.mark.parametrize(
    ("content", "texts"),
    [("good\n\nbad", ["good", "", "bad"]), ('{"text": "good"}\n\n{"text": "bad", "x": 1}\n', ["good", "bad"])],
    ids=["plain text", "jsonl"],
)
def test_standard_input_is_plain_text_or_jsonl(
    content: str,
    texts: list[str],
    runs: dict[str, Path],
    single: LoadedRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for more in ([], ["--output", tmp_path / "out.jsonl"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
        lines = predicted(capsys, runs["sst2"], "--input", "-", *more)
    assert lines == []
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == single.predict(texts)


def test_the_files_of_a_folder_come_in_the_order_of_their_names(
    runs: dict[str, Path], single: LoadedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "b.txt").write_text("second\n")
    write(folder / "c.parquet", [{"text": "third", "sentence": "the task's own column comes first"}])
    write(folder / "a.jsonl", [{"text": "first"}])
    (folder / ".hidden").write_text("?")
    expected = single.predict(["first", "second", "the task's own column comes first"])
    assert predicted(capsys, runs["sst2"], "--input", folder) == expected
    (folder / "d.txt.gz").write_bytes(b"")
    assert "d.txt.gz is none of" in refused(capsys, tmp_path, "predict", runs["sst2"], "--input", folder)


def test_columns_go_by_the_names_that_are_given(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"premise": "A dog sleeps.", "text": "x", "claim": "It rests.", "pair": "y", "label": "entailment"}]
    path = write(tmp_path / "in.csv", rows)
    run = load_run(runs["rte"], "cpu")
    flags = ["--input", path, "--text-column", "premise"]
    assert predicted(capsys, runs["rte"], *flags, "--pair-column", "claim") == run.predict(
        ["A dog sleeps."], ["It rests."]
    )
    assert predicted(capsys, runs["rte"], *flags) == run.predict(["A dog sleeps."], ["y"])
    assert predicted(capsys, runs["rte"], "--input", path) == run.predict(["x"], ["y"])


def test_evaluating_a_file_gives_the_metrics_of_the_split(
    runs: dict[str, Path], small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(runs["rte"])]) == 0
    assert main(["evaluate", str(runs["rte"]), "--input", str(small_data / "rte" / "validation.jsonl")]) == 0
    split, file = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert file == split
    write(tmp_path / "in.jsonl", [{"sentence1": "a", "sentence2": "b"}])
    error = refused(capsys, tmp_path, "evaluate", runs["rte"], "--input", tmp_path / "in.jsonl")
    assert "no column 'label'" in error


@given(
    lengths=st.lists(st.sampled_from([0, 1, 50, CHUNK_CHARACTERS // 3, CHUNK_CHARACTERS]), max_size=12),
    short=st.integers(0, 2 * CHUNK_ROWS + 1),
)
@settings(max_examples=20, deadline=None)
def test_windows_hold_every_row_once_in_order_and_are_bounded(lengths: list[int], short: int) -> None:
    from minipeft.data.tasks import get_task

    texts = [*("x" * length for length in lengths), *map(str, range(short))]
    windows = list(share_out(get_task("sst2"), ((text, None, None) for text in texts)))
    assert [text for window in windows for text in window.texts] == texts
    for window in windows:
        assert 1 <= len(window) <= CHUNK_ROWS and sum(map(len, window.texts[:-1])) < CHUNK_CHARACTERS


# -- refusals --


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"sentence": "b"}\n', "a.jsonl, row 1: text is null"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 12}\n', "a.jsonl, row 1: text is 12"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', "a.jsonl: not readable as JSON (line 2: "),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "a.jsonl, line 2: no JSON object"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}\n', r"a.jsonl, row 1: text is '\ud800', no valid text"),
        ("a.jsonl", b'{"body": "a"}\n', "no column 'sentence' (there are body); --text-column can name another"),
        ("a.jsonl", b"", "the file is empty"),
        ("a.csv", b"text,label\na,1\n,0\n", "a.csv, row 1: text is null"),
        ("a.csv", b'text,label\na,1\n"b,0\n', "a.csv: not readable as csv (line 3: "),
        ("a.csv", b"text,label\na,1\nb,0,7\n", "a.csv, line 3: 3 fields, but the header has 2"),
        ("a.csv", b"text,text\na,1\n", "two columns are called 'text'"),
        ("a.csv", b"text,label\n", "at least one row"),
        ("a.tsv", b"text\tlabel\nb\t\xff\n", "a.tsv, line 2: not UTF-8"),
        ("a.txt", "ä".encode("utf-16"), "a.txt, line 1: not UTF-8"),
        ("a.parquet", b"PAR1 and no more", "not readable as parquet"),
        ("a.json", b"{}", "'.json' is not known"),
        ("a", b"text", "'no ending' is not known"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(
    name: str, content: bytes, expected: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    for more in ([], ["--output", tmp_path / "out.jsonl"]):
        assert expected in refused(capsys, tmp_path, "predict", runs["sst2"], "--input", tmp_path / name, *more)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "nothing to predict"),
        (["--text", "a", "--output", "b"], "--output has no meaning without --input"),
        (["--text", "a", "--input", "b"], "--text has no meaning beside --input"),
        (["--input", "absent.txt"], "absent.txt is no file"),
        (["--input", "-", "--pair-column", "b"], "--pair-column 'b'"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    arguments: list[str], expected: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(capsys, tmp_path, "predict", runs["sst2"], *arguments)


def test_an_output_that_is_there_is_never_overwritten(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    (tmp_path / "out.jsonl").write_text("mine")
    flags = ["predict", runs["sst2"], "--input", tmp_path / "in.txt", "--output"]
    assert "is there already" in refused(capsys, tmp_path, *flags, tmp_path / "out.jsonl")
    assert "has no folder" in refused(capsys, tmp_path, *flags, tmp_path / "absent" / "out.jsonl")


def test_a_reader_that_has_enough_ends_the_stream_quietly(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a b\n" * 3 * CHUNK_ROWS)
    command = [sys.executable, "-m", "minipeft", "predict", runs["sst2"], "--input", tmp_path / "in.txt"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    assert "label" in json.loads(process.stdout.readline())
    process.stdout.close()
    assert (process.stderr.read(), process.wait(300)) == (b"", 141)


# -- several processes, and processes that end early --


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six windows and a bit, in two files."""
    folder = tmp_path_factory.mktemp("many")
    for name, start in (("a.txt", 0), ("b.txt", 3 * CHUNK_ROWS + 77)):
        lines = (f"{'word ' * (row % 7)}{row}" for row in range(start, start + 3 * CHUNK_ROWS + 77))
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def whole(many: Path, runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one process predicts for it."""
    output = tmp_path_factory.mktemp("whole") / "out.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        assert main(["predict", str(runs["sst2"]), "--input", str(many), "--output", str(output)]) == 0
    return output.read_bytes()


def torchrun(processes: int, run: Path, many: Path, output: Path) -> subprocess.Popen[str]:
    from importlib.util import find_spec

    assert find_spec("torch.distributed.run") is not None
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)),
            *("-m", "minipeft", "predict", str(run), "--input", str(many), "--output", str(output), "--device", "cpu"),
        ],
        cwd=REPOSITORY,
        env=environment(OMP_NUM_THREADS=str(__import__("torch").get_num_threads())),
        text=True,
        stderr=subprocess.PIPE,
    )


def test_processes_share_the_windows_out_and_write_the_same_bytes(
    many: Path, whole: bytes, runs: dict[str, Path], tmp_path: Path
) -> None:
    """Three of them here, and two below."""
    process = torchrun(3, runs["sst2"], many, tmp_path / "out.jsonl")
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    assert (tmp_path / "out.jsonl").read_bytes() == whole
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_prediction_that_is_stopped_leaves_no_output_and_goes_on(
    number: signal.Signals,
    many: Path,
    whole: bytes,
    runs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, parts = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.parts"
    flags = ["predict", str(runs["sst2"]), "--input", str(many), "--output", str(output)]
    process = subprocess.Popen(
        [sys.executable, "-m", "minipeft", *flags], cwd=REPOSITORY, env=environment(), text=True, stderr=subprocess.PIPE
    )
    wait_for(lambda: len(list(parts.glob("*.jsonl"))) >= 1)
    process.send_signal(number)
    _, error = process.communicate(timeout=300)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), error
    if number != signal.SIGKILL:
        assert error == f"minipeft: stopped, {output} is not written; the same command goes on with what is done\n"
    assert not output.exists()
    first = sorted(parts.glob("*.jsonl"))[0]
    first.write_bytes(b'{"kept": 1}\n')  # to see that it is not computed again
    kept = len(list(parts.glob("*.jsonl")))
    assert main(flags) == 0
    assert output.read_bytes() == first_replaced(whole) and kept < 7 and not parts.exists()


def first_replaced(whole: bytes) -> bytes:
    return b'{"kept": 1}\n' + b"".join(whole.splitlines(keepends=True)[CHUNK_ROWS:])


def test_a_full_disk_leaves_no_output_and_parts_of_other_rows_are_not_used(
    runs: dict[str, Path], single: LoadedRun, many: Path, tmp_path: Path
) -> None:
    """A limit on the size of a file stands for the full disk: there is room for the parts, not for the whole."""
    import resource

    source, output, parts = tmp_path / "in", tmp_path / "out.jsonl", tmp_path / ".out.jsonl.parts"
    source.symlink_to(many)
    flags = ["predict", str(runs["sst2"]), "--input", str(source), "--output", str(output)]
    process = subprocess.run(
        [sys.executable, "-m", "minipeft", *flags],
        cwd=REPOSITORY,
        env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
        text=True,
        capture_output=True,
    )
    assert process.returncode == 2 and len(process.stderr.splitlines()) == 1, process.stderr
    assert f"{output}: cannot be written" in process.stderr and "free space" in process.stderr
    assert not output.exists() and len(list(parts.glob("*.jsonl"))) == 7
    source.unlink()
    source.mkdir()
    (source / "a.txt").write_text("two\n")
    assert main(flags) == 0
    assert [json.loads(line) for line in output.read_text().splitlines()] == single.predict(["two"])


def test_a_killed_worker_ends_the_job_without_a_result_and_a_second_one_works(
    many: Path, whole: bytes, runs: dict[str, Path], tmp_path: Path
) -> None:
    output, parts = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.parts"
    process = torchrun(2, runs["sst2"], many, output)
    wait_for(lambda: (parts / "plan.json").exists())
    children = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True)
    workers = [int(line.split()[0]) for line in children.stdout.splitlines() if "minipeft predict" in line]
    assert len(workers) == 2, children.stdout
    os.kill(workers[-1], signal.SIGKILL)
    _, error = process.communicate(timeout=300)
    assert process.returncode != 0 and not output.exists()
    assert f"minipeft: stopped, {output} is not written; the same command goes on" in error
    again = torchrun(2, runs["sst2"], many, output)
    _, error = again.communicate(timeout=600)
    assert again.returncode == 0, error
    assert output.read_bytes() == whole


def test_several_processes_need_files(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "give --input and --output" in refused(capsys, tmp_path, "predict", runs["sst2"], "--input", "-")


def wait_for(condition: Any, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing came"
        time.sleep(0.01)
