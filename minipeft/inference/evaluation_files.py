"""A report as files: JSON, a page, and the confusion matrix as text and, with the extra `plot`, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from minipeft.errors import MinipeftError, format_names, printable
from minipeft.files import FORMAT, check_output, user_path, write_atomically, write_json, write_text
from minipeft.lease import Lease, clear_folder

REPORT = "report.json"
LONGEST_NAME = 24  # characters of a class name in a text table
LARGEST_TABLE = 30  # classes of the matrix on the page
LARGEST_PICTURE = 100  # classes of the matrix as a picture, and of its text


def check_report_folder(folder: str | Path) -> None:
    """Raise MinipeftError for a --report that exists and is not an empty folder, or that cannot be written to."""
    if (user_path(folder) / REPORT).is_file():
        raise MinipeftError(f"{folder} already holds a report. Choose another --report.")
    check_output(user_path(folder), REPORT, "report", resume=False, flag="--report")


def write_report(report: dict[str, Any], folder: str | Path) -> list[Path]:
    """Write a report to a new folder; return the files."""
    folder = user_path(folder)
    with Lease(folder):
        check_report_folder(folder)
        matrix = report.get("confusion_matrix")
        try:
            if matrix is not None and len(matrix["labels"]) <= LARGEST_PICTURE:
                write_text(folder / "confusion_matrix.txt", describe_matrix(matrix))
                _draw_matrix(matrix, folder / "confusion_matrix.png")
            write_text(folder / "report.html", render_report(report))
            write_json(folder / REPORT, {"format": FORMAT, **report})  # last: it marks the folder as complete
        except BaseException:
            clear_folder(folder)  # it was empty
            raise
    return sorted(folder.iterdir())


def render_report(report: dict[str, Any]) -> str:
    """Return the page as HTML; `report` is the content of report.json."""
    environment = Environment(
        loader=PackageLoader("minipeft.inference", ""),
        autoescape=True,
        # What a macro made is Markup, not str, and stays as it is.
        finalize=lambda value: printable(value, keep="\n\t") if type(value) is str else value,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    matrix = report.get("confusion_matrix")
    return environment.get_template("report.html.j2").render(
        report=report,
        matrix=matrix if matrix is not None and len(matrix["labels"]) <= LARGEST_TABLE else None,
        largest_table=LARGEST_TABLE,
    )


def describe_metrics(metrics: dict[str, float]) -> str:
    """Return metrics as a text table, a line per metric."""
    return format_table([[name, f"{value:.4f}"] for name, value in metrics.items()])


def describe_report(report: dict[str, Any]) -> str:
    """Return the metrics, the figures of each class and the calibration as text tables."""
    text = describe_metrics(report["metrics"])
    if "errors" in report:
        return f"{text}\n{describe_metrics(report['errors'])}"
    names = ("precision", "recall", "f1")
    rows = [["", *names, "support"]]
    rows += [
        [row["label"], *(f"{row[name]:.4f}" for name in names), f"{row['support']:,}"] for row in report["classes"]
    ]
    rows += [
        [f"{kind} average", *(f"{values[name]:.4f}" for name in names), f"{values['support']:,}"]
        for kind, values in report["averages"].items()
    ]
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


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned text, the first column to the left and the others to the right."""
    rows = [[_short(row[0]), *row[1:]] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() + "\n" for row in rows
    )


def _short(name: str) -> str:
    name = printable(" ".join(name.split()))
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _draw_matrix(matrix: dict[str, Any], path: Path) -> None:
    """Draw a confusion matrix, where the extra `plot` is installed."""
    try:
        from minipeft.inference.matrix_picture import draw_matrix
    except ImportError:
        return
    figure = draw_matrix([_short(label) for label in matrix["labels"]], matrix["rows"])
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
