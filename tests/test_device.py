"""What a machine has, and what a process took of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from minipeft.device import peak_memory

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
