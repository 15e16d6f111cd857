"""Several runs side by side: tasks x methods x ranks x learning rates x seeds → a folder with tables and a page.

    DIR/plan.json        the flags as they were understood, the runs they ask for, the size of each validation split
    DIR/runs/<name>/     each run's folder, as `minipeft train` leaves it; DIR/logs/<name>.txt is what it said
    DIR/table.json, table.csv, page.html

A run is a process of its own, `minipeft train … --resume`: what is finished is kept, what was begun goes on.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minipeft.compare import subprocess_runner
from minipeft.compare.formatting import as_csv, as_text
from minipeft.compare.page import page
from minipeft.compare.plan import NUMBERS, Plan, Run, changed_flags, make_plan
from minipeft.compare.table import comparison_table
from minipeft.data.splits import choose_data, read_chunks
from minipeft.data.tasks import Task
from minipeft.device import choose_device, choose_precision
from minipeft.errors import Interrupted, MinipeftError, whole_number
from minipeft.files import check_output, make_folder, read_json, write_json, write_text
from minipeft.hub.hub import resolve_model
from minipeft.training.interrupt import collect_signals
from minipeft.training.run import FREE_TO_CHANGE
from minipeft.training.settings import choose_task, settings_of

ROOM_OF_A_RUN = 4 << 30  # bytes of memory: full fine-tuning of roberta-base in fp32, with AdamW's state
PATIENCE = 30.0  # seconds that the runs of a comparison that was killed may take to save and end
LOCK = ".lock"
OF_THE_DATA = ("data", "text_column", "pair_column", "label_column", "label_type", "validation")
TICK = 0.1  # seconds


def compare(output: str, jobs: int | None = None, resume: bool = False, quiet: bool = False, **flags: Any) -> None:
    """Run what is not finished, write the tables and the page, and print the tables.

    `flags` are train's, each with the list of words that `comparison.plan` reads. Raises MinipeftError for bad input
    before anything is written, and at the end when a run failed; Interrupted after a signal, with every run saved.
    """
    folder = Path(output)
    plan = make_plan(flags)
    check_output(folder, "plan.json", "comparison", resume, (LOCK,))
    before = read_json(folder / "plan.json") if (folder / "plan.json").is_file() else {}
    if before:
        _check_same_flags(folder, before["flags"], plan)
    waiting = [run for run in plan.runs if not _is_finished(folder, run)]
    sources = _sources(plan.runs if not before else waiting)
    jobs = _choose_jobs(jobs, _check_runs(waiting), len(waiting))
    examples = before.get("validation_examples") or _count_validation(sources)

    make_folder(folder)
    with _alone(folder) as lock:
        content = {"flags": plan.flags, "validation_examples": examples, "runs": [asdict(run) for run in plan.runs]}
        write_json(folder / "plan.json", content)
        failed = _run_all(folder, plan, jobs, lock, quiet)
        table = comparison_table(folder, plan, examples, failed)
        write_json(folder / "table.json", table)
        write_text(folder / "table.csv", as_csv(table))
        write_text(folder / "page.html", page(table))
    print(as_text(table))
    print(f"\n{folder / 'page.html'} shows it; table.csv and table.json hold the figures")
    if failed:
        name, reason = next(iter(failed.items()))
        raise MinipeftError(
            f"{len(failed)} of {len(plan.runs)} runs failed, the first {name} ({reason}); "
            "the tables hold the others, and --resume tries the failed ones again"
        )


def _check_same_flags(folder: Path, before: dict[str, Any], plan: Plan) -> None:
    now = json.loads(json.dumps(plan.flags))
    for one, other in changed_flags(before, now, FREE_TO_CHANGE):
        raise MinipeftError(
            f"{folder} was begun with {one}, not {other}; go on with the same settings, or choose another --output"
        )


def _is_finished(folder: Path, run: Run) -> bool:
    """Whether a run has its result; a folder with other settings under its name is refused."""
    place = folder / "runs" / run.name
    if not (place / "result.json").is_file():
        return False
    config = read_json(place / "config.json")
    for name, value in run.settings.items():
        if name in ("task", "method", *NUMBERS) and name not in FREE_TO_CHANGE and config.get(name) != value:
            raise MinipeftError(
                f"{place} was begun with {name} {config.get(name)!r}, not {value!r}; remove it, "
                "or choose another --output"
            )
    return True


def _check_runs(runs: list[Run]) -> str:
    """Refuse what no run can start with, and fetch what they share, before there are several → the device they use."""
    settings = [settings_of(run.settings) for run in runs]
    devices = {name: choose_device(name) for name in {wanted.device for wanted in settings}}
    for wanted in {(wanted.precision, wanted.device) for wanted in settings}:
        choose_precision(wanted[0], devices[wanted[1]])
    for name in {wanted.model for wanted in settings}:
        resolve_model(name)
    return next((device for device in devices.values() if device != "cpu"), "cpu")


def _choose_jobs(wanted: int | None, device: str, runs: int) -> int:
    """--jobs, or one on an accelerator, and on the CPU as many as have a core and the memory of a base model."""
    if wanted is not None:
        return whole_number("--jobs", wanted)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(runs, _cores(), memory // ROOM_OF_A_RUN)) if device == "cpu" else 1


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _sources(runs: list[Run]) -> list[tuple[Task, str, int | None]]:
    """(task, source, how many rows are evaluated) for each choice of data: GLUE's, or one's own."""
    found: dict[tuple[Any, ...], tuple[Task, str, int | None]] = {}
    for run in runs:
        wanted = settings_of(run.settings)
        choice = tuple(getattr(wanted, name) for name in ("task", "eval_limit", *OF_THE_DATA))
        if choice not in found:
            _, task, own = choose_task(wanted)
            source = own.source if own is not None else choose_data(task, wanted.data)[0]
            found[choice] = task, source, wanted.eval_limit
    return list(found.values())


def _count_validation(sources: list[tuple[Task, str, int | None]]) -> dict[str, int]:
    """The examples of each task's validation split, as the task's first run evaluates it: what a standard error is of.

    Reading them all finds bad rows before anything runs.
    """
    counts: dict[str, int] = {}
    for task, source, limit in sources:
        if task.name not in counts:
            counts[task.name] = sum(len(part) for part in read_chunks(task, task.validation, source, limit))
    return counts


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Hold the folder's lock, which the runs inherit: a killed comparison's runs may still be saving."""
    with open(folder / LOCK, "wb") as file:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise MinipeftError(
                        f"{folder} is in use by another comparison; wait for it, or choose another --output"
                    ) from None
                time.sleep(0.1)
        yield file.fileno()


def _run_all(folder: Path, plan: Plan, jobs: int, lock: int, quiet: bool) -> dict[str, str]:
    """Run what is not finished, `jobs` at a time → why runs failed, by their names.

    After SIGINT or SIGTERM the runs save and end, and Interrupted is raised.
    """
    waiting = [run for run in plan.runs if not _is_finished(folder, run)]
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: dict[str, str] = {}
    done = len(plan.runs) - len(waiting)
    make_folder(folder / "logs")
    with collect_signals() as received, tqdm(total=len(plan.runs), initial=done, unit="run", disable=quiet) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.pop(0)
                    running[run.name] = _start(folder, run, max(1, _cores() // jobs), lock)
                    bar.set_postfix_str(", ".join(running))
                time.sleep(TICK)
                if received:
                    raise Interrupted(
                        received[0], f"interrupted with {bar.n} of {len(plan.runs)} runs done; go on with --resume"
                    )
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    if status := running.pop(name).returncode:
                        failed[name] = subprocess_runner.why(status, folder / "logs" / f"{name}.txt")
                        if not quiet:
                            tqdm.write(f"{name} failed: {failed[name]}", file=sys.stderr)
                    bar.update()
        finally:
            for process in running.values():
                subprocess_runner.end(process)
            for process in running.values():
                process.wait()
    return {run.name: failed[run.name] for run in plan.runs if run.name in failed}


def _start(folder: Path, run: Run, threads: int, lock: int) -> subprocess.Popen[bytes]:
    output = folder / "runs" / run.name
    arguments = ["train", *run.arguments, f"--output={output}", "--resume", "--quiet"]
    return subprocess_runner.start(arguments, folder / "logs" / f"{run.name}.txt", threads, lock)
