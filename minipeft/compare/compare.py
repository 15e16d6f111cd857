"""Compare several runs: tasks x methods x ranks x learning rates x seeds → a folder with tables and a page.

    DIR/plan.json        the parsed flags, the runs, the size of each validation split
    DIR/runs/<name>/     each run's folder, as `minipeft train` writes it; DIR/logs/<name>.txt holds its output
    DIR/table.json, table.csv, page.html

Each run is a separate process, `minipeft train … --resume`: finished runs are kept, interrupted runs are resumed.
"""

import json
import shutil
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from minipeft.compare.formatting import format_csv, format_text
from minipeft.compare.learning_rates import choose_rates, describe_cost, extension, make_searches
from minipeft.compare.out_of_fold import OUT_OF_FOLD, write_out_of_fold
from minipeft.compare.page import render_comparison
from minipeft.compare.plan import NUMBERS, ROWS, Plan, Run, format_values, make_plan
from minipeft.compare.runners.local_runner import Command
from minipeft.compare.runners.runner import execute, make_runner
from minipeft.compare.runners.runner_options import RunnerOptions
from minipeft.compare.table import MIN_SEEDS, comparison_table
from minipeft.data.tasks.splits import read_chunks
from minipeft.data.tasks.task import Task
from minipeft.device import choose_device, choose_precision
from minipeft.errors import MinipeftError, public_settings
from minipeft.files import FORMAT, check_output, make_folder, read_json, user_path, write_json, write_text
from minipeft.hub import resolve_model
from minipeft.lease import Lease
from minipeft.training.settings.choices import choose_source, find_task
from minipeft.training.settings.resume import FREE_TO_CHANGE

DATA_SETTINGS = (
    *("data", "text_column", "pair_column", "label_column", "group_column", "label_type", "label_separator"),
    *("validation", "weight_column", "file_format"),
)


def compare(output: str, resume: bool = False, quiet: bool = False, **flags: Any) -> None:
    """Execute the unfinished runs, write the tables and the page, and print the tables.

    `flags` are the fields of RunnerOptions; and the flags of `train`, each with its words for `make_plan`.

    Raises:
        MinipeftError: for invalid input, before anything is written; and at the end when a run has failed.
        Interrupted: after SIGINT or SIGTERM, when all runs are saved.
    """
    folder = user_path(output)
    options = RunnerOptions.take_from(flags)
    plan = make_plan(flags)
    check_output(folder, "plan.json", "comparison", resume)
    before = read_json(folder / "plan.json", {})
    if before:
        _check_same_flags(folder, before, plan)
        plan = _with_precision_of(folder, plan)
    waiting = [run for run in plan.runs if not _is_finished(folder, run)]
    sources = _sources(plan.runs if not before else waiting)
    device = _check_runs(waiting, here=options.runner == "local")
    examples = before.get("validation_examples") or _count_validation(sources)

    with Lease(folder), ExitStack() as stack:
        # The output of frozen layers, which the runs share (training/layer_cache.py), goes at the end.
        stack.callback(shutil.rmtree, folder / "cache", ignore_errors=True)
        check_output(folder, "plan.json", "comparison", resume)  # again, now that nobody else can change it
        content = {
            "format": FORMAT,
            "flags": public_settings(plan.flags),
            "validation_examples": examples,
            "runs": [{"name": run.name, "settings": public_settings(run.settings)} for run in plan.runs],
        }
        write_json(folder / "plan.json", content)
        make_folder(folder / "logs")

        def train(runs: list[Run], title: str) -> dict[str, str]:
            commands = [run.train_command(folder) for run in runs if not _is_finished(folder, run)]
            runner = partial(make_runner, folder, options, device, len(commands))
            if commands and not quiet:
                print(_announce(title, len(commands), runs), file=sys.stderr)
            return execute(commands, len(runs), "run", runner, quiet, _describe_result)

        failed: dict[str, str] = {}
        if searches := make_searches(plan):
            if not quiet:
                print(describe_cost(searches, plan), file=sys.stderr)
            plan, failed = choose_rates(folder, plan, searches, train)
        failed |= train([run for run in plan.runs if run.name not in failed], "")
        table = comparison_table(folder, plan, examples, failed)
        table["extension"] = extension(plan, table, folder)
        write_json(folder / "table.json", table)
        write_text(folder / "table.csv", format_csv(table))
        write_text(folder / "page.html", render_comparison(table))
        predicted = write_out_of_fold(folder, plan.runs)
    print(format_text(table))
    oof = f"; {OUT_OF_FOLD} has a prediction for each row" if predicted else ""
    print(f"\n{folder / 'page.html'} shows the comparison; table.csv and table.json hold its numbers{oof}")
    if failed:
        name, reason = next(iter(failed.items()))
        raise MinipeftError(
            f"{len(failed)} of {len(plan.runs)} runs failed, the first {name} ({reason}); "
            "the tables hold the others, and --resume tries the failed ones again"
        )


def _announce(title: str, waiting: int, runs: list[Run]) -> str:
    """Return how many runs follow, and whether they allow a statement about differences."""
    if title:
        return f"{title}: {waiting} of {len(runs)} runs to train"
    unit = "fold" if "fold" in runs[0].settings else "seed"
    few = f"; fewer than {MIN_SEEDS} {unit}s allow no statement about differences"
    few *= len({run.settings[unit] for run in runs}) < MIN_SEEDS
    return f"{waiting} of {len(runs)} runs to train; the time that is left follows after the first{few}"


def _describe_result(command: Command) -> str:
    """Return the metric and the seconds of a finished run."""
    result = read_json(command.output / "result.json")
    return f"finished: {result['metric']} {result['best']['value']:.4f} in {result['train_seconds']:.0f} s"


def _check_same_flags(folder: Path, content: dict[str, Any], plan: Plan) -> None:
    """Raise where a comparison's plan.json has other flags; further learning rates only add runs."""
    before, now = content["flags"], json.loads(json.dumps(public_settings(plan.flags)))
    runs, more = ({run["name"] for run in content["runs"]}, {run.name for run in plan.runs})
    free = (*FREE_TO_CHANGE, *(["lr"] if runs <= more else []))
    for name in ROWS:
        if name not in free and before.get(name) != now.get(name):
            one, other = (format_values(flags[name]) if name in flags else "by default" for flags in (before, now))
            raise MinipeftError(
                f"{folder} was started with {name} {one}, not {other}. Resume with the same settings, or choose "
                "another --output."
            )


def _with_precision_of(folder: Path, plan: Plan) -> Plan:
    """Return the plan of a resumed comparison: its runs keep the precision of those that it has started."""
    configs = [read_json(path) for path in sorted(folder.glob("runs/*/config.json"))]
    if "precision" in plan.flags or not configs:
        return plan
    precision = {"precision": configs[0]["precision"]}
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


def _check_runs(runs: list[Run], here: bool) -> str:
    """Check the settings of all runs, fetch their models once, and return the device that they use if they run here."""
    settings = [run.wanted for run in runs]
    devices = {name: choose_device(name) for name in {wanted.device for wanted in settings} if here}
    for wanted in {(wanted.precision, wanted.device) for wanted in settings if here}:
        choose_precision(wanted[0], devices[wanted[1]])
    for name in {wanted.model for wanted in settings}:
        resolve_model(name)
    return max(devices.values(), key=lambda device: (device != "cpu", ":" in device), default="cpu")


def _sources(runs: list[Run]) -> list[tuple[Task, str, int | None]]:
    """Return (task, source, evaluation limit) for each distinct choice of data."""
    found: dict[tuple[Any, ...], tuple[Task, str, int | None]] = {}
    for run in runs:
        wanted = run.wanted
        choice = tuple(getattr(wanted, name) for name in ("task", "eval_limit", *DATA_SETTINGS))
        if choice not in found:
            data = choose_source(wanted, *find_task(wanted))
            found[choice] = data.task, data.source, wanted.eval_limit
    return list(found.values())


def _count_validation(sources: list[tuple[Task, str, int | None]]) -> dict[str, int]:
    """Read and count the validation examples of each task, of all folds together where there are folds.

    An invalid row is found before the first run starts.
    """
    counts: dict[str, int] = {}
    for task, source, limit in sources:
        if task.name not in counts:
            splits = (task.validation, *(["train"] if task.fold else []))
            counts[task.name] = sum(len(chunk) for split in splits for chunk in read_chunks(task, split, source, limit))
    return counts
