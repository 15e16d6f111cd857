"""GLUE through the datasets library, from a server on 127.0.0.1 that fails as the Hugging Face hub does."""

import io
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
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
