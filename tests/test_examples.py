"""The files under docs/examples: shell syntax, YAML, and every minipeft command with the real argument parser."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from minipeft.cli.command_line import command_line
from minipeft.cli.flags import Parser, add_train_flags

EXAMPLES = sorted(path for path in (REPOSITORY / "docs" / "examples").iterdir() if path.is_file())
SCRIPTS = [path for path in EXAMPLES if path.suffix in (".sh", ".sbatch")]


def commands(text: str) -> list[list[str]]:
    """The words after `minipeft` or train.py of each command, without comments."""
    lines = re.sub(r"\\\n", " ", text).splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        for index, word in enumerate(words):
            if word == "train.py" or (word == "minipeft" and index + 1 < len(words)):
                found.append(words[index:])
                break
    return found


def parse(words: list[str]) -> None:
    """Parse a command as the command line does; a wrong flag ends the process, and so the test."""
    if words[0] == "train.py":
        parser = Parser(prog="train.py", add_help=False)
        add_train_flags(parser)
        parser.parse_args(words[1:])
    else:
        command_line().parse_args(words[1:])


def test_there_are_examples_of_every_kind() -> None:
    names = {path.name for path in EXAMPLES}
    assert {"one-machine.sh", "slurm-torchrun.sbatch", "slurm-ray.sbatch", "kuberay-rayjob.yaml"} <= names
    pages = "".join(
        (REPOSITORY / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("scaling-out", "deploy")
    )
    assert all(name in pages for name in names)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_and_their_commands_parse(path: Path) -> None:
    checked = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    found = commands(path.read_text(encoding="utf-8"))
    assert found
    for words in found:
        parse([word.replace("$SLURM_ARRAY_TASK_ID", "1") for word in words])


def test_the_manifest_is_yaml_with_one_shared_volume_and_its_command_parses() -> None:
    path = REPOSITORY / "docs" / "examples" / "kuberay-rayjob.yaml"
    job = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    claims = {volume["persistentVolumeClaim"]["claimName"] for pod in pods for volume in pod["volumes"]}
    mounts = {mount["mountPath"] for pod in pods for mount in pod["containers"][0]["volumeMounts"]}
    (words,) = commands(job["spec"]["entrypoint"])
    parse(words)
    output = words[words.index("--output") + 1]
    assert len(claims) == len(mounts) == 1 and output.startswith(f"{mounts.pop()}/")
