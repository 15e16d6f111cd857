"""The comparison's page: one self-contained HTML file, rendered from page.html.j2."""

from typing import Any

from minipeft.compare import charts, formatting
from minipeft.compare.formatting import join_names, metric_title, row_figures
from minipeft.compare.table import Table, center, standard_error
from minipeft.inference.evaluation_files import render_page


def render_comparison(table: Table) -> str:
    """Return the page as HTML; `table` is the content of table.json."""
    tasks = [_describe_task(task) for task in table["tasks"]]
    rows = [row for task in tasks for row in task["rows"]]
    styles = {method: number % 8 for number, method in enumerate(dict.fromkeys(row["method"] for row in rows))}
    methods = join_names(list(dict.fromkeys(_method_name(row) for row in rows)))
    models = list(dict.fromkeys(model for task in tasks for model in task["models"]))
    sources = [*models, *dict.fromkeys(data for task in tasks for data in task["data"])]
    return render_page(
        "compare/page.html.j2",
        table=table,
        tasks=tasks,
        styles=styles,
        title=f"{methods} on {join_names([task['task'] for task in tasks])}",
        models=models,
        seeds=sorted({run["seed"] for row in rows for run in row["runs"]}),
        fallbacks=[source for source in sources if "stand-in" in source],
        middle="Means over the folds" if table["folds"] else "Medians over the seeds",
        cells=lambda task, row: _cells(task, row, styles[row["method"]]),
        charts=charts,
        formatting=formatting,
    )


def _describe_task(task: Table) -> Table:
    """Return a task's table with the values that the template needs."""
    done = [row for row in task["rows"] if row["best"]]
    if not done:
        return {**task, "done": []}
    highest = max(center(row["best"]) for row in done)
    others = list(dict.fromkeys(name for row in done for name in row["others"]))
    epochs = max(run["last"]["epoch"] for row in done for run in row["runs"])
    title = metric_title(task["metric"])
    title = title[0].upper() + title[1:]
    unit = "Folds" if "folds" in done[0]["best"] else "Seeds"
    headings = ["Best epoch", unit, "Last epoch"] if epochs > 1 else [title, unit]
    headings += [metric_title(name) for name in others]
    return {
        **task,
        "done": done,
        "title": title,
        "epochs": epochs,
        "which": ("best", "last") if epochs > 1 else ("last",),
        "error": standard_error(task["metric"], highest, task["validation_examples"]),
        "others": others,
        "other_titles": join_names([metric_title(name) for name in others]) if others else "",
        "names": {row["method"]: _method_name(row) for row in done},
        "headings": ["Method", *headings, "Parameters", "+ head", "Learning rate", "Seconds", "Memory"],
    }


def _method_name(row: Table) -> str:
    return str(row["name"]).split(" r = ")[0]


def _cells(task: Table, row: Table, style: int) -> list[Any]:
    """Return the cells of a row, in the order of the headings: texts, spreads over the seeds, and a Chart."""
    return [
        row["best"],
        charts.seed_strip(task, row, style),
        *([row["last"]] if task["epochs"] > 1 else []),
        *(f"{row['others'][name]:.3f}" if name in row["others"] else "" for name in task["others"]),
        *row_figures(row),
    ]
