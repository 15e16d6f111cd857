"""A report as files: JSON, a page, and the confusion matrix as text and, with the extra `plot`, as a picture."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from minipeft.adapters.merging import write_folder
from minipeft.errors import MinipeftError, format_names, printable
from minipeft.files import FORMAT, check_output, user_path, write_atomically, write_json, write_text

REPORT = "report.json"
LONGEST_NAME = 24  # characters of a class name in a text table
LARGEST_TABLE = 30  # classes of the matrix on the page
LARGEST_PICTURE = 100  # classes of the matrix as a picture, and of its text
WITH_NUMBERS = 25  # classes at most whose cells in the picture hold their counts


def check_report_folder(folder: str | Path) -> None:
    """Raise MinipeftError for a --report that exists and is not an empty folder, or that cannot be written to."""
    if (user_path(folder) / REPORT).is_file():
        raise MinipeftError(f"{folder} already holds a report. Choose another --report.")
    check_output(user_path(folder), REPORT, "report", resume=False, flag="--report")


def write_report(report: dict[str, Any], folder: str | Path) -> list[Path]:
    """Write a report to a new folder, which appears when every file is complete; return the files."""
    folder = user_path(folder)
    check_report_folder(folder)

    def write(target: Path) -> None:
        matrix = report.get("confusion_matrix")
        if matrix is not None and len(matrix["labels"]) <= LARGEST_PICTURE:
            write_text(target / "confusion_matrix.txt", describe_matrix(matrix))
            _draw_matrix(matrix, target / "confusion_matrix.png")
        write_text(target / "report.html", render_report(report))
        write_json(target / REPORT, {"format": FORMAT, **report})

    write_folder(folder, write)
    return sorted(folder.iterdir())


def render_report(report: dict[str, Any]) -> str:
    """Return the page as HTML; `report` is the content of report.json."""
    matrix = report.get("confusion_matrix")
    return render_page(
        "inference/report.html.j2",
        report=report,
        matrix=matrix if matrix is not None and len(matrix["labels"]) <= LARGEST_TABLE else None,
        largest_table=LARGEST_TABLE,
    )


def render_page(template: str, **values: Any) -> str:
    """Return the page that a template of minipeft gives for its values."""
    environment = Environment(
        loader=PackageLoader("minipeft", ""),
        autoescape=True,
        # What a macro made is Markup, not str, and stays as it is.
        finalize=lambda value: printable(value, keep="\n\t\u00a0") if type(value) is str else value,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)


def describe_metrics(metrics: dict[str, float]) -> str:
    """Return metrics as a text table, a line per metric."""
    return format_table([[name, f"{value:.4f}"] for name, value in metrics.items()])


def describe_report(report: dict[str, Any]) -> str:
    """Return the metrics, the figures of each class and the calibration as text tables."""
    text = describe_metrics(report["metrics"])
    if "errors" in report:
        return f"{text}\n{describe_metrics(report['errors'])}"
    names = ("precision", "recall", "f1")
    figures = [(_short(row["label"]), row) for row in report["classes"]]
    figures += [(f"{kind} average", row) for kind, row in report["averages"].items()]
    rows = [["", *names, "support"]]
    rows += [[of, *(f"{row[name]:.4f}" for name in names), f"{row['support']:,}"] for of, row in figures]
    error = report["calibration"]["expected_calibration_error"]
    return f"{text}\n{format_table(rows)}\nexpected calibration error  {error:.4f}\n"


def describe_calibration(found: dict[str, Any], labels: Sequence[str]) -> str:
    """Return what `LoadedRun.calibrate` has found, a line for the temperatures and one for the thresholds."""
    lines = []
    if "error_before" in found:
        values = format_names([f"{value:.4g}" for value in found["temperatures"]])
        errors = "before {error_before:.4f}, after {error_after:.4f}".format(**found)
        lines.append(f"temperature {values}; expected calibration error {errors} (validation)")
    if "chosen_by" in found:
        named = zip(labels[-len(found["thresholds"]) :], found["thresholds"], strict=True)
        chosen = format_names([f"{name} {value:.4g}" for name, value in named])
        scores = "{chosen_by} before {before:.4f}, after {after:.4f}".format(**found)
        lines.append(f"threshold {chosen}; {scores} (validation)")
    return "\n".join(lines)


def describe_matrix(matrix: dict[str, Any]) -> str:
    """Return a confusion matrix as a text table: a row per class, a column per prediction."""
    labels = [_short(label) for label in matrix["labels"]]
    rows = [["label \\ prediction", *labels]]
    rows += [[label, *map(str, counts)] for label, counts in zip(labels, matrix["rows"], strict=True)]
    return format_table(rows)


def format_table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Return rows as aligned text, the columns `left` to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        padded = [cell.ljust(width) if n in left else cell.rjust(width) for n, (cell, width) in cells]
        lines.append("  ".join(padded).rstrip() + "\n")
    return "".join(lines)


def _short(name: str) -> str:
    name = printable(" ".join(name.split()))
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _draw_matrix(matrix: dict[str, Any], path: Path) -> None:
    """Draw a confusion matrix, coloured by the fraction of the row, where the extra `plot` is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    counts = np.asarray(matrix["rows"])
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(3.2 + 0.42 * len(counts), 20.0)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="prediction", ylabel="label")
    texts = [_short(label).replace("$", r"\$") for label in matrix["labels"]]  # no mathematical notation
    axes.set_xticks(range(len(counts)), texts, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(counts)), texts)
    if len(counts) <= WITH_NUMBERS:
        for row, column in np.ndindex(*counts.shape):
            colour = "white" if fractions[row, column] > 0.5 else "black"
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="fraction of the row", shrink=0.8)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
