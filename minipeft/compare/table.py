"""Finished runs → the table of a comparison: medians and spreads over seeds, and significant differences.

A result varies with the seed and with the choice of validation examples. Two rows are called significantly different
when neither explains the difference:

    every seed of the one is above every seed of the other, with three seeds or more each, and
    their medians differ by more than one standard error of the validation split.

Without a true difference, two rows of k seeds fulfil the first condition by chance in 2 of (2k)! / (k!)² pairs: 1 in 10
with three seeds, 1 in 126 with five. The standard error of n examples is, of an accuracy p (and, roughly, of an F1),
√(p (1 − p) / n); of Pearson's and Spearman's correlation r, (1 − r²) / √n, as if both sides were normal; of Matthews'
correlation φ, √((1 − φ²) / n), which is that of balanced classes. The larger of the two rows' counts.

With folds, every example is validated on once, and the rows are compared fold by fold: FOLDS_RULE, `_paired_test`.
"""

import math
from datetime import date
from itertools import permutations
from pathlib import Path
from statistics import fmean, median, variance
from typing import Any

from minipeft.compare.plan import Plan, Run
from minipeft.errors import MinipeftError
from minipeft.files import FORMAT, read_json, read_json_lines
from minipeft.methods import METHODS
from minipeft.training.progress import NOT_METRICS, largest_is_best
from minipeft.version import __version__

MIN_SEEDS = 3  # or folds, for a significant difference
LEVEL = 0.05  # of the test over folds
RULE = (
    "Two rows are significantly different if every seed of the one is above every seed of the other, with three seeds "
    "or more each, and their medians differ by more than one standard error of the validation split."
)
FOLDS_RULE = (
    "Two rows are significantly different if a paired t-test of their differences by fold, with three folds or more, "
    "has p < 0.05. Its variance is corrected for the training examples that folds share (Nadeau and Bengio 2003)."
)
Table = dict[str, Any]


def comparison_table(folder: Path, plan: Plan, examples: dict[str, int], failed: dict[str, str]) -> Table:
    """Return the content of table.json: for each task its rows, and which of them are significantly different.

    `examples` has the number of validation examples of each task, `failed` the error messages of failed runs.
    """
    names = list(dict.fromkeys(run.settings["task"] for run in plan.runs))
    return {
        "format": FORMAT,
        "tasks": [_task_table(folder, task, plan, examples[task], failed) for task in names],
        "failed": failed,
        "folds": len(plan.flags["fold"][""]) if "fold" in plan.flags else None,
        "rule": FOLDS_RULE if "fold" in plan.flags else RULE,
        "command": plan.command,
        "minipeft": __version__,
        "date": date.today().isoformat(),
    }


def _task_table(folder: Path, task: str, plan: Plan, examples: int, failed: dict[str, str]) -> Table:
    runs = [run for run in plan.runs if run.settings["task"] == task]
    found = {run.name: _read_run(folder / "runs" / run.name) for run in runs if run.name not in failed}
    methods = list(plan.flags["method"][""])
    by_row: dict[Any, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (methods.index(run.settings["method"]), run.settings.get("rank") or 0)):
        by_row.setdefault(run.row, []).append(run)
    rows = [_row(of_row, found, failed) for of_row in by_row.values()]
    metric = next((run["metric"] for run in found.values()), None)
    return {
        "task": task,
        "metric": metric,
        "training_examples": sorted({run["examples"]["training"] for run in found.values()}),
        "validation_examples": examples,
        "models": sorted({run["model"] for run in found.values()}),
        "data": sorted({run["data"] for run in found.values()}),
        "rows": rows,
        "apart": {which: _significant_pairs(rows, which, metric, examples) for which in ("best", "last")},
    }


def _read_run(folder: Path) -> Table:
    result, config = read_json(folder / "result.json"), read_json(folder / "config.json")
    try:
        of_result = ("metric", "model", "data", "examples", "best", "last", "parameters", "seed")
        found = {key: result[key] for key in (*of_result, "train_seconds", "peak_memory_bytes")}
        found |= {key: config.get(key) for key in ("lr", "rank", "fold")}
        # The folds of a comparison have one description.
        found["data"] = found["data"].replace(f"fold {found['fold']} is", "one fold is")
        return found | {"history": read_json_lines(folder / "metrics.jsonl")}
    except (OSError, ValueError, KeyError) as error:
        raise MinipeftError(f"{folder}: the run is incomplete ({error}). Remove the folder to run it again.") from None


def _row(runs: list[Run], found: dict[str, Table], failed: dict[str, str]) -> Table:
    """Summarize a method and rank: the learning rate with the fewest failures, then the best median."""
    by_rate = []
    for lr in sorted({run.settings.get("lr") for run in runs}, key=lambda lr: lr or 0):
        of_rate = [run for run in runs if run.settings.get("lr") == lr]
        by_rate.append(([found[run.name] for run in of_rate if run.name in found], of_rate))
    done, chosen = max(
        by_rate,
        key=lambda rate: (
            len(rate[0]) / len(rate[1]),
            _sign(rate[0][0]) * center(_spread(rate[0], "best")) if rate[0] else 0,
        ),
    )
    tried: dict[Any, Any] = runs[0].tried
    best = {of_rate[0].settings.get("lr"): _spread(rate, "best") for rate, of_rate in by_rate}
    method, rank = runs[0].settings["method"], runs[0].settings.get("rank")
    name = METHODS[method].config_name
    row: Table = {
        "name": name if rank is None else f"{name} r = {rank}",
        "method": method,
        "rank": rank if not done else done[0]["rank"],
        "lr": chosen[0].settings.get("lr") if not done else done[0]["lr"],
        "learning_rates": [{"lr": lr, "best": best.get(lr), "rungs": tried.get(lr, [])} for lr in tried or best],
        "failed": {run.name: failed[run.name] for run in runs if run.name in failed},
        "parameters": done[0]["parameters"] if done else None,
        "best": _spread(done, "best"),
        "last": _spread(done, "last"),
        "others": _others(done),
        "seconds": median(run["train_seconds"] for run in done) if done else None,
        "peak_memory_bytes": max((run["peak_memory_bytes"] for run in done), default=None),
        "runs": [{key: run[key] for key in ("seed", "fold", "best", "last", "history")} for run in done],
    }
    return row


def _sign(run: Table) -> int:
    return 1 if largest_is_best(run["metric"]) else -1


def _spread(runs: list[Table], which: str) -> Table | None:
    """Return the median and the ends of the runs' values, or the mean and the ends of those of the folds."""
    if not runs:
        return None
    folds = list(_by_fold(runs, which).values())
    values = folds or [run[which]["value"] for run in runs]
    spread = {"mean": fmean(values)} if folds else {"median": median(values)}
    return spread | {"min": min(values), "max": max(values), "folds" if folds else "seeds": len(values)}


def _by_fold(runs: list[Table], which: str) -> dict[str, float]:
    """Return the value of each fold, the mean over the seeds; {} of runs without folds."""
    folds = {run["fold"] for run in runs if run["fold"]}
    return {fold: fmean(run[which]["value"] for run in runs if run["fold"] == fold) for fold in sorted(folds)}


def center(spread: Table | None) -> float:
    """Return what stands for a spread: the median over the seeds, or the mean over the folds."""
    values = spread or {"median": 0}
    return float(values["mean"] if "mean" in values else values["median"])


def _others(runs: list[Table]) -> dict[str, float]:
    """Return the medians of the other metrics at the best epoch."""
    at_best = [next(row for row in run["history"] if row["epoch"] == run["best"]["epoch"]) for run in runs]
    skip = (*NOT_METRICS, "train_loss", *(run["metric"] for run in runs))
    names = [name for name in (at_best[0] if at_best else ()) if name not in skip and not name.endswith("eval_loss")]
    return {name: median(row[name] for row in at_best) for name in names}


def levels(spread: Table) -> tuple[float, float, float]:
    """Return the minimum, the center and the maximum of a spread."""
    return spread["min"], center(spread), spread["max"]


def standard_error(metric: str, value: float, examples: int) -> float:
    """Return the standard error of a metric's value on a number of examples; formulas above."""
    if metric in ("pearson", "spearman"):
        return (1 - value**2) / math.sqrt(examples)
    if metric == "matthews_correlation":
        return math.sqrt(max(0.0, 1 - value**2) / examples)
    return math.sqrt(max(0.0, value * (1 - value)) / examples)


def _significant_pairs(rows: list[Table], which: str, metric: str | None, examples: int) -> list[Table]:
    """Return the pairs of rows that are significantly different by their best or last epochs, the better one first."""
    apart = []
    for one, other in permutations([row for row in rows if row[which]], 2):
        above, below = one[which], other[which]
        if "folds" in above:
            test = _paired_test(*(_by_fold(row["runs"], which) for row in (one, other)))
            if test and test["difference"] > 0 and test["p"] < LEVEL:
                apart.append({"above": one["name"], "below": other["name"], **test})
            continue
        if min(above["seeds"], below["seeds"]) < MIN_SEEDS or above["min"] <= below["max"]:
            continue
        error = max(standard_error(str(metric), side["median"], examples) for side in (above, below))
        if (difference := above["median"] - below["median"]) > error:
            apart.append({"above": one["name"], "below": other["name"], "difference": difference, "error": error})
    return apart


def _paired_test(one: dict[str, float], other: dict[str, float]) -> dict[str, float] | None:
    """Return the mean difference over the common folds, its standard error and p; None for fewer folds than MIN_SEEDS.

    Two folds of k share k - 2 of k - 1 parts of their training examples, so their results are not independent: the
    variance of the mean over n folds is s² (1 / n + 1 / (k - 1)), not s² / n (Nadeau and Bengio 2003).
    """
    differences = [one[fold] - other[fold] for fold in one if fold in other]
    count = len(differences)
    if count < MIN_SEEDS:
        return None
    num_folds = int(next(iter(one)).split("/")[1])
    mean, error = fmean(differences), math.sqrt(variance(differences) * (1 / count + 1 / (num_folds - 1)))
    return {"difference": mean, "error": error, "p": _two_sided_p(mean, error, count - 1)}


def _two_sided_p(mean: float, error: float, freedom: int) -> float:
    """Return P(|t| > |mean / error|) of Student's t.

    With t = √freedom tan θ its density is proportional to cos θ ^ (freedom - 1); the integral is a sum of midpoints.
    """

    def integral(end: float) -> float:
        return end * fmean(math.cos((step + 0.5) / 1000 * end) ** (freedom - 1) for step in range(1000))

    return 1 - integral(math.atan2(abs(mean), error * math.sqrt(freedom))) / integral(math.pi / 2)
