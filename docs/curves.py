"""Draw the curves of docs/report.md from benchmarks/results/report.json: `python docs/curves.py`."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from picture import STYLE

FOLDER = Path(__file__).resolve().parent / "_static"
RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
COLOURS = ("#3b82c4", "#e07b39")
WIDTH, HEIGHT, LEFT, TOP, GAP = 300, 170, 46, 30, 70
Line = tuple[str, int, bool, Sequence[tuple[float, float]]]  # label, colour, dashed, points


def main() -> None:
    for name, svg in pictures().items():
        (FOLDER / name).write_text(svg, encoding="utf-8")


def rows() -> list[dict[str, Any]]:
    """Return the rows of every machine."""
    content = json.loads((RESULTS / "report.json").read_text(encoding="utf-8"))
    return [row for entry in content.values() for row in entry["rows"]]


def pictures() -> dict[str, str]:
    """Return the SVG of each file."""
    every = rows()
    panels = []
    for task, title in (("rte", "RTE"), ("sst2", "SST-2")):
        lines: list[Line] = []
        for colour, method in enumerate(("LoRA", "BitFit")):
            found = [row for row in every if row["part"] == "report" and row["name"] == f"{task} {method}"]
            for row in found[:1]:  # the first seed
                for dashed, (what, name) in enumerate((("training", "train_loss"), ("validation", "eval_loss"))):
                    points = [(entry["epoch"], entry[name]) for entry in row["epochs"]]
                    lines.append((f"{method}, {what}", colour, bool(dashed), points))
        panels.append(panel(title, "epoch", "loss", lines))
    ranked = by_rank(every)
    losses: list[Line] = [
        ("training loss", 0, False, [(math.log2(rank), mean(found, "train_loss")) for rank, found in ranked]),
        ("validation loss", 1, True, [(math.log2(rank), mean(found, "eval_loss")) for rank, found in ranked]),
    ]
    accuracy = [(math.log2(rank), mean(found, "accuracy")) for rank, found in ranked]
    ticks = {math.log2(rank): str(rank) for rank, _ in ranked}
    by_rank_panels = [
        panel("Loss after the last epoch", "rank", "loss", losses, ticks),
        panel("Accuracy after the last epoch", "rank", "accuracy", [("accuracy", 0, False, accuracy)], ticks),
    ]
    return {
        "report-curves.svg": joined(panels, "Training and validation loss by epoch, on RTE and on SST-2"),
        "report-ranks.svg": joined(by_rank_panels, "Loss and accuracy after the last epoch by rank, mean of the seeds"),
    }


def by_rank(every: list[dict[str, Any]]) -> list[tuple[int, list[dict[str, Any]]]]:
    """Return the rows of each rank, the lowest first."""
    found: dict[int, list[dict[str, Any]]] = {}
    for row in every:
        if row["part"] == "rank":
            found.setdefault(int(row["name"]), []).append(row)
    return sorted(found.items())


def mean(found: list[dict[str, Any]], name: str) -> float:
    """Return the mean of a value of the last epoch over the seeds."""
    return statistics.mean(row["epochs"][-1][name] for row in found)


def panel(title: str, across: str, up: str, lines: list[Line], ticks: dict[float, str] | None = None) -> list[str]:
    """Return the SVG elements of one diagram."""
    points = [point for *_, line in lines for point in line]
    if not points:
        return [f'<text class="head" x="{LEFT}" y="16">{title}</text>', f'<text x="{LEFT}" y="60">not run</text>']
    (left, right), (low, high) = ((min(values), max(values)) for values in zip(*points, strict=True))
    margin = 0.06 * (high - low) or 0.01
    low, high = low - margin, high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + WIDTH * (x - left) / ((right - left) or 1), TOP + HEIGHT * (high - y) / (high - low)

    bottom = TOP + HEIGHT
    parts = [f'<text class="head" x="{LEFT}" y="16">{title} ({up})</text>']
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{LEFT + WIDTH}" fill="none" stroke="#59636e"/>')
    for value in (low + margin, high - margin):
        y = place(left, value)[1] + 4
        parts.append(f'<text class="soft" x="{LEFT - 6}" y="{y:.1f}" text-anchor="end">{value:.3g}</text>')
    for value, label in (ticks or {left: f"{left:g}", right: f"{right:g}"}).items():
        parts.append(
            f'<text class="soft" x="{place(value, low)[0]:.1f}" y="{bottom + 16}" text-anchor="middle">{label}</text>'
        )
    parts.append(
        f'<text class="soft" x="{LEFT + WIDTH / 2:.0f}" y="{bottom + 32}" text-anchor="middle">{across}</text>'
    )
    for number, (label, colour, dashed, line) in enumerate(lines):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        stroke = f'fill="none" stroke="{COLOURS[colour]}" stroke-width="2"{dash}'
        parts.append(f'<polyline points="{path}" {stroke}/>')
        y = bottom + 52 + 18 * number
        parts.append(f'<path d="M{LEFT} {y - 4}h24" {stroke}/><text x="{LEFT + 32}" y="{y}">{label}</text>')
    return parts


def joined(panels: list[list[str]], label: str) -> str:
    """Return two diagrams next to each other as one picture."""
    width, height = 2 * (LEFT + WIDTH) + GAP, TOP + HEIGHT + 52 + 18 * 4
    groups = "\n".join(
        f'<g transform="translate({number * (LEFT + WIDTH + GAP)} 0)">\n' + "\n".join(parts) + "\n</g>"
        for number, parts in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{label}">\n<style>{STYLE}</style>\n{groups}\n</svg>\n'
    )


if __name__ == "__main__":
    main()
