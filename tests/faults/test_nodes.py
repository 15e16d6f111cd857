"""torchrun over two nodes, with and without a shared file system: losses, kills, restarts, and fewer processes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from nodes import Node, host_rendezvous, kill_agent_and_workers
from runs import Process, assert_same, assert_whole, finish, history, state, training

from minipeft.errors import MinipeftError
from minipeft.training.process_group import join_processes


@pytest.fixture(scope="module")
def alone(no_dropout: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training on one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    finish(training(no_dropout, small_data, folder, "--precision", "fp32", "--quiet", dropout=0, epochs=4))
    return folder


@pytest.fixture(scope="module")
def unbroken(no_dropout: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes on one node, with dropout in LoRA."""
    store, node = host_rendezvous(), Node(tmp_path_factory.mktemp("unbroken") / "node", no_dropout, small_data)
    job = node.start(store.port, "1", node.arguments(), processes=2)
    assert job.end() == 0, job.said()
    return node.run


class Cluster:
    """Two nodes and a rendezvous; `jobs` are their torchrun agents."""

    def __init__(self, place: Path, checkpoint: Path, data: Path) -> None:
        self.store = host_rendezvous()
        self.nodes = [Node(place / name, checkpoint, data) for name in "ab"]
        self.jobs: list[Process] = []

    def start(self, nnodes: str, *more: object, restarts: int = 0, order: Sequence[int] = (0, 1)) -> None:
        """Start torchrun on the nodes; the first of `order` gets the smaller process id, and so torchrun's rank 0."""
        self.options = nnodes, more, ["--rdzv-id", str(time.time_ns()), "--max-restarts", str(restarts)]
        jobs = {number: self.start_node(number) for number in order}
        self.jobs = [jobs[0], jobs[1]]

    def start_node(self, number: int) -> Process:
        nnodes, more, flags = self.options
        return self.nodes[number].start(self.store.port, nnodes, self.nodes[number].arguments(*more), *flags)

    def writer(self) -> int:
        """The number of the node that has written to its working directory; the other one's is empty."""
        (number,) = (number for number, node in enumerate(self.nodes) if node.writes())
        return number

    def wait_for_epochs(self, folder: Callable[[], Path | None], epochs: int) -> None:
        """Wait until metrics.jsonl in a folder has this many rows."""

        def reached() -> bool:
            path = folder()
            return path is not None and (path / "metrics.jsonl").is_file() and len(history(path)) >= epochs

        assert self.jobs[0].wait_until(reached), self.said()

    def written(self) -> Path | None:
        return next((node.run for node in self.nodes if node.writes()), None)

    def end(self) -> tuple[int, int]:
        return self.jobs[0].end(), self.jobs[1].end()

    def said(self) -> str:
        return "\n".join(path.read_text() for node in self.nodes for path in sorted(node.place.glob("log-*")))


@pytest.fixture
def cluster(no_dropout: Path, small_data: Path, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, no_dropout, small_data)
    yield cluster
    for job in cluster.jobs:
        kill_agent_and_workers(job)


def assert_close(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


@pytest.mark.full
def test_two_nodes_without_a_shared_folder_train_as_one_process_does(cluster: Cluster, alone: Path) -> None:
    """One node writes, and the losses are those of one process within 1e-5."""
    cluster.start("2", "--dropout", 0)
    assert cluster.end() == (0, 0), cluster.said()
    run = cluster.nodes[cluster.writer()].run
    assert_close(history(run), history(alone))
    assert {path.name for path in alone.iterdir()} <= {path.name for path in run.iterdir()}
    assert sum("2 processes" in job.said() for job in cluster.jobs) == 1  # one of them prints


@pytest.mark.full
def test_nodes_that_are_stopped_and_killed_resume_from_the_one_that_holds_the_checkpoint(
    cluster: Cluster, unbroken: Path
) -> None:
    """SIGTERM to one agent stops both; then torchrun's rank 0 is the node without the checkpoint; one is killed."""
    cluster.start("2")
    cluster.wait_for_epochs(cluster.written, 1)
    writer = cluster.writer()
    cluster.jobs[1 - writer].kill(signal.SIGTERM)
    assert 0 not in cluster.end()
    (line,) = (line for line in cluster.said().splitlines() if line.startswith("minipeft:"))
    assert re.fullmatch(r"minipeft: interrupted (in step|after epoch) \d+; continue with --resume", line)
    run = cluster.nodes[writer].run
    assert_whole(run)
    step = state(run)["progress"]["step"]
    assert 24 <= step < 96

    cluster.start("2", "--resume", restarts=3, order=(1 - writer, writer))
    cluster.wait_for_epochs(lambda: run, len(history(run)) + 1)
    kill_agent_and_workers(cluster.jobs[writer])
    assert_whole(run)
    cluster.jobs[writer] = cluster.start_node(writer)
    assert cluster.end() == (0, 0), cluster.said()
    resumed = re.findall(r"resuming run from step (\d+)", cluster.said())
    assert int(resumed[0]) == step and len(resumed) >= 2, resumed
    assert cluster.writer() == writer
    assert_same(run, unbroken)


@pytest.mark.full
def test_nodes_that_share_the_folder_have_one_writer_and_outlive_a_killed_agent(
    cluster: Cluster, unbroken: Path, tmp_path: Path
) -> None:
    """The workers of an agent that was killed alone save and end."""
    run = tmp_path / "shared" / "run"
    cluster.start("2", "--output", run, "--resume", restarts=3)
    cluster.wait_for_epochs(lambda: run, 1)
    cluster.jobs[1].kill()
    cluster.jobs[1].end()
    cluster.jobs[1] = cluster.start_node(1)
    assert cluster.end() == (0, 0), cluster.said()
    assert f"resuming {run} from step" in cluster.said()
    assert_same(run, unbroken)
    assert not any(node.writes() for node in cluster.nodes)


@pytest.mark.full
def test_an_elastic_run_continues_with_the_node_that_is_left(cluster: Cluster, alone: Path) -> None:
    cluster.start("1:2", "--dropout", 0, "--resume", restarts=3)
    cluster.wait_for_epochs(cluster.written, 1)
    writer = cluster.writer()
    kill_agent_and_workers(cluster.jobs[1 - writer])
    assert cluster.jobs[writer].end() == 0, cluster.said()
    assert "resuming run from step" in cluster.said()
    assert_close(history(cluster.nodes[writer].run), history(alone))


@pytest.mark.full
def test_a_node_with_other_data_is_refused_by_name(cluster: Cluster) -> None:
    path = cluster.nodes[1].place / "data" / "rte" / "train.jsonl"
    first, *rows = path.read_text().splitlines(keepends=True)
    row = json.loads(first)
    path.write_text("".join([json.dumps(row | {"label": 1 - row["label"]}) + "\n", *rows]))
    cluster.start("2")
    assert 0 not in cluster.end()
    (line,) = (line for line in cluster.said().splitlines() if line.startswith("minipeft:"))
    assert f"rank 1 on {socket.gethostname()}: the training examples differ from those of rank 0" in line
    assert not any(node.writes() for node in cluster.nodes)


@pytest.mark.full
def test_a_node_without_the_model_is_refused_by_name(cluster: Cluster) -> None:
    shutil.rmtree(cluster.nodes[1].place / "model")
    cluster.start("2")
    assert 0 not in cluster.end()
    (line,) = (line for line in cluster.said().splitlines() if line.startswith("minipeft:"))
    assert re.match(rf"minipeft: rank \d on {re.escape(socket.gethostname())}: '../model' is not a folder", line)
    assert not any(node.writes() for node in cluster.nodes)


@pytest.mark.parametrize(
    ("variables", "resume", "held", "message"),
    [
        ({}, True, None, "torchrun --nnodes with --resume needs --output"),
        ({"TORCHELASTIC_MAX_RESTARTS": "1"}, False, 0, "torchrun --max-restarts needs --resume"),
        (
            {"TORCHELASTIC_MAX_RESTARTS": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"},
            True,
            0,
            "Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on every node",
        ),
    ],
)
def test_what_several_nodes_need_is_said_before_they_meet(
    variables: dict[str, str], resume: bool, held: int | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {"TORCHELASTIC_RUN_ID": "test", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "False"}
    for name, value in (job | {"TORCHELASTIC_MAX_RESTARTS": "0"} | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MinipeftError, match=message):
        join_processes("cpu", resume, held)
