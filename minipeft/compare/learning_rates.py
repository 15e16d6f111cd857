"""The learning rates of a comparison: the search of `--lr auto`, and the grid that is extended where its end is best.

`--lr auto` finds the learning rate of each row by successive halving, with the first seed:

    rung 1    a ninth of the run's steps, 50 or more    the default learning rate x 0.1, 0.3, 1, 3 and 10
    rung 2    three times as many                       the best third of them, rounded up: two of five
    then      the whole run, for every seed             the best of rung 2

A run of a rung is a whole training of so many --steps: its warmup is shortened in proportion, and its learning rate
decays to 0, so that no rate is judged by a model in the middle of its decay. Survivors start again for that reason; to
continue them would save a fifth of the search. The metric at the best epoch decides, then the validation loss there.

A best learning rate that is the smallest or the largest of its grid says little: the next one may be better still. The
grid then gets one more value on that side, with the same ratio as between the last two.

Reference: Jamieson and Talwalkar 2016, Non-stochastic best arm identification and hyperparameter optimization.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

from minipeft.compare.plan import AUTO, Plan, Run, run_name, value_for
from minipeft.compare.table import Table, center
from minipeft.files import read_json, read_json_lines
from minipeft.training.optimization.schedule import count_steps
from minipeft.training.progress import CONSTANT, largest_is_best
from minipeft.training.settings.choices import choose_model, choose_source, count_examples, find_task
from minipeft.training.settings.recipes import recipe

GRID = (0.1, 0.3, 1, 3, 10)  # x the default learning rate
ETA = 3  # of the learning rates a rung keeps one in so many, and the next rung has so many times the steps
FEWEST_STEPS = 50  # of a rung
Train = Callable[[list[Run], str], dict[str, str]]  # (runs, title) → error messages of failed runs by name


@dataclass
class Search:
    """The search of one row: its first run, the learning rates, and the results of its rungs by learning rate."""

    run: Run
    rates: list[float]
    total_steps: int
    tried: dict[float, list[dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tried = {rate: [] for rate in sorted(self.rates)}
        first = min(self.total_steps, max(FEWEST_STEPS, math.ceil(self.total_steps / ETA**2)))
        self.steps = sorted({first, min(self.total_steps, ETA * first)})  # of each rung

    def runs(self, rung: int) -> list[Run]:
        """Return the runs of a rung, from 0, for the learning rates that are left; none after the last rung."""
        if rung >= len(self.steps):
            return []
        settings = {name: value for name, value in self.run.settings.items() if name != "epochs"}
        settings["steps"] = self.steps[rung]
        if "warmup_steps" in settings:
            settings["warmup_steps"] = settings["warmup_steps"] * self.steps[rung] // self.total_steps
        tried = [settings | {"lr": rate} for rate in self.rates]
        return [Run(f"{run_name(settings)}-rung{rung + 1}", settings) for settings in tried]

    def keep_best(self, rung: int, folder: Path, failed: dict[str, str]) -> None:
        """Note the results of a rung, and keep the learning rates of the next one."""
        scores = {}
        for run in self.runs(rung):
            trial: dict[str, Any] = {"steps": self.steps[rung], "value": None, "failed": failed.get(run.name)}
            if run.name not in failed:
                scores[run.settings["lr"]], trial["value"] = _score(folder / "runs" / run.name)
            self.tried[run.settings["lr"]].append(trial)
        if rung < len(self.steps):
            kept = math.ceil(len(self.rates) / ETA) if rung + 1 < len(self.steps) else 1
            self.rates = sorted(scores, key=lambda rate: scores[rate], reverse=True)[:kept]


def make_searches(plan: Plan) -> list[Search]:
    """Return the search of each row whose learning rate is "auto"; the training rows are counted."""
    first, found = dict[Any, Run](), dict[Any, tuple[bool, int]]()  # the examples are counted once for each task
    for run in plan.runs:
        if run.settings.get("lr") == AUTO:
            first.setdefault(run.row, run)
    searches = []
    for (task, method, _), run in first.items():
        wanted, config = run.wanted, choose_model(run.wanted.model).config
        if (key := (task, wanted.train_limit, wanted.holdout)) not in found:
            data = choose_source(wanted, *find_task(wanted))
            found[key] = data.task.is_custom, count_examples(wanted, data)
        is_custom, examples = found[key]
        defaults = recipe(None if is_custom else task, method, config.hidden_size, config.model_type)
        epochs, sequences = wanted.epochs or defaults.epochs, wanted.batch_size * wanted.grad_accum
        given = [rate for rate in value_for("lr", plan.flags["lr"], task, method)[1] if rate != AUTO]
        rates = {float(f"{defaults.lr * factor:.2g}") for factor in GRID} | set(given)
        searches.append(Search(run, sorted(rates), wanted.steps or count_steps(epochs, examples, sequences)))
    return searches


def describe_cost(searches: list[Search], plan: Plan) -> str:
    """Return the runs and steps of each rung, of the chosen learning rates, of both, and of a full grid."""
    names = ("rung 1", "rung 2", "the best in full", "in all", "every learning rate in full would be")
    runs, steps = Counter(dict.fromkeys(names, 0)), Counter[str]()
    for search in searches:
        seeds = sum(run.row == search.run.row for run in plan.runs)
        rungs = zip(names[:2], (len(search.rates), math.ceil(len(search.rates) / ETA)), search.steps, strict=False)
        parts = [*rungs, (names[2], seeds, search.total_steps)]
        everything = [(names[3], count, each) for _, count, each in parts]
        for name, count, each in [*parts, *everything, (names[4], seeds * len(search.rates), search.total_steps)]:
            runs[name] += count
            steps[name] += count * each
    return "--lr auto: " + "; ".join(f"{name} {runs[name]:,} runs, {steps[name]:,} steps" for name in names)


def choose_rates(folder: Path, plan: Plan, searches: list[Search], train: Train) -> tuple[Plan, dict[str, str]]:
    """Train the rungs; return the plan with the chosen learning rates, and why runs have none."""
    for rung in range(2):
        failed = train([run for search in searches for run in search.runs(rung)], f"rung {rung + 1}")
        for search in searches:
            search.keep_best(rung, folder, failed)
    by_row, runs, without = {search.run.row: search for search in searches}, [], {}
    for run in plan.runs:
        found = by_row.get(run.row)
        if found and found.rates:
            settings = run.settings | {"lr": found.rates[0]}
            run = Run(run_name(settings), settings, found.tried)
        elif found:
            reason = next(trial["failed"] for trials in found.tried.values() for trial in trials if trial["failed"])
            run, without[run.name] = replace(run, tried=found.tried), f"every learning rate failed, one with: {reason}"
        runs.append(run)
    return replace(plan, runs=runs), without


def next_rate(row: Table) -> float | None:
    """Return the learning rate beyond the end of the grid where the row's best one is that end, else None."""
    rates = [rate for rate in row["learning_rates"] if rate["lr"]]
    if not row["best"] or len(rates) < 2 or row["lr"] not in (rates[0]["lr"], rates[-1]["lr"]):
        return None
    if sum(rate["best"] is not None and center(rate["best"]) == center(row["best"]) for rate in rates) > 1:
        return None  # several are the best
    neighbour = rates[1 if row["lr"] == rates[0]["lr"] else -2]["lr"]
    return float(f"{row['lr'] ** 2 / neighbour:.2g}")


def extension(plan: Plan, table: Table, folder: Path) -> dict[str, str] | None:
    """Return the rows whose best learning rate is an end of their grid, and the command that extends these grids."""
    if "lr" not in plan.flags:
        return None
    rates, names = {where: list(values) for where, values in plan.flags["lr"].items()}, []
    for task in table["tasks"]:
        for row in task["rows"]:
            if (rate := next_rate(row)) is None:
                continue
            where, values = value_for("lr", plan.flags["lr"], task["task"], row["method"])
            if len(plan.flags["task"][""]) * len(plan.flags["method"][""]) > 1:  # the others keep their grid
                where = f"{task['task']}/{row['method']}"
            grid = rates.setdefault(where, list(values))
            names.append(f"{row['name']} ({task['task']})" if len(table["tasks"]) > 1 else row["name"])
            if rate not in grid:
                grid.append(rate)
    command = replace(plan, flags=plan.flags | {"lr": rates}).command
    return {"rows": ", ".join(names), "command": f"{command} --output {quote(str(folder))} --resume"} if names else None


def _score(place: Path) -> tuple[tuple[bool, float, float], float]:
    """Return what a finished run is judged by, larger is better, and its metric."""
    result = read_json(place / "result.json")
    best = next(row for row in read_json_lines(place / "metrics.jsonl") if row["epoch"] == result["best"]["epoch"])
    value = result["best"]["value"]
    return (CONSTANT not in best, value if largest_is_best(result["metric"]) else -value, -best["eval_loss"]), value
