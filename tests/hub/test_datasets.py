"""GLUE through the datasets library, from a server on 127.0.0.1 that fails as the Hugging Face hub does."""

import io
import random
import signal
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from conftest import contents
from hub_server import Failure, HubServer
from hub_support import GLUE_CARD, start_python

pytest_plugins = ["hub_fixtures"]

READ = """
from minipeft.data.tasks.splits import choose_data, read_split
from minipeft.data.tasks.task import get_task
source, description = choose_data(get_task("rte"), "auto")
print(len(read_split(get_task("rte"), "train", source).texts), description)
"""


def parquet(rows: int) -> bytes:
    columns = {"sentence1": ["a"] * rows, "sentence2": ["b"] * rows, "label": [0] * rows, "idx": list(range(rows))}
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


@pytest.mark.full
def test_glue_comes_from_the_hub_despite_faults_and_then_from_the_cache(server: HubServer, cache: Path) -> None:
    splits = {f"rte/{split}-00000-of-00001.parquet": parquet(20) for split in ("train", "validation")}
    server.repos["datasets/nyu-mll/glue"] = {"README.md": GLUE_CARD, **splits}
    server.failures = [Failure("hub", "/tree/", 503), Failure("hub", "GET /datasets/nyu-mll/glue/resolve", 503)]
    server.stale_token = "hf_stale"
    home = {"HF_HOME": str(cache.parent), "HF_DATASETS_CACHE": str(cache.parent / "datasets")}
    output, errors = start_python(READ, HF_TOKEN="hf_stale", **home).communicate(timeout=120)
    assert output.startswith("20 nyu-mll/glue (rte)"), errors
    assert not any(failure.times for failure in server.failures)
    assert "the hub rejected the token" in errors and "hf_stale" not in errors
    output, errors = start_python(READ, TRANSFORMERS_OFFLINE="1", **home).communicate(timeout=120)
    assert output == "20 nyu-mll/glue (rte), from the local cache\n", errors


TRAIN = """
import sys
from minipeft.cli import main_train
flags = ["--task", "rte", "--data", "nyu-mll/glue", "--method", "head", "--epochs", "1", "--batch-size", "4"]
flags += ["--device", "cpu", "--train-limit", "16", "--eval-limit", "8", "--resume"]
sys.exit(main_train([*flags, "--model", {model!r}, "--output", {output!r}]))
"""


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_download_of_a_data_set_leaves_no_run_and_is_continued(
    number: signal.Signals, server: HubServer, cache: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    letters = random.Random(0)
    texts = [f"{letters.getrandbits(8000):x}" for _ in range(1000)]  # random, so that parquet cannot compress them
    file = io.BytesIO()
    columns = {"sentence1": texts, "sentence2": ["b"] * 1000, "label": [0, 1] * 500, "idx": [*range(1000)]}
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    small = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({name: values[:8] for name, values in columns.items()}), small)
    files = {"train": file.getvalue(), "validation": small.getvalue()}
    splits = {f"rte/{split}-00000-of-00001.parquet": content for split, content in files.items()}
    server.repos["datasets/nyu-mll/glue"] = {"README.md": GLUE_CARD, **splits}
    home = {"HF_HOME": str(cache.parent), "HF_DATASETS_CACHE": str(cache.parent / "datasets")}
    script = TRAIN.format(model=str(tiny_checkpoint), output=str(tmp_path / "run"))
    server.bytes_per_second = 200_000
    process = start_python(script, **home)
    while server.bytes_served < 200_000:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (128 + number, -number) and "Traceback" not in errors, errors
    assert not (tmp_path / "run").exists() or not contents(tmp_path / "run").keys() - {".owner"}
    server.bytes_per_second = 0.0
    process = start_python(script, **home)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert (tmp_path / "run" / "result.json").is_file()
