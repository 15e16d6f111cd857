"""A comparison's table in words: for a terminal, as CSV, and the sentences on what stands out."""

from __future__ import annotations

import csv
import io
from itertools import groupby

from minipeft.compare.table import FEWEST_SEEDS, Table

HEADINGS = (
    "",
    "parameters",
    "+ head",
    "lr",
    "best: median (min to max)",
    "last: median (min to max)",
    "seconds",
    "memory",
)
LEFT = (0, 4, 5)  # columns of text


def in_words(task: Table, which: str) -> list[str]:
    """Which rows of a task are apart, in sentences."""
    rows = [row for row in task["rows"] if row[which]]
    pairs, seeds = len(rows) * (len(rows) - 1) // 2, min((row[which]["seeds"] for row in rows), default=0)
    if seeds < FEWEST_SEEDS:
        some = sum(row[which]["seeds"] >= FEWEST_SEEDS for row in rows)
        if some < 2:
            return [f"Nothing can be said about differences: it takes {FEWEST_SEEDS} seeds or more for a spread."]
    apart = task["apart"][which]
    lines = [f"{len(apart) or 'None'} of {pairs} pairs of rows {'is' if len(apart) == 1 else 'are'} apart."]
    below: dict[str, list[str]] = {}
    for pair in apart:
        below.setdefault(pair["above"], []).append(pair["below"])
    for those, group in groupby(sorted(below, key=lambda name: (len(below[name]), below[name])), key=below.__getitem__):
        above = list(group)
        lines.append(f"{listed(above)} {'is' if len(above) == 1 else 'are'} above {listed(those)}.")
    return lines


def listed(names: list[str]) -> str:
    """a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def as_text(table: Table) -> str:
    """The tables and the sentences for a terminal."""
    blocks = []
    for task in table["tasks"]:
        lines = [list(HEADINGS), *(_cells(row) for row in task["rows"])]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        title = (
            f"{task['task']}: {task['metric'] or 'no result'} on {task['validation_examples']:,} validation examples"
        )
        text = [title, *(f"model {model}" for model in task["models"]), *(f"data {data}" for data in task["data"]), ""]
        for line in lines:
            cells = [
                cell.ljust(width) if column in LEFT else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            text.append("  ".join(cells).rstrip())
        for row in task["rows"]:
            text += [f"{row['name']}: {name} failed: {reason}" for name, reason in row["failed"].items()]
            if len(row["learning_rates"]) > 1:
                text.append(f"{row['name']}: {rates_in_words(row)}")
        for which in ("best", "last"):
            text += ["", f"By the {which} epoch: " + "\n  ".join(in_words(task, which))]
        blocks.append("\n".join(text))
    return "\n\n".join([*blocks, table["rule"]])


def _cells(row: Table) -> list[str]:
    if not row["best"]:
        return [row["name"], "", "", "", "failed", "", "", ""]
    return [
        row["name"],
        f"{row['parameters']['method']:,}",
        f"{row['parameters']['head']:,}",
        f"{row['lr']:g}",
        *(spread_in_words(row[which]) for which in ("best", "last")),
        f"{row['seconds']:,.0f}",
        f"{row['peak_memory_bytes'] / 2**20:,.0f} MiB",
    ]


def spread_in_words(spread: Table) -> str:
    """0.812 (0.805 to 0.815), or one value alone."""
    if spread["seeds"] == 1:
        return f"{spread['median']:.3f} (one seed)"
    return f"{spread['median']:.3f} ({spread['min']:.3f} to {spread['max']:.3f})"


def rates_in_words(row: Table) -> str:
    """Which learning rates were tried for a row, and which one it shows."""
    tried = [
        f"{rate['lr']:g} → " + (f"{rate['best']['median']:.3f}" if rate["best"] else "failed")
        for rate in row["learning_rates"]
    ]
    return f"learning rates tried, by the best epoch's median: {', '.join(tried)}; the table shows {row['lr']:g}"


def as_csv(table: Table) -> str:
    """A line for each row, with every figure in full."""
    others = list(dict.fromkeys(name for task in table["tasks"] for row in task["rows"] for name in row["others"]))
    file = io.StringIO()
    spread = [f"{which}_{part}" for which in ("best", "last") for part in ("median", "min", "max")]
    writer = csv.writer(file, lineterminator="\n")
    columns = ["task", "method", "rank", "lr", "metric", "seeds", "failed", "parameters_method", "parameters_head"]
    writer.writerow([*columns, *spread, *(f"best_{name}" for name in others), "seconds", "peak_memory_bytes"])
    for task in table["tasks"]:
        for row in task["rows"]:
            parameters = row["parameters"] or {"method": None, "head": None}
            figures = [row[w][part] if row[w] else None for w in ("best", "last") for part in ("median", "min", "max")]
            figures += [*(row["others"].get(name) for name in others), row["seconds"], row["peak_memory_bytes"]]
            what = [task["task"], row["method"], row["rank"], row["lr"], task["metric"]]
            counts = [len(row["runs"]), len(row["failed"]), parameters["method"], parameters["head"]]
            writer.writerow([*what, *counts, *figures])
    return file.getvalue()
