"""The learning rates that were tried for a row: a small table, and the command that adds one where the best is an end.

The best of several learning rates says little where it is the smallest or the largest of them: the next one may be
better still. The grid then gets one more value on that side, with the same ratio as between the last two.
"""

from dataclasses import replace
from pathlib import Path
from shlex import quote

from minipeft.compare.plan import Plan, value_for
from minipeft.compare.table import Table


def next_rate(row: Table) -> float | None:
    """Return the learning rate beyond the end of the grid where the row's best one is that end, else None."""
    rates = [rate for rate in row["learning_rates"] if rate["lr"]]
    if not row["best"] or len(rates) < 2 or row["lr"] not in (rates[0]["lr"], rates[-1]["lr"]):
        return None
    if sum(rate["best"] is not None and rate["best"]["median"] == row["best"]["median"] for rate in rates) > 1:
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
