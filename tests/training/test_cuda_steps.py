"""Runs cuda_steps.py in a separate process, because the fake device stays registered in torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_cuda import needs_fake_cuda


@needs_fake_cuda
def test_steps_on_a_fake_cuda_device(pytestconfig: pytest.Config) -> None:
    command = [sys.executable, "-m", "pytest", "-n", "0", str(Path(__file__).with_name("cuda_steps.py"))]
    command += ["--full"] if pytestconfig.getoption("--full") else []
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=pytestconfig.rootpath, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
