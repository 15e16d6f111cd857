"""`--runner ray` on a real Ray cluster of two nodes with one CPU each: results, lost nodes, killed drivers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, contents, environment
from test_compare import children_in, run_to_the_end, without_checkpoints, without_times

from minipeft.cli.cli import main
from minipeft.compare.runners.local_runner import Command
from minipeft.compare.runners.ray_runner import TOKEN, run_on_node

pytestmark = pytest.mark.full
ENDED = ("Z", "X", "")  # states of a process that has ended
SMALL = {"object_store_memory": 80 << 20, "include_dashboard": False}
# A node that answers no request counts as lost after 1 s, not after Ray's 15 s.
HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 300, "health_check_failure_threshold": 3}
# A worker whose node is gone does not kill its child: a machine that stood still kills nothing either.
LEAVE_CHILDREN = {"kill_child_processes_on_worker_exit": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs and two nodes with one each, as processes of this machine."""
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: pip install minipeft[ray]")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(OMP_NUM_THREADS="1").items():
            patch.setenv(name, value)
        cluster = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": HEALTH | LEAVE_CHILDREN, **SMALL}
        )
        cluster.workers = [cluster.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(2)]
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def flags(tiny_checkpoint: Path, small_data: Path) -> list[str]:
    """Two seeds of one method, and a run whose learning rate is too high for any float."""
    return [
        *("compare", "--task", "rte", "--method", "lora", "head", "--rank", "1", "--seed", "1", "lora=1,2"),
        *("--lr", "1e-3", "head=1e38", "--epochs", "8", "--model", str(tiny_checkpoint), "--data", str(small_data)),
        *("--batch-size", "4", "--grad-accum", "1", "--warmup-steps", "0", "--train-limit", "64", "--device", "cpu"),
        *("--precision", "fp32", "--quiet"),
    ]


@pytest.fixture(scope="module")
def local(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison of the local runner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        folder = tmp_path_factory.mktemp("local") / "comparison"
        assert run_to_the_end(flags, folder, "--jobs", "2").status == 2
    return folder


def driver(cluster: Any, flags: list[str], folder: Path, **variables: str) -> subprocess.Popen[str]:
    """The command in a session of its own, as in a terminal; without a cluster it starts a Ray on this machine."""
    command = [sys.executable, "-m", "minipeft", *flags, "--output", str(folder), "--resume", "--runner", "ray"]
    return subprocess.Popen(
        [*command, *(["--ray-address", cluster.address] if cluster else [])],
        cwd=REPOSITORY,
        env=environment(OMP_NUM_THREADS="1", **variables),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("runs/*/checkpoint/*.json"))


def epochs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("runs/*/metrics.jsonl") if path.read_text())


def pids_of(folder: Path) -> list[int]:
    """The child processes of the runs below a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"--output={folder}/runs/".encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:  # it has ended
            continue
    return found


def process_of(folder: Path, run: Path) -> int | None:
    """The child process of a run."""
    for pid in pids_of(folder):
        with suppress(OSError):  # it has ended
            if f"--output={run}\0" in Path(f"/proc/{pid}/cmdline").read_text():
                return pid
    return None


def freeze(cluster: Any, folder: Path, run: Path) -> tuple[int, int, Any]:
    """Let the child process of a run stand still at once, so that the run does not end while its node is looked for.

    Returns the child, its parent, which is Ray's worker, and their node.
    """
    child = process_of(folder, run)
    assert child is not None
    os.kill(child, signal.SIGSTOP)
    return child, *place_of(cluster, child)


def place_of(cluster: Any, child: int) -> tuple[int, Any]:
    """The parent of a run's child process, which is Ray's worker, and their node."""
    worker = parent_of(child)
    (node,) = (node for node in cluster.workers if raylet_of(node) == parent_of(worker))
    return worker, node


def raylet_of(node: Any) -> int:
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


@contextmanager
def removed(cluster: Any, node: Any, *processes: int) -> Iterator[None]:
    """Kill a node and some processes of its own, and put another node in its place at the end."""
    for pid in (raylet_of(node), *processes):
        os.kill(pid, signal.SIGKILL)
    cluster.workers.remove(node)
    cluster.remove_node(node, allow_graceful=False)
    wait_until(lambda: all(state_of(pid) in ENDED for pid in processes))
    try:
        yield
    finally:
        cluster.workers.append(cluster.add_node(num_cpus=1, object_store_memory=80 << 20))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("PPid:")[2].split()[0])


def state_of(pid: int) -> str:
    """The letter that the kernel gives a process's state; empty for a process that does not exist."""
    try:
        return Path(f"/proc/{pid}/status").read_text().partition("State:")[2].split()[0]
    except OSError:
        return ""


def assert_same_comparison(one: Path, other: Path) -> None:
    """Tables and page without times, and every adapter to the bit."""
    assert without_times(one) == without_times(other)
    adapters = sorted(one.glob("runs/*/adapter/adapter_*"))
    assert len(adapters) == 4
    for path in adapters:
        assert path.read_bytes() == (other / path.relative_to(one)).read_bytes(), path
    assert page_without_times(one) == page_without_times(other)


def page_without_times(folder: Path) -> str:
    """page.html without the cells of seconds and memory."""
    page = without_checkpoints(folder, "page.html")
    page, cells = re.subn(r'(<td data-label="(?:Seconds|Memory)">)[^<]+', r"\1", page)
    assert cells == 2  # of the one row with a result
    return page


def test_a_comparison_on_ray_is_that_of_the_local_runner(
    cluster: Any, flags: list[str], local: Path, tmp_path: Path
) -> None:
    """The run that diverges is reported with the last line of its log, and does not stop the others."""
    done = run_to_the_end(flags, tmp_path / "comparison", "--runner", "ray", "--ray-address", cluster.address)
    assert done.status == 2
    assert re.search(r"1 of 3 runs failed, the first rte-head-lr1e\+38-seed1 \(step .*nan", done.err), done.err
    assert_same_comparison(done.folder, local)
    assert not (done.folder / TOKEN).exists()


def test_a_driver_that_is_killed_is_resumed(cluster: Any, flags: list[str], local: Path, tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    first = driver(cluster, flags, folder)
    wait_until(lambda: checkpoints(folder), first)
    first.kill()
    first.communicate()
    second = driver(cluster, flags, folder)
    _, said = second.communicate(timeout=300)
    assert second.returncode == 2 and "1 of 3 runs failed, the first rte-head" in said, said
    assert_same_comparison(folder, local)
    assert not children_in(folder)


def test_a_run_whose_node_is_lost_resumes_on_another(
    cluster: Any, flags: list[str], local: Path, tmp_path: Path
) -> None:
    """All processes of a node end at once after an epoch, as in a power cut."""
    folder = tmp_path / "comparison"
    process = driver(cluster, flags, folder)
    wait_until(lambda: epochs(folder), process)
    run = epochs(folder)[0].parent
    child, worker, node = freeze(cluster, folder, run)
    with removed(cluster, node, worker, child):
        before = epochs(folder)[0].read_text()
        assert not (run / "result.json").exists()
        wait_until(lambda: process_of(folder, run), process)
        again = process_of(folder, run)
        assert again is not None
        place_of(cluster, again)  # on a node that is left
        _, said = process.communicate(timeout=300)
        assert process.returncode == 2 and "1 of 3 runs failed" in said, said
        assert (run / "metrics.jsonl").read_text().startswith(before)  # with its seconds: the epoch was not repeated
        assert_same_comparison(folder, local)


def test_a_run_whose_node_is_lost_continues_on_another_and_its_frozen_process_never_writes(
    cluster: Any, flags: list[str], local: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The process stands still from before its node is lost until the run has finished elsewhere.

    Its parent ends with the node: Ray would wait for minutes for one that stands still too. So the process has to end
    when it wakes up. It says so, or names the new owner; tests/test_lease.py has the second without Ray.
    """
    if not request.config.getoption("--faults-full"):
        pytest.skip("a long case: --faults-full runs it")
    folder = tmp_path / "comparison"
    process = driver(cluster, flags, folder)
    wait_until(lambda: checkpoints(folder), process)
    run = checkpoints(folder)[0].parent.parent
    frozen, worker, node = freeze(cluster, folder, run)
    try:
        with removed(cluster, node, worker):
            _, said = process.communicate(timeout=300)
            assert process.returncode == 2 and "1 of 3 runs failed" in said, said
            before = contents(run)
            assert state_of(frozen) == "T"  # it is its own session, so that neither Ray nor the kernel ends it
            os.kill(frozen, signal.SIGCONT)
            wait_until(lambda: state_of(frozen) in ENDED)
            log = (folder / "logs" / f"{run.name}.txt").read_text(errors="replace")
            assert re.search("has taken the run over, while this process stood still|minipeft: interrupted", log), log
            assert contents(run) == before
            assert_same_comparison(folder, local)
    finally:
        with suppress(ProcessLookupError):
            os.kill(frozen, signal.SIGKILL)


def test_ctrl_c_ends_a_ray_on_this_machine_and_the_comparison_resumes(
    flags: list[str], local: Path, tmp_path: Path
) -> None:
    """Without an address; the terminal sends SIGINT to Ray's processes too."""
    folder, home = tmp_path / "comparison", {"HOME": str(tmp_path / "home")}  # Ray writes a token to it
    first = driver(None, flags, folder, **home)
    wait_until(lambda: checkpoints(folder), first)
    os.killpg(first.pid, signal.SIGINT)
    _, said = first.communicate(timeout=100)
    assert first.returncode == 130, said
    assert re.search(r"^minipeft: interrupted after \d of 3 runs; resume with --resume\n\Z", said, re.M), said
    assert "Traceback" not in said
    assert not children_in(folder) and not (folder / TOKEN).exists()
    wait_until(lambda: not processes_of_session(first.pid))
    second = driver(None, flags, folder, **home)
    _, said = second.communicate(timeout=300)
    assert second.returncode == 2 and "1 of 3 runs failed, the first rte-head" in said, said
    assert_same_comparison(folder, local)
    wait_until(lambda: not processes_of_session(second.pid))


def processes_of_session(session: int) -> list[int]:
    """The processes of a session, Ray's among them."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            state, _, _, its_session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                found.append(int(path.name))
    return found


def test_a_folder_of_files_is_predicted_on_ray_and_a_bad_file_is_reported(
    cluster: Any, small_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, output = tmp_path / "files", tmp_path / "predictions"
    files.mkdir()
    for name in ("a.txt", "b.txt"):
        (files / name).write_text("".join(f"sentence {number} of {name}\n" for number in range(20)))
    (files / "bad.jsonl").write_text("not json\n")
    common = ["predict", str(small_runs["sst2"]), "--input", str(files), "--device", "cpu"]
    ray = ["--runner", "ray", "--ray-address", cluster.address]
    assert main([*common, "--output", str(output), *ray]) == 2
    assert "1 of 3 files failed: bad.jsonl" in capsys.readouterr().err
    for name in ("a.txt", "b.txt"):
        assert main([*common[:2], "--input", str(files / name), "--output", str(tmp_path / f"{name}.jsonl")]) == 0
        assert (output / f"{name}.jsonl").read_bytes() == (tmp_path / f"{name}.jsonl").read_bytes()
    assert not (output / "bad.jsonl.jsonl").exists()


def test_a_node_that_does_not_share_the_folder_is_refused_by_name(tmp_path: Path) -> None:
    command = Command("run", ["train"], tmp_path / "run")
    assert "does not share this folder" in str(run_on_node(tmp_path, command, 1, str(tmp_path), "token"))
    assert not list(tmp_path.iterdir())
