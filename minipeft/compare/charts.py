"""The page's charts as shapes, which page.html.j2 draws. One unit is a CSS pixel on a phone, where a chart is as wide.

Colours are CSS variables of the page (light and dark mode); each method also has a marker shape.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from minipeft.compare.table import center, levels, standard_error

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 14, 40  # margins
LETTER, LINE = 6.4, 15  # width of a letter and height of a line, at 11.5 pixels
SMALL_WIDTH, SMALL_HEIGHT = 172, 104  # of one of many
SMALL_LEFT, SMALL_RIGHT = 34, SMALL_WIDTH - 6  # of its area
Row = dict[str, Any]
Scale = Callable[[float], float]
Tick = tuple[float, str]  # its place on the axis, and what is written there
Points = Sequence[tuple[float, float]]
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass
class Chart:
    """The shapes of a chart in the order in which they are drawn; `look` is a shape's class in the style sheet."""

    title: str
    description: str = ""
    width: int = WIDTH
    height: int = HEIGHT
    areas: list[tuple[str, Points]] = field(default_factory=list)  # (look, corners)
    lines: list[tuple[str, Points]] = field(default_factory=list)  # (look, points)
    marks: list[tuple[int, float, float]] = field(default_factory=list)  # (style of the method, x, y)
    dots: list[tuple[str, float, float, float]] = field(default_factory=list)  # (look, x, y, radius)
    texts: list[tuple[float, float, str, str, str]] = field(default_factory=list)  # (x, y, text, look, anchor)

    def add_axes(self, y_ticks: Sequence[Tick], x_ticks: Sequence[Tick], label: str, end: float) -> None:
        """Add a grid line for each tick of the y axis, and the texts of both axes; `end` is that of the lines."""
        for y, text in y_ticks:
            self.lines.append(("grid", [(LEFT, y), (end, y)]))
            self.texts.append((LEFT - 7, y + 4, text, "tick", "end"))
        self.texts += [(x, HEIGHT - BOTTOM + 17, text, "tick", "middle") for x, text in x_ticks]
        self.texts.append(((LEFT + end) / 2, HEIGHT - 6, label, "axis", "middle"))


def against_parameters(task: Row, styles: dict[str, int]) -> Chart:
    """Draw the metric against the method's trainable parameters, on a logarithmic axis that starts with 0.

    A point is a row's center; its bar goes from the minimum to the maximum. The band is one standard error above and
    below the highest center.
    """
    chart = Chart(f"{task['task']}: {task['metric']} against trainable parameters")
    rows = [row for row in task["rows"] if row["best"]]
    sizes = [row["parameters"]["method"] for row in rows]
    place, x_ticks = _log_axis([size for size in sizes if size], LEFT + (44 if 0 in sizes else 14), WIDTH - RIGHT - 14)
    x_ticks += [(LEFT + 14, "0")] * (0 in sizes)
    y, y_ticks = _metric_axis(task)
    chart.add_axes(y_ticks, x_ticks, "trainable parameters, without the head’s", WIDTH - RIGHT)
    highest = max(center(row["best"]) for row in rows)
    error = standard_error(task["metric"], highest, task["validation_examples"])
    top, bottom = max(TOP, y(highest + error)), min(HEIGHT - BOTTOM, y(highest - error))
    chart.areas.append(("error", [(LEFT, top), (WIDTH - RIGHT, top), (WIDTH - RIGHT, bottom), (LEFT, bottom)]))
    taken: list[Box] = []
    for row, size in zip(rows, sizes, strict=True):
        style, px = styles[row["method"]], place(size) if size else LEFT + 14
        worst, py, best = map(y, levels(row["best"]))
        chart.lines.append((f"bar s{style}", [(px, worst), (px, best)]))
        chart.marks.append((style, px, py))
        taken += [(px - 6, py - 6, px + 6, py + 6), (px - 1, best, px + 1, worst)]
    for row, (_, px, py) in zip(rows, chart.marks, strict=True):
        text = row["name"] if row["rank"] is None else str(row["rank"])
        _place_label(chart, text, px, py, (y(row["best"]["max"]), y(row["best"]["min"])), taken)
    described = [
        f"{row['name']}: {size:,} parameters, {center(row['best']):.3f}" for row, size in zip(rows, sizes, strict=True)
    ]
    chart.description = "; ".join(described)
    return chart


def against_rank(task: Row, styles: dict[str, int]) -> Chart | None:
    """Draw the metric against the rank; None where no method has two ranks.

    A method without a rank is a horizontal line.
    """
    rows = [row for row in task["rows"] if row["best"]]
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    ranks = sorted({row["rank"] for of_method in by_method.values() if len(of_method) > 1 for row in of_method})
    if len(ranks) < 2:
        return None
    described = "; ".join(f"{row['name']}: {center(row['best']):.3f}" for row in rows)
    chart = Chart(f"{task['task']}: {task['metric']} against rank", described)
    names = [of_method[0]["name"].split(" r = ")[0] for of_method in by_method.values()]
    end = WIDTH - RIGHT - LETTER * max(map(len, names)) - 10
    log_x = _scale(math.log(ranks[0]), math.log(ranks[-1]), LEFT + 12, end - 12)
    y, y_ticks = _metric_axis(task)
    chart.add_axes(y_ticks, [(log_x(math.log(rank)), str(rank)) for rank in ranks], "rank", end)
    ends = []
    for method, of_method in by_method.items():
        style, has_ranks = styles[method], len(of_method) > 1
        xs = [log_x(math.log(row["rank"])) for row in of_method] if has_ranks else [LEFT, end]
        spreads = [levels(row["best"]) for row in (of_method if has_ranks else of_method * 2)]
        lower, middle, upper = (
            [(x, y(spread[level])) for x, spread in zip(xs, spreads, strict=True)] for level in range(3)
        )
        chart.areas.append((f"band s{style}", [*upper, *reversed(lower)]))
        chart.lines.append((f"{'thick' if has_ranks else 'dashed'} s{style}", middle))
        chart.marks += [(style, *point) for point in middle] if has_ranks else []
        ends.append(middle[-1][1])
    heights = spread_out(ends, LINE, TOP + 4, HEIGHT - BOTTOM)
    for method, name, start, height in zip(by_method, names, ends, heights, strict=True):
        chart.lines.append((f"thin s{styles[method]}", [(end, start), (end + 6, height)]))
        chart.texts.append((end + 9, height + 4, name, "label", "start"))
    return chart


def spread_out(heights: Sequence[float], least: float, top: float, bottom: float) -> list[float]:
    """Return heights between top and bottom, in the same order, at least `least` from each other."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    placed = [0.0] * len(heights)
    lowest = top - least
    for index in order:
        placed[index] = lowest = max(heights[index], lowest + least)
    highest = bottom + least
    for index in reversed(order):
        placed[index] = highest = min(placed[index], highest - least)
    return placed


def curves(task: Row, row: Row, style: int, names: Sequence[str]) -> Chart:
    """Draw the fields `names` of metrics.jsonl by epoch, one line per seed; a second field is dashed.

    All rows of a task share their axes. With one field, the other rows are drawn in grey.
    """
    title = f"{row['name']}: {' and '.join(name.replace('_', ' ') for name in names)} by epoch"
    ends = ", ".join(f"seed {run['seed']} {run['history'][-1][names[0]]:.3f}" for run in row["runs"])
    rows = [other for other in task["rows"] if other["runs"]]
    history = [entry for other in rows for run in other["runs"] for entry in run["history"]]
    last = max(entry["epoch"] for entry in history)
    values = [entry[name] for entry in history for name in names]
    chart, y = _small_chart(title, f"After the last epoch: {ends}", values)
    x = _scale(1, last, SMALL_LEFT + 5, SMALL_RIGHT - 5)
    chart.texts.append((x(1), SMALL_HEIGHT - 4, "1", "tick", "middle"))
    chart.texts.append((x(last) + 3, SMALL_HEIGHT - 4, f"epoch {last}", "tick", "end"))

    def draw(run: Row, name: str, look: str) -> None:
        points = [(x(entry["epoch"]), y(entry[name])) for entry in run["history"]]
        chart.lines.append((look, points))
        if len(points) == 1:  # of which no line is seen
            chart.dots.append((f"{look} dot", *points[0], 2.5))

    for other in rows if len(names) == 1 else ():
        for run in other["runs"] if other is not row else ():
            draw(run, names[0], "faint")
    for run in row["runs"]:
        for name, look in zip(names, ("thin", "dashed"), strict=False):
            draw(run, name, f"{look} s{style}")
        if len(names) == 1:
            best = next(entry for entry in run["history"] if entry["epoch"] == run["best"]["epoch"])
            chart.dots.append((f"s{style} best", x(best["epoch"]), y(best[names[0]]), 2.6))
    return chart


def against_learning_rate(task: Row, row: Row, style: int) -> Chart | None:
    """Draw the metric against the learning rate, on a logarithmic axis: medians, and a band from minimum to maximum.

    All rows of a task share the axis of the metric. A ring is at the learning rate that the table shows. The rungs of
    a search are dashed. None where only a learning rate of 0 has a result.
    """
    rates = [rate for rate in row["learning_rates"] if rate["lr"] and _levels(rate)]
    if not any(rate["best"] for rate in rates):
        return None
    described = "; ".join(f"{rate['lr']:g}: {_levels(rate)[-1]:.3f}" for rate in rates)
    values = [level for other in task["rows"] for rate in other["learning_rates"] for level in _levels(rate)]
    chart, y = _small_chart(f"{row['name']}: {task['metric']} against the learning rate", described, values)
    x, _ = _log_axis([rate["lr"] for rate in rates], SMALL_LEFT + 12, SMALL_RIGHT - 12)
    for rate, shift, anchor in ((rates[0], -8, "start"), (rates[-1], 8, "end"))[: len(rates)]:
        chart.texts.append((x(rate["lr"]) + shift, SMALL_HEIGHT - 4, f"{rate['lr']:g}", "tick", anchor))
    for rung in range(max(len(rate["rungs"]) for rate in rates)):
        trials = [(rate["lr"], rate["rungs"][rung]["value"]) for rate in rates if len(rate["rungs"]) > rung]
        chart.lines.append((f"dashed s{style}", [(x(lr), y(value)) for lr, value in trials if value is not None]))
    rates = [rate for rate in rates if rate["best"]]
    lower, middle, upper = ([(x(rate["lr"]), y(levels(rate["best"])[level])) for rate in rates] for level in range(3))
    chart.areas.append((f"band s{style}", [*upper, *reversed(lower)]))
    chart.lines += [(f"thin s{style}", middle), (f"thin s{style}", [lower[0], upper[0]])]
    for rate, point in zip(rates, middle, strict=True):
        look, radius = ("best", 3.2) if rate["lr"] == row["lr"] else ("dot", 2.2)
        chart.dots.append((f"s{style} {look}", *point, radius))
    return chart


def _small_chart(title: str, description: str, values: Sequence[float]) -> tuple[Chart, Scale]:
    """Return one chart of many with the grid of its y axis, and the scale of that axis."""
    chart = Chart(title, description, SMALL_WIDTH, SMALL_HEIGHT)
    y, ticks = _linear_axis(min(values), max(values), SMALL_HEIGHT - 18, 6, 3)
    for height, text in ticks:
        chart.lines.append(("grid", [(SMALL_LEFT, height), (SMALL_RIGHT, height)]))
        chart.texts.append((SMALL_LEFT - 5, height + 3.5, text, "tick", "end"))
    return chart, y


def _levels(rate: Row) -> list[float]:
    """Return the values of a learning rate: those of the rungs, then minimum, maximum and center of the whole runs."""
    values = [rung["value"] for rung in rate["rungs"] if rung["value"] is not None]
    return [*values, rate["best"]["min"], rate["best"]["max"], center(rate["best"])] if rate["best"] else values


def seed_strip(task: Row, row: Row, style: int) -> Chart:
    """Draw a row's seeds as dots on the scale that all rows of the task share, for a cell of the table."""
    x = _scale(*_range(task), 4, 96)
    middle = x(center(row["best"]))
    return Chart(
        "",
        lines=[("grid", [(0, 8), (100, 8)]), ("median", [(middle, 1), (middle, 15)])],
        dots=[(f"s{style} seed", x(run["best"]["value"]), 8, 3) for run in row["runs"]],
    )


def _place_label(chart: Chart, text: str, x: float, y: float, bar: tuple[float, float], taken: list[Box]) -> None:
    """Add a label where it overlaps nothing: above, below or next to its point; omit it if there is no room."""
    width = LETTER * len(text)
    above, below = min(bar[0], y - 6) - y - 4, max(bar[1], y + 6) - y + 12
    places = [(0, above, "middle"), (0, below, "middle"), (9, 4, "start"), (-9, 4, "end")]
    places += [(0, shift, "middle") for shift in (above - LINE, below + LINE, above - 2 * LINE, below + 2 * LINE)]
    for dx, dy, anchor in places:
        left = x + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        box = (left - 1, y + dy - 10, left + width + 1, y + dy + 3)
        inside = box[0] > LEFT and box[2] < WIDTH and box[1] > 0 and box[3] < HEIGHT - BOTTOM + 4
        if inside and not any(_overlap(box, other) for other in taken):
            taken.append(box)
            chart.texts.append((x + dx, y + dy, text, "label", anchor))
            return


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    """Return the map from values to pixels that takes `low` to `start` and `high` to `end`."""
    return lambda value: start + (end - start) * (value - low) / (high - low)


def _range(task: Row) -> tuple[float, float]:
    values = [row["best"][end] for row in task["rows"] if row["best"] for end in ("min", "max")]
    room = max((max(values) - min(values)) * 0.06, 5e-3)  # ticks have three decimals at most
    return min(values) - room, max(values) + room


def _metric_axis(task: Row) -> tuple[Scale, list[Tick]]:
    return _linear_axis(*_range(task), HEIGHT - BOTTOM, TOP, 5)


def _linear_axis(low: float, high: float, start: float, end: float, count: int) -> tuple[Scale, list[Tick]]:
    """Return the scale of an axis, and about `count` round values as ticks."""
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    place, rough = _scale(low, high, start, end), (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))  # that distinguish the ticks
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return place, [(place(step * index), f"{step * index:.{decimals}f}") for index in range(first, last + 1)]


def _log_axis(values: Sequence[float], start: float, end: float) -> tuple[Scale, list[Tick]]:
    low, high = math.log10(min(values, default=1)), math.log10(max(values, default=1))
    if high - low < 0.3:
        low, high = low - 0.15, high + 0.15
    place = _scale(low, high, start, end)
    factors = next(factors for most, factors in ((1, (1, 2, 5)), (2, (1, 3)), (math.inf, (1,))) if high - low <= most)
    values = [10**power * factor for power in range(max(0, math.floor(low)), math.ceil(high) + 1) for factor in factors]
    inside = [(math.log10(value), value) for value in values if low - 0.02 <= math.log10(value) <= high + 0.02]
    return lambda value: place(math.log10(value)), [(place(log), _short(value)) for log, value in inside]


def _short(value: float) -> str:
    """30000 → 30k."""
    size, letter = next((pair for pair in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if value >= pair[0]), (1, ""))
    return f"{value / size:g}{letter}"
