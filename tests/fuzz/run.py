"""Coverage-guided fuzzing of the readers, with atheris (pip install atheris).

    python tests/fuzz/run.py --minutes 5              every target, one after another
    python tests/fuzz/run.py --minutes 5 csv adapter  these
    python tests/fuzz/run.py --minutes 5 --save csv   and add what reached new code to the corpus

An input that ends in a traceback, needs more than 5 seconds, or takes 1 GiB is saved in tests/fuzz/faults/, and the
exit status is 1. tests/fuzz/test_corpus.py reads the corpus without atheris.
"""

from __future__ import annotations

import argparse
import logging
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
from targets import TARGETS, check, read_corpus, write_corpus  # noqa: E402

FAULTS = Path(__file__).parent / "faults"
LARGEST_INPUT = 4096  # bytes
LARGEST_CORPUS = 60  # inputs of a target
ROOMS = ("adapters", "data", "inference", "methods", "model", "problems")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"one of {', '.join(TARGETS)} [all]")
    parser.add_argument("--minutes", type=float, default=5.0, help="for each target [5]")
    parser.add_argument("--save", action="store_true", help="add inputs that reached new code to the corpus")
    options = parser.parse_args()
    return max(fuzz(target, options.minutes, options.save) for target in options.targets or TARGETS)


def fuzz(target: str, minutes: float, save: bool) -> int:
    """Fuzz one target in a child process, print its executions, and return its exit status."""
    FAULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(read_corpus(target)):
            (Path(folder) / f"{number:04d}").write_bytes(data)
        options = [
            f"-max_total_time={int(60 * minutes)}",
            "-timeout=5",
            "-print_final_stats=1",
            f"-max_len={LARGEST_INPUT}",
        ]
        command = [
            sys.executable,
            __file__,
            "--worker",
            target,
            folder,
            *options,
            f"-artifact_prefix={FAULTS}/{target}-",
        ]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        executed = re.findall(r"number_of_executed_units: (\d+)", done.stderr)
        coverage = re.findall(r"cov: (\d+)", done.stderr)
        figures = [found[-1] if found else "?" for found in (executed, coverage)]
        print(f"{target}: {figures[0]} executions, coverage {figures[1]}, exit status {done.returncode}", flush=True)
        if done.returncode:
            print(done.stderr[-3000:], file=sys.stderr)
        elif save:
            found = [path.read_bytes() for path in sorted(Path(folder).iterdir(), key=lambda path: path.stat().st_size)]
            write_corpus(target, found[:LARGEST_CORPUS])
    return min(done.returncode, 1)


def work(target: str, arguments: list[str]) -> None:
    """Let atheris call the target until the time is over; it never returns."""
    import atheris

    with atheris.instrument_imports(include=["minipeft"]):
        for room in ROOMS:
            for module in pkgutil.walk_packages(import_module(f"minipeft.{room}").__path__, f"minipeft.{room}."):
                import_module(module.name)
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    check(target, b"")  # what is imported or made once is no part of an input's memory
    resident = int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10  # type: ignore[index]
    limits = [f"-rss_limit_mb={resident + 1024}", "-malloc_limit_mb=1024"]
    atheris.Setup([sys.argv[0], *arguments, *limits], lambda data: check(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], sys.argv[3:])
    sys.exit(main())
