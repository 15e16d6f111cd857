"""What a machine has, and what a process took of it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from minipeft.device import choose_precision, peak_memory

PEAK = "from minipeft.device import peak_memory; print(peak_memory('cpu'))"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak begins with its starter's")
def test_the_peak_is_this_processs_own() -> None:
    size = 1 << 30
    block = bytearray(size)
    block[::4096] = b"x" * len(block[::4096])  # touched, so that it is resident
    assert peak_memory("cpu") > size
    child = subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True)
    assert 1 << 20 < int(child.stdout) < size
    del block


@pytest.mark.parametrize("native", ["_is_avx512_bf16_supported", "_is_amx_tile_supported", None])
def test_auto_is_bf16_on_a_cpu_that_multiplies_it(native: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == native, raising=False)
    assert choose_precision("auto", "cpu") == ("bf16" if native else "fp32")
    assert [choose_precision(precision, "cpu") for precision in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert choose_precision("auto", "mps") == "fp32"
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):  # private: a torch may lack them
        monkeypatch.delattr(torch.cpu, name)
    assert choose_precision("auto", "cpu") == "fp32"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_is_bf16_on_cuda_from_capability_8(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert choose_precision("auto", "cuda") == expected
