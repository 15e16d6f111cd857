"""Compare several runs: tasks x methods x ranks x learning rates x seeds → a folder with tables and a page.

    DIR/plan.json        the parsed flags, the runs, the size of each validation split
    DIR/runs/<name>/     each run's folder, as `minipeft train` writes it; DIR/logs/<name>.txt holds its output
    DIR/table.json, table.csv, page.html

Each run is a separate process, `minipeft train … --resume`: finished runs are kept, interrupted runs are resumed.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from minipeft.compare.formatting import format_csv, format_text
from minipeft.compare.local_runner import LocalRunner, count_cores, memory_size
from minipeft.compare.page import render_page
from minipeft.compare.plan import NUMBERS, Plan, Run, changed_flags, make_plan
from minipeft.compare.table import comparison_table
from minipeft.data.splits import read_chunks
from minipeft.data.tasks import Task
from minipeft.device import choose_device, choose_precision
from minipeft.errors import Interrupted, MinipeftError, check_int
from minipeft.files import check_output, make_folder, read_json, write_json, write_text
from minipeft.hub.hub import resolve_model
from minipeft.training.choices import choose_source, find_task
from minipeft.training.interrupt import collect_signals
from minipeft.training.job import FREE_TO_CHANGE, recorded_precision
from minipeft.training.report import disable_bar
from minipeft.training.settings import read_settings

MEMORY_PER_RUN = 4 << 30  # bytes: full fine-tuning of roberta-base in fp32, with AdamW's state
LOCK = ".lock"
DATA_SETTINGS = ("data", "text_column", "pair_column", "label_column", "label_type", "label_separator", "validation")
POLL_INTERVAL = 0.1  # seconds


class Runner(Protocol):
    """Where runs are executed: LocalRunner, or another class with these methods."""

    jobs: int  # how many runs to execute at once

    def start(self, run: Run) -> None: ...
    def poll(self) -> dict[str, str | None]: ...
    def stop(self) -> None: ...


def compare(output: str, jobs: int | None = None, resume: bool = False, quiet: bool = False, **flags: Any) -> None:
    """Execute the unfinished runs, write the tables and the page, and print the tables.

    Args:
        output: the comparison's folder.
        jobs: how many runs to execute at once. Default: one on an accelerator; on the CPU as many as cores and
            memory allow.
        resume: continue the comparison that `output` holds.
        quiet: show no progress bar.
        flags: the flags of `train`, each with the list of words that `plan.make_plan` parses.

    Raises:
        MinipeftError: for invalid input, before anything is written; and at the end when a run has failed.
        Interrupted: after SIGINT or SIGTERM, when all runs are saved.
    """
    folder = Path(output)
    plan = make_plan(flags)
    check_output(folder, "plan.json", "comparison", resume, (LOCK,))
    before = read_json(folder / "plan.json") if (folder / "plan.json").is_file() else {}
    if before:
        _check_same_flags(folder, before["flags"], plan)
        plan = _with_precision_of(folder, plan)
    waiting = [run for run in plan.runs if not _is_finished(folder, run)]
    sources = _sources(plan.runs if not before else waiting)
    jobs = _choose_jobs(jobs, _check_runs(waiting), len(waiting))
    examples = before.get("validation_examples") or _count_validation(sources)

    make_folder(folder)
    with _lock(folder):
        content = {"flags": plan.flags, "validation_examples": examples, "runs": [asdict(run) for run in plan.runs]}
        write_json(folder / "plan.json", content)
        make_folder(folder / "logs")
        failed = _execute(
            [run for run in plan.runs if not _is_finished(folder, run)], plan, LocalRunner(folder, jobs), quiet
        )
        table = comparison_table(folder, plan, examples, failed)
        write_json(folder / "table.json", table)
        write_text(folder / "table.csv", format_csv(table))
        write_text(folder / "page.html", render_page(table))
    print(format_text(table))
    print(f"\n{folder / 'page.html'} shows the comparison; table.csv and table.json hold its numbers")
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
            f"{folder} was started with {one}, not {other}. Resume with the same settings, or choose another --output."
        )


def _with_precision_of(folder: Path, plan: Plan) -> Plan:
    """Return the plan of a resumed comparison: its runs keep the precision of those that it has started."""
    configs = [read_json(path) for path in sorted(folder.glob("runs/*/config.json"))]
    if "precision" in plan.flags or not configs:
        return plan
    precision = {"precision": recorded_precision(configs[0])}
    return replace(plan, runs=[replace(run, settings=run.settings | precision) for run in plan.runs])


def _is_finished(folder: Path, run: Run) -> bool:
    """Tell whether a run has finished; raise where its folder holds a run with other settings."""
    place = folder / "runs" / run.name
    if not (place / "result.json").is_file():
        return False
    config = read_json(place / "config.json")
    for name, value in run.settings.items():
        if name in ("task", "method", *NUMBERS) and name not in FREE_TO_CHANGE and config.get(name) != value:
            raise MinipeftError(
                f"{place} was started with {name} {config.get(name)!r}, not {value!r}. Remove it, "
                "or choose another --output."
            )
    return True


def _check_runs(runs: list[Run]) -> str:
    """Validate the settings of all runs, fetch their models once, and return the device that they use."""
    settings = [read_settings(run.settings) for run in runs]
    devices = {name: choose_device(name) for name in {wanted.device for wanted in settings}}
    for wanted in {(wanted.precision, wanted.device) for wanted in settings}:
        choose_precision(wanted[0], devices[wanted[1]])
    for name in {wanted.model for wanted in settings}:
        resolve_model(name)
    return next((device for device in devices.values() if device != "cpu"), "cpu")


def _choose_jobs(jobs: int | None, device: str, runs: int) -> int:
    """Return --jobs or its default."""
    if jobs is not None:
        return check_int("--jobs", jobs)
    memory = memory_size()
    if device != "cpu" or memory is None:
        return 1
    return max(1, min(runs, count_cores(), memory // MEMORY_PER_RUN))


def _sources(runs: list[Run]) -> list[tuple[Task, str, int | None]]:
    """Return (task, source, evaluation limit) for each distinct choice of data."""
    found: dict[tuple[Any, ...], tuple[Task, str, int | None]] = {}
    for run in runs:
        wanted = read_settings(run.settings)
        choice = tuple(getattr(wanted, name) for name in ("task", "eval_limit", *DATA_SETTINGS))
        if choice not in found:
            data = choose_source(wanted, *find_task(wanted))
            found[choice] = data.task, data.source, wanted.eval_limit
    return list(found.values())


def _count_validation(sources: list[tuple[Task, str, int | None]]) -> dict[str, int]:
    """Count the validation examples of each task, as its first run evaluates them.

    This reads every row, so that an invalid row is found before the first run starts.
    """
    counts: dict[str, int] = {}
    for task, source, limit in sources:
        if task.name not in counts:
            counts[task.name] = sum(len(chunk) for chunk in read_chunks(task, task.validation, source, limit))
    return counts


def _lock(folder: Path) -> AbstractContextManager[Any]:
    """Lock the folder against a second comparison. Each run has a lock as well (local_runner.py)."""
    try:
        return FileLock(folder / LOCK).acquire(timeout=1)
    except Timeout:
        raise MinipeftError(
            f"{folder} is in use by another comparison. Wait for it to end, or choose another --output."
        ) from None


def _execute(waiting: list[Run], plan: Plan, runner: Runner, quiet: bool) -> dict[str, str]:
    """Execute runs, `runner.jobs` at once, and return the errors of those that failed, by name.

    After SIGINT or SIGTERM the active runs save and end, and Interrupted is raised.
    """
    queue, running, failed = list(waiting), set[str](), dict[str, str]()
    done = len(plan.runs) - len(waiting)
    no_bar, total = disable_bar(quiet), len(plan.runs)
    with collect_signals() as received, tqdm(total=total, initial=done, unit="run", disable=no_bar) as bar:
        try:
            while queue or running:
                while queue and len(running) < runner.jobs:
                    runner.start(queue[0])
                    running.add(queue.pop(0).name)
                    bar.set_postfix_str(", ".join(sorted(running)))
                time.sleep(POLL_INTERVAL)
                if received:
                    raise Interrupted(
                        received[0], f"interrupted with {done} of {total} runs done; resume with --resume"
                    )
                for name, error in runner.poll().items():
                    running.remove(name)
                    done += 1
                    bar.update()
                    if error is not None:
                        failed[name] = error
                    if not quiet:
                        outcome = "finished" if error is None else f"failed: {error}"
                        tqdm.write(f"{done} of {total}: {name} {outcome}", file=sys.stderr)
        finally:
            runner.stop()
    return {run.name: failed[run.name] for run in plan.runs if run.name in failed}
