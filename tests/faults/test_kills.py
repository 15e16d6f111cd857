"""kill -9 at random moments of training, of saving and of fetching: what was begun again ends with the same bits."""

from __future__ import annotations

import random
import signal
import sys
import time
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer
from runs import Process, assert_same, assert_whole, finish, start, training
from safetensors.torch import save
from small_runs import last_step

from minipeft.training.run_folder.checkpoint_files import has_checkpoint


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    return 50 if request.config.getoption("--faults-full") else 2


@pytest.mark.full
@pytest.mark.parametrize("moment", ["training", "saving"])
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
            steps.append(last_step(folder))
            print(
                f"{moment}: kill {done}, checkpoint of step {steps[-1]}, {leftovers} left a part of a file", flush=True
            )
        there = has_checkpoint(folder)
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
    variables = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": ""}
    choose, done, fetched = random.Random(0), 0, 0
    try:
        while done < kills or not fetched:
            cache = tmp_path / f"cache-{fetched}"
            left = set(cache.rglob("*.incomplete"))  # by earlier kills
            process = Process(tmp_path / "log", [sys.executable, "-c", FETCH], HF_HUB_CACHE=str(cache), **variables)
            if done < kills:
                process.wait_until(lambda cache=cache, left=left: set(cache.rglob("*.incomplete")) - left)
                time.sleep(choose.uniform(0, 0.7))
                process.kill()
            if process.end() == -signal.SIGKILL:
                done += 1
                print(f"fetching: kill {done}", flush=True)
                continue
            assert process.process.returncode == 0, process.said()
            fetched += 1
            for name, content in files.items():
                assert (cache / "models--owner--model" / "snapshots" / COMMIT / name).read_bytes() == content
    finally:
        server.stop()
    print(f"fetching: {done} kills, {fetched} whole checkpoints")


FETCH = """
import sys
from minipeft.cli.cli import main
sys.exit(main(["fetch", "owner/model"]))
"""
