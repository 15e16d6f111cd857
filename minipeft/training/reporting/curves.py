"""curves.png: loss, metric and learning rate of a run, epoch by epoch. Needs the extra `plot`."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from minipeft.errors import printable
from minipeft.files import read_json, read_json_lines, write_atomically
from minipeft.training.progress import NOT_METRICS


def draw(folder: Path) -> None:
    """Draw `folder`/metrics.jsonl as `folder`/curves.png; result.json gives the title and the best epoch."""
    result = read_json(folder / "result.json")
    best = result["best"]
    rows = read_json_lines(folder / "metrics.jsonl")
    epochs = [row["epoch"] for row in rows]
    panels = {
        "loss": [name for name in rows[0] if name.endswith("loss")],
        "metric": [name for name in rows[0] if name not in NOT_METRICS and not name.endswith("loss")],
        "learning rate": ["learning_rate"],
    }
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    reached = f"{result['metric']} {best['value']:.3f} in epoch {best['epoch']}"
    figure.suptitle(_plain(f"{result['task']}, {result['method']}: {reached}"))
    for axes, (title, names) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name in names:
            axes.plot(epochs, [row[name] for row in rows], marker="o", markersize=3, label=_plain(name))
        axes.axvline(best["epoch"], color="grey", linestyle=":", label="best epoch")
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        axes.grid(alpha=0.3)
    write_atomically(folder / "curves.png", lambda path: figure.savefig(path, dpi=120, format="png"))


def _plain(text: str) -> str:
    """Return text that matplotlib does not read as mathematical notation."""
    return printable(text).replace("$", r"\$")
