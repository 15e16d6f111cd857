"""torchrun: the same losses on one, two and three processes; a lost, silent or stopped worker; restarts."""

from __future__ import annotations

import io
import json
import os
import re
import signal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hub_server import Failure, HubServer
from hub_support import GLUE_CARD
from runs import assert_same, assert_whole, finish, history, start_workers, state, training, worker
from safetensors.torch import load_file

from minipeft.files import LEASE
from minipeft.training.distributed import SINGLE_PROCESS
from minipeft.training.process_group import ProcessGroup


@pytest.fixture
def full(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--faults-full"):
        pytest.skip("a long case: pass --faults-full")


@pytest.fixture(scope="module")
def epochs(request: pytest.FixtureRequest) -> int:
    """Of the unbroken run; the long cases need the time to come in between."""
    return 8 if request.config.getoption("--faults-full") else 4


@pytest.fixture(scope="module")
def unbroken(epochs: int, no_dropout: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two processes, with dropout in LoRA alone."""
    folder = tmp_path_factory.mktemp("unbroken")
    job = start_workers(folder / "log", 2, training(no_dropout, small_data, folder / "run", epochs=epochs))
    assert job.end() == 0, job.said()
    return folder / "run"


@pytest.mark.parametrize(
    ("method", "precision", "tolerance"),
    [("lora", "fp32", 1e-5), ("full", "fp32", 1e-5), pytest.param("lora", "bf16", 0.02, marks=pytest.mark.full)],
)
def test_the_number_of_processes_changes_no_loss(
    method: str,
    precision: str,
    tolerance: float,
    request: pytest.FixtureRequest,
    no_dropout: Path,
    small_data: Path,
    tmp_path: Path,
) -> None:
    """In steps of up to 5 sequences; the last step of an epoch has one, so that a process has none.

    The tolerance is the rounding, which in bf16 depends on the sequences of a batch.
    """
    full = request.config.getoption("--faults-full")
    if method == "full" and not full:
        pytest.skip("a long case: pass --faults-full")
    more = ["--precision", precision, "--method", method, "--batch-size", 5, "--warmup-steps", 2, "--quiet"]
    runs = {}
    for count in (1, 2, 3) if full else (1, 2):
        arguments = training(
            no_dropout, small_data, tmp_path / str(count), *more, dropout=0 if method == "lora" else None, epochs=2
        )
        if count == 1:
            finish(arguments)
        else:
            job = start_workers(tmp_path / f"log-{count}", count, arguments)
            assert job.end() == 0, job.said()
        runs[count] = history(tmp_path / str(count))
    for count, rows in runs.items():
        for row, alone in zip(rows, runs[1], strict=True):
            assert row == pytest.approx(alone, abs=tolerance), count
        if precision == "bf16":
            continue
        one, other = (load_file(tmp_path / str(n) / "adapter" / "adapter_model.safetensors") for n in (1, count))
        for name, tensor in one.items():
            if not name.endswith("key.bias"):  # its gradient is rounding noise, which AdamW scales up
                torch.testing.assert_close(other[name], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.full
def test_a_lost_worker_is_replaced_by_a_restart_that_ends_with_the_same_bits(
    unbroken: Path, epochs: int, no_dropout: Path, small_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    more = ["--checkpoint-minutes", 0.002, "--resume"]
    arguments = training(no_dropout, small_data, folder, *more, epochs=epochs)
    job = start_workers(tmp_path / "log", 2, arguments, "--max-restarts", "1")
    assert job.wait_until((folder / "metrics.jsonl").exists), job.said()
    os.kill(worker(job, 0), signal.SIGKILL)
    assert job.end() == 0, job.said()
    assert sum(line.startswith(f"resuming {folder} from step ") for line in job.lines()) == 1, job.said()
    assert not (folder / LEASE).exists()  # the killed process held it
    assert_same(folder, unbroken)


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_worker_ends_the_job_with_one_clear_line(
    rank: int, unbroken: Path, no_dropout: Path, small_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    arguments = training(no_dropout, small_data, folder, "--resume", "--checkpoint-minutes", 0.002)
    job = start_workers(tmp_path / "log", 2, arguments)
    assert job.wait_until((folder / "metrics.jsonl").exists), job.said()
    os.kill(worker(job, rank), signal.SIGKILL)
    assert job.end(30) == 1, job.said()
    (line,) = (line for line in job.lines() if line.startswith("minipeft:"))
    assert f"process {1 - rank} of 2, counted from 0: another process has ended" in line
    assert "The last checkpoint is kept: continue with --resume" in line
    assert_whole(folder)
    job = start_workers(tmp_path / "log", 2, arguments)
    assert job.end() == 0, job.said()
    assert_same(folder, unbroken)


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("whom", ["torchrun", "worker 0", "worker 1"])
def test_a_signal_stops_every_worker_at_the_same_step(
    whom: str, unbroken: Path, no_dropout: Path, small_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    arguments = training(no_dropout, small_data, folder, "--resume")
    job = start_workers(tmp_path / "log", 2, arguments)
    assert job.wait_until((folder / "metrics.jsonl").exists), job.said()
    os.kill(job.process.pid if whom == "torchrun" else worker(job, int(whom[-1])), signal.SIGTERM)
    assert job.end(60) != 0
    (line,) = (line for line in job.lines() if line.startswith("minipeft:"))
    assert re.fullmatch(r"minipeft: interrupted (in step|after epoch) \d+; continue with --resume --output \S+", line)
    before = state(folder)["progress"]
    assert 24 <= before["step"] < 192
    job = start_workers(tmp_path / "log", 2, arguments)
    assert job.end() == 0, job.said()
    assert any(line.startswith(f"resuming {folder} from step {before['step']} ") for line in job.lines())
    assert_same(folder, unbroken)


@pytest.mark.usefixtures("full")
def test_a_silent_worker_ends_the_job(tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> None:
    """One process is stopped, not ended; the others wait for --group-timeout, here 6 seconds."""
    folder = tmp_path / "run"
    arguments = training(tiny_checkpoint, small_data, folder, "--group-timeout", 0.1, epochs=100)
    job = start_workers(tmp_path / "log", 2, arguments)
    assert job.wait_until((folder / "metrics.jsonl").exists), job.said()
    stopped = worker(job, 1)
    os.kill(stopped, signal.SIGSTOP)
    assert job.wait_until(lambda: "another process has ended, or was silent for 0:00:06" in job.said(), 60)
    os.kill(stopped, signal.SIGCONT)  # torchrun cannot end a stopped process for half a minute
    assert job.end(60) == 1
    assert_whole(folder)


@pytest.mark.usefixtures("full")
def test_a_loss_that_is_not_finite_ends_every_worker_and_is_said_once(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    more = ["--lr", 1e36, "--warmup-steps", 10, "--precision", "bf16", "--checkpoint-minutes", 0]
    job = start_workers(tmp_path / "log", 2, training(tiny_checkpoint, small_data, tmp_path / "run", *more))
    assert job.end() == 1
    (line,) = (line for line in job.lines() if line.startswith("minipeft:"))
    assert re.search(r"step \d+: the loss is .*Lower --lr .*keeps the checkpoint of epoch 1, step 1\)", line), line
    assert all(tensor.isfinite().all() for tensor in state(tmp_path / "run")["weights"].values())


@pytest.mark.usefixtures("full")
def test_bad_input_is_said_once(tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> None:
    finish(training(tiny_checkpoint, small_data, tmp_path / "run", "--quiet", epochs=1))
    for arguments, flags, expected in (
        (training(tiny_checkpoint, small_data, tmp_path / "run"), [], "already holds a run. Pass --resume"),
        (training(tiny_checkpoint, small_data, tmp_path / "run", "--resume"), [], "the run has epochs 1, not 8"),
        (training(tiny_checkpoint, tmp_path, tmp_path / "new"), [], "no folder rte"),
        (training(tiny_checkpoint, small_data, tmp_path / "new"), ["--max-restarts", "2"], "needs --resume"),
    ):
        job = start_workers(tmp_path / "log", 2, arguments, *flags)
        assert job.end() == 1
        lines = [line for line in job.lines() if line.startswith("minipeft:")]
        assert lines and all(expected in line for line in lines), job.said()
        assert len(lines) == 1 + len(flags), job.said()  # a restarted attempt says it again
        assert not (tmp_path / "new").exists()


@pytest.mark.full
def test_processes_with_other_settings_or_examples_do_not_train_together(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    """Rank 1 gets another flag; tests/faults/test_nodes.py gives it other rows."""
    script = tmp_path / "train_ranks.py"
    script.write_text(
        "import os, sys\n"
        "from minipeft.cli import main_train\n"
        "sys.exit(main_train(sys.argv[1:] + (['--weight-decay', '0.5'] if os.environ['RANK'] == '1' else [])))\n"
    )
    arguments = training(tiny_checkpoint, small_data, tmp_path / "run", epochs=1)
    job = start_workers(tmp_path / "log", 2, [str(script), *arguments[1:]])
    assert job.end() == 1
    (line,) = (line for line in job.lines() if line.startswith("minipeft:"))
    assert re.search(r"rank 1 on .*: the settings \(--weight-decay\) differ from those of rank 0", line)
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_an_error_of_one_rank_alone_is_printed_with_its_rank(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    """Rank 1 cannot read the training data, which rank 0 can, as on a machine whose folder is not mounted."""
    script = tmp_path / "train_ranks.py"
    script.write_text(
        "import os, sys\n"
        "from minipeft.cli import main_train\n"
        "from minipeft.errors import MinipeftError\n"
        "from minipeft.training import run\n"
        "def fail(job):\n"
        "    raise MinipeftError('rows.parquet: cannot be read. Mount the folder.')\n"
        "if os.environ['RANK'] == '1':\n"
        "    run.load_examples = fail\n"
        "sys.exit(main_train())\n"
    )
    arguments = training(tiny_checkpoint, small_data, tmp_path / "run", epochs=1)
    job = start_workers(tmp_path / "log", 2, [str(script), *arguments[1:]])
    assert job.end() == 1
    printed = [line for line in job.lines() if line.startswith("minipeft:")]
    assert "minipeft: rank 1: rows.parquet: cannot be read. Mount the folder." in printed, job.said()
    assert all("another process has ended" in line for line in printed if "rows.parquet" not in line), job.said()
    assert not (tmp_path / "run").exists()  # the lease went with it


@pytest.mark.full
def test_a_503_for_one_rank_changes_neither_model_nor_data(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The first download meets a 503 for the model and two for the data: rank 0 repeats it, and both ranks train."""
    server = HubServer({"owner/tiny": {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()}})
    columns = {"sentence1": ["a b"] * 16, "sentence2": ["b a"] * 16, "label": [0, 1] * 8}
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    splits = {f"rte/{split}-00000-of-00001.parquet": file.getvalue() for split in ("train", "validation")}
    server.repos["datasets/nyu-mll/glue"] = {"README.md": GLUE_CARD, **splits}
    server.failures = [Failure("hub", word, 503) for word in ("/api/models/", "/tree/", "GET /datasets/nyu-mll/glue")]
    server.start()
    caches = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_DATASETS_CACHE": str(tmp_path / "d")}
    flags = ["--task", "rte", "--model", "owner/tiny", "--epochs", "1", "--batch-size", "4", "--output"]
    job = start_workers(
        tmp_path / "log",
        2,
        ["train.py", *flags, str(tmp_path / "run")],
        HF_ENDPOINT=server.url,
        HF_HUB_OFFLINE="0",
        **caches,
    )
    try:
        assert job.end() == 0, job.said()
    finally:
        server.stop()
    assert not any(failure.times for failure in server.failures)
    assert len(server.asked("hub", "/api/models/")) == 2, "the other rank asked the hub too"
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["model"], config["source"]) == ("owner/tiny", "nyu-mll/glue")


def test_a_step_is_shared_out_by_its_tokens() -> None:
    """Every example once, and no process with more than the longest example above the mean."""
    lengths = [1 + (37 * number) % 101 for number in range(64)]
    for size in (2, 3, 8):
        shares = [ProcessGroup(rank, size).share(range(64), lengths) for rank in range(size)]
        assert sorted(index for share in shares for index in share) == list(range(64))
        tokens = [sum(lengths[index] for index in share) for share in shares]
        assert max(tokens) - min(tokens) <= max(lengths)
    assert [list(ProcessGroup(rank, 3).share([4], lengths)) for rank in range(3)] == [[4], [], []]
    alone = [3, 1, 2]
    assert SINGLE_PROCESS.share(alone, lengths) is alone


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the threads of a process are read from /proc")
@pytest.mark.full
def test_no_thread_of_the_group_outlives_it(no_dropout: Path, small_data: Path, tmp_path: Path) -> None:
    """One that did could abort its process at the end, and torchrun would take a finished job for a failed one."""
    script = tmp_path / "script.py"
    script.write_text(THREADS)
    job = start_workers(tmp_path / "log", 2, [str(path) for path in (script, no_dropout, small_data, tmp_path / "run")])
    assert job.end() == 0, job.said()
    assert job.said().count("threads while training: True, in the end: False") == 2, job.said()


THREADS = """
import atexit, sys
from pathlib import Path

def of_the_group():
    return any("gloo" in (thread / "comm").read_text() for thread in Path("/proc/self/task").iterdir())

seen = []
atexit.register(lambda: print(f"threads while training: {seen[0]}, in the end: {of_the_group()}", flush=True))
import minipeft

model, data, output = sys.argv[1:]
minipeft.train(model=model, data=data, output=output, epochs=1, train_limit=8, device="cpu", quiet=True)
seen.append(of_the_group())
"""
