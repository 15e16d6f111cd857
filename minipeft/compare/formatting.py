"""Format a comparison's table: as text for a terminal, as CSV, and as sentences on significant differences."""

import csv
import io
from itertools import groupby

from minipeft.compare.learning_rates import next_rate
from minipeft.compare.table import MIN_SEEDS, Table, center
from minipeft.inference.evaluation_files import format_table

HEADINGS = ("", "parameters", "+ head", "lr", "best: {}", "last: {}", "seconds", "memory")
LEFT = (0, 4, 5)  # columns of text


def describe_differences(task: Table, which: str) -> list[str]:
    """Describe in sentences which rows of a task differ significantly by the rule of table.py."""
    rows = [row for row in task["rows"] if row[which]]
    pairs, unit = len(rows) * (len(rows) - 1) // 2, "folds" if rows and "folds" in rows[0][which] else "seeds"
    if not rows or sum(row[which][unit] >= MIN_SEEDS for row in rows) < min(2, len(rows)):
        return [f"No statement about differences is possible: it takes {MIN_SEEDS} {unit} or more."]
    if len(rows) == 1:
        return ["There is one row, and so nothing that it differs from."]
    apart = task["apart"][which]
    lines = [
        f"{len(apart) or 'None'} of {pairs} pairs of rows {'is' if len(apart) == 1 else 'are'} significantly different."
    ]
    below: dict[str, list[str]] = {}
    for pair in apart:
        below.setdefault(pair["above"], []).append(pair["below"])
    for lower, group in groupby(sorted(below, key=lambda name: (len(below[name]), below[name])), key=below.__getitem__):
        above = list(group)
        lines.append(f"{join_names(above)} {'is' if len(above) == 1 else 'are'} above {join_names(lower)}.")
    return lines


def metric_title(name: str) -> str:
    """Return a metric's name for a reader: "macro F1" for macro_f1."""
    return name.replace("_", " ").replace("f1", "F1")


def join_names(names: list[str]) -> str:
    """Return "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def format_text(table: Table) -> str:
    """Return the tables and the sentences for a terminal."""
    blocks = []
    for task in table["tasks"]:
        title = (
            f"{task['task']}: {task['metric'] or 'no result'} on {task['validation_examples']:,} validation examples"
        )
        text = [title, *(f"model {model}" for model in task["models"]), *(f"data {data}" for data in task["data"]), ""]
        spread = spread_title(table["folds"])
        lines = [[name.format(spread) for name in HEADINGS], *(_cells(row) for row in task["rows"])]
        text += format_table(lines, LEFT).splitlines()
        for row in task["rows"]:
            text += [f"{row['name']}: {name} failed: {reason}" for name, reason in row["failed"].items()]
            if len(row["learning_rates"]) > 1:
                text += ["", f"{row['name']}: {task['metric']} against the learning rate"]
                text += format_table(rate_cells(row), LEFT).splitlines()
        one_epoch = all(run["last"]["epoch"] == 1 for row in task["rows"] for run in row["runs"])
        for which in ("last",) if one_epoch else ("best", "last"):
            text += ["", f"By the {which} epoch: " + "\n  ".join(describe_differences(task, which))]
        blocks.append("\n".join(text))
    if wider := table["extension"]:
        blocks.append(f"{describe_extension(wider)}\n  {wider['command']}")
    return "\n\n".join([*blocks, table["rule"]])


def describe_extension(wider: dict[str, str]) -> str:
    """Say for which rows a learning rate beyond the grid may be better."""
    return (
        f"The best learning rate is an end of the grid, so one beyond it may be better: {wider['rows']}. "
        "This command adds one and trains its runs only:"
    )


def _cells(row: Table) -> list[str]:
    if not row["best"]:
        return [row["name"], "", "", "", "failed", "", "", ""]
    spreads = [describe_spread(row[which]) for which in ("best", "last")]
    parameters, head, lr, seconds, memory = row_figures(row)
    return [row["name"], parameters, head, lr, *spreads, seconds, memory]


def row_figures(row: Table) -> list[str]:
    """Return the parameters of the method and the head, the learning rate, the seconds and the memory of a row."""
    memory = row["peak_memory_bytes"]
    return [
        f"{row['parameters']['method']:,}",
        f"{row['parameters']['head']:,}",
        f"{row['lr']:g}",
        f"{row['seconds']:,.0f}",
        f"{memory / 2**30:.1f} GiB" if memory >= 2**30 else f"{memory / 2**20:.0f} MiB",
    ]


def describe_spread(spread: Table) -> str:
    """Return a spread as 0.812 (0.805 to 0.815), or its only value."""
    if spread.get("seeds") == 1:
        return f"{center(spread):.3f} (one seed)"
    return f"{center(spread):.3f} ({spread['min']:.3f} to {spread['max']:.3f})"


def spread_title(folds: int | bool | None) -> str:
    return f"{'mean' if folds else 'median'} (min to max)"


def rate_cells(row: Table) -> list[list[str]]:
    """Return a heading and a line for each learning rate of a row of table.json."""
    beyond = next_rate(row)
    end = "" if beyond is None else ", the largest tried" if beyond > row["lr"] else ", the smallest tried"
    rungs = max((rate["rungs"] for rate in row["learning_rates"]), key=len)
    titles = [f"rung {number}: {rung['steps']:,} steps" for number, rung in enumerate(rungs, 1)]
    lines = [["lr", *titles, f"best: {spread_title('folds' in (row['best'] or ()))}", ""]]
    for rate in row["learning_rates"]:
        values = ["failed" if rung["value"] is None else f"{rung['value']:.3f}" for rung in rate["rungs"]]
        stopped = f"stopped at rung {len(values)}" if rungs else ""
        note = f"shown above{end}" if rate["lr"] == row["lr"] else stopped
        best = describe_spread(rate["best"]) if rate["best"] else "" if rungs else "failed"
        lines.append([f"{rate['lr']:g}", *values, *[""] * (len(rungs) - len(values)), best, note])
    return lines


def format_csv(table: Table) -> str:
    """Return one line per row, with unrounded numbers."""
    others = dict.fromkeys(name for task in table["tasks"] for row in task["rows"] for name in row["others"])
    parts = ("mean" if table["folds"] else "median", "min", "max")
    lines = []
    for task in table["tasks"]:
        for row in task["rows"]:
            parameters, seeds = row["parameters"] or {}, {run["seed"] for run in row["runs"]}
            line = {"task": task["task"], "method": row["method"], "rank": row["rank"], "lr": row["lr"]}
            line |= {"metric": task["metric"], "folds": table["folds"], "seeds": len(seeds)}
            line |= {"failed": len(row["failed"])}
            line |= {f"parameters_{part}": parameters.get(part) for part in ("method", "head")}
            line |= {f"{which}_{part}": (row[which] or {}).get(part) for which in ("best", "last") for part in parts}
            line |= {f"best_{name}": row["others"].get(name) for name in others}
            lines.append(line | {name: row[name] for name in ("seconds", "peak_memory_bytes")})
    file = io.StringIO()
    writer = csv.DictWriter(file, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()
