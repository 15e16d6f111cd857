"""benchmarks/gpu.py on the fake device, whose tensors have no numbers: what it runs there, and the rows that it gives.

pytest collects this file when it is named: `pytest -n 0 tests/gpu_benchmark.py`, which is what test_benchmarks.py does.
"""

from __future__ import annotations

import sys

import pytest
from conftest import REPOSITORY
from fake_cuda import fake_cuda, needs_fake_cuda, to_fake

sys.path.append(str(REPOSITORY / "benchmarks"))
import gpu

pytestmark = needs_fake_cuda


@pytest.mark.parametrize("family", gpu.peer.BASES)
def test_parity_trains_every_family_on_the_device(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "move", lambda model, device: to_fake(model))
    monkeypatch.setattr(gpu.peer, "BASES", (family,))
    with fake_cuda() as device:
        rows = list(gpu.parity("cuda", steps=2))
    assert [(row["name"], row["precision"]) for row in rows] == [(family, "fp32"), (family, "bf16")]
    assert device.counts.launches.total() > 100 and not device.counts.mixed


def test_attention_and_products_run_on_the_device() -> None:
    with fake_cuda() as device:
        assert len(list(gpu.attention("cuda"))) == 8
        assert not device.counts.mixed
