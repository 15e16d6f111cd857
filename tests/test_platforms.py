"""A process without what Linux alone has: the main job, a comparison, and a stop, as on Windows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, environment

# Python imports this file at its start, in child processes as well.
SITECUSTOMIZE = """
import os, signal, sys, tempfile

for name in ("fcntl", "resource", "pwd", "grp"):
    sys.modules[name] = None  # an import raises ImportError
for name in ("sysconf", "sysconf_names", "sched_getaffinity", "fork", "getuid"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGSTOP", "SIGCONT", "SIGHUP"):
    delattr(signal, name)
posix_open, posix_exists, posix_kill, posix_rename = os.open, os.path.exists, os.kill, os.rename
tempfile.TemporaryFile = tempfile.NamedTemporaryFile

def windows_open(path, *arguments, **options):
    if isinstance(path, (str, os.PathLike)) and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", os.fspath(path))  # no folder can be opened, to sync it
    return posix_open(path, *arguments, **options)

def windows_rename(source, target):
    if posix_exists(target):
        raise FileExistsError(17, "Cannot create a file when that file already exists", os.fspath(target))
    posix_rename(source, target)

def windows_kill(pid, number):
    posix_kill(pid, 9)  # whatever the number: the process ends without saving

os.open, os.kill, os.rename = windows_open, windows_kill, windows_rename
"""
JOB = """
import json, sys, time
from pathlib import Path
from minipeft.cli.cli import main
from minipeft.compare.runners.local_runner import LocalRunner, memory_size
from minipeft.training.threads import count_cores
from minipeft.compare.plan import make_plan

model, data, output = sys.argv[1:]
flags = ["--model", model, "--data", data, "--device", "cpu", "--batch-size", "8"]
small = [*flags, "--task", "sst2", "--epochs", "1", "--train-limit", "16", "--eval-limit", "8"]
assert main(["train", *small, "--output", f"{output}/run"]) == 0
assert main(["train", *small, "--output", f"{output}/run", "--resume"]) == 0
assert main(["predict", f"{output}/run", "--text", "a film"]) == 0
assert main(["merge", f"{output}/run", f"{output}/merged"]) == 0
assert main(["compare", *small, "--method", "head", "--seed", "1", "--output", f"{output}/comparison"]) == 0
assert count_cores() >= 1 and memory_size() is None

words = {"task": "rte", "method": "lora", "epochs": "500", "seed": "1", "checkpoint_minutes": "0", "device": "cpu"}
(run,) = make_plan({name: [word] for name, word in (words | {"model": model, "data": data}).items()}).runs
stopped = Path(output) / "stopped"
(stopped / "logs").mkdir(parents=True)
runner = LocalRunner(stopped, 1)
runner.start(run.train_command(stopped))
while not list((stopped / "runs" / run.name / "checkpoint").glob("*.json")):
    assert not runner.poll(), (stopped / "logs" / f"{run.name}.txt").read_text()
    time.sleep(0.05)
runner.stop()
print(json.dumps(runner.poll()))
"""


@pytest.mark.full
def test_training_comparing_and_stopping_need_no_module_of_linux_alone(
    tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    path = os.pathsep.join([str(tmp_path / "site"), str(REPOSITORY)])
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(tiny_checkpoint), str(small_data), str(tmp_path / "out")],
        env=environment(OMP_NUM_THREADS="1") | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    (message,) = json.loads(done.stdout.splitlines()[-1]).values()
    assert message.startswith("interrupted in step") and "; continue with minipeft train --resume --output" in message
    assert json.loads((tmp_path / "out" / "run" / "result.json").read_text())["best"]
    assert (tmp_path / "out" / "comparison" / "page.html").is_file()
