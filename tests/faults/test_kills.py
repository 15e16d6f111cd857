"""kill -9 at random moments of training, of saving and of fetching: what was begun again ends with the same bits."""

from __future__ import annotations

import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from hub_server import HubServer
from runs import Process, assert_same, assert_whole, finish, start, state, training
from safetensors.torch import save


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    return 50 if request.config.getoption("--faults-full") else 2


@pytest.mark.parametrize("moment", ["training", pytest.param("saving", marks=pytest.mark.full)])
def test_a_run_killed_again_and_again_ends_as_an_unbroken_one(
    moment: str, kills: int, unbroken_run: Path, tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    """A run that gets to its end before the last kill is compared, and another one is begun."""
    choose, done, number, leftovers, steps = random.Random(0), 0, 0, 0, []
    while done < kills:
        number += 1
        folder = tmp_path / f"run-{number}"
        minutes = 0.002 if moment == "training" else 0  # 0: after every step
        arguments = training(tiny_checkpoint, small_data, folder, "--resume", "--checkpoint-minutes", minutes)
        while done < kills:
            process = start(tmp_path / "log", arguments)
            reached = process.wait_until_training()
            time.sleep(choose.uniform(0, 1.0))
            if moment == "saving" and reached:
                process.wait_until(lambda folder=folder: any(folder.rglob(".*.partial")))
                time.sleep(choose.uniform(0, 0.001))
            process.kill()
            if process.end() == 0:  # it was at its end already
                break
            assert process.process.returncode == -signal.SIGKILL, process.said()
            done += 1
            leftovers += any(folder.rglob(".*.partial"))
            assert_whole(folder)
            steps.append(state(folder)["progress"]["step"] if (folder / "checkpoint" / "state.pt").exists() else -1)
            print(
                f"{moment}: kill {done}, checkpoint of step {steps[-1]}, {leftovers} left a part of a file", flush=True
            )
        there = (folder / "checkpoint" / "state.pt").exists()
        said = finish(arguments)
        begin = f"resuming {folder} from step " if there else f"{folder} has no checkpoint yet"
        assert any(line.startswith(begin) for line in said), said
        assert_same(folder, unbroken_run)
    assert kills < 50 or len(set(steps)) > 10, "the kills came at few steps, so this test sees few moments"
    assert kills < 50 or leftovers or moment == "training", "no kill came while a file was written"
    print(f"{moment}: {done} kills in {number} runs, all the same to the bit")


def test_a_fetch_killed_again_and_again_brings_every_byte(kills: int, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    files = {
        "config.json": b'{"model_type": "roberta"}',
        "tokenizer.json": b'{"version": "1.0", "model": {"type": "BPE"}}',
        "model.safetensors": save({"roberta.weight": torch.randn(1000, 1000)}),
    }
    server = HubServer({"owner/model": files}, bytes_per_second=1_500_000)
    server.start()
    # The package by itself: what it fetches goes to weights/ of the current folder.
    shutil.copytree(REPOSITORY / "minipeft", tmp_path / "site" / "minipeft")
    variables = {"PYTHONPATH": str(tmp_path / "site"), "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": ""}
    choose, done, fetched = random.Random(0), 0, 0
    try:
        while done < kills or not fetched:
            weights = tmp_path / f"place-{fetched}" / "weights"
            weights.parent.mkdir(exist_ok=True)
            command = [sys.executable, "-c", FETCH, str(weights.parent)]
            process = Process(tmp_path / "log", command, **variables)
            if done < kills:
                process.wait_until(lambda weights=weights: (weights / ".model.partial").exists())
                time.sleep(choose.uniform(0, 0.7))
                process.kill()
            if process.end() == -signal.SIGKILL:
                done += 1
                print(f"fetching: kill {done}", flush=True)
                assert {path.name for path in weights.iterdir() if path.name[0] != "."} <= {"model"}
                if not (weights / "model").exists():
                    continue
            else:
                assert process.process.returncode == 0, process.said()
            fetched += 1
            for name, content in files.items():
                assert (weights / "model" / name).read_bytes() == content
            assert not (weights / ".model.partial").exists()
    finally:
        server.stop()
    print(f"fetching: {done} kills, {fetched} whole checkpoints")


FETCH = """
import os, sys
os.chdir(sys.argv.pop(1))
from minipeft.cli.cli import main
sys.exit(main(["fetch", "owner/model"]))
"""
