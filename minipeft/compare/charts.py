"""The page's charts as SVG. One unit is one CSS pixel on a phone, where a chart is as wide as the page.

Colours are CSS variables of the page (light and dark mode); each method also has a marker shape.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup, escape

from minipeft.compare.table import standard_error

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 14, 40  # margins
LETTER, LINE = 6.4, 15  # width of a letter and height of a line, at 11.5 pixels
SMALL_WIDTH, SMALL_HEIGHT = 172, 104  # of one of many
Row = dict[str, Any]
Scale = Callable[[float], float]
Box = tuple[float, float, float, float]  # left, top, right, bottom


def against_parameters(task: Row, styles: dict[str, int], number: str) -> Markup:
    """Draw the metric against the method's trainable parameters, on a logarithmic axis that starts with 0.

    A point is a row's median; its bar goes from the minimum to the maximum over the seeds.
    """
    rows = [row for row in task["rows"] if row["best"]]
    sizes = [row["parameters"]["method"] for row in rows]
    start = LEFT + (44 if 0 in sizes else 14)
    place, ticks = _log_axis([size for size in sizes if size], start, WIDTH - RIGHT - 14)
    x_ticks = [(place(tick), _short(tick)) for tick in ticks] + [(LEFT + 14.0, "0")] * (0 in sizes)
    y, y_ticks = _metric_axis(task)
    parts = _frame(y, y_ticks, x_ticks, "trainable parameters, without the head’s")
    parts.insert(0, _band(task, y))
    taken: list[Box] = []
    points = [
        (row, place(size) if size else LEFT + 14.0, y(row["best"]["median"]))
        for row, size in zip(rows, sizes, strict=True)
    ]
    for row, px, py in points:
        style, worst, best = styles[row["method"]], y(row["best"]["min"]), y(row["best"]["max"])
        parts.append(f'<line class="bar s{style}" x1="{px:.1f}" x2="{px:.1f}" y1="{worst:.1f}" y2="{best:.1f}"/>')
        taken += [(px - 6, py - 6, px + 6, py + 6), (px - 1, best, px + 1, worst)]
    parts += [marker(styles[row["method"]], px, py) for row, px, py in points]
    for row, px, py in points:
        text = row["name"] if row["rank"] is None else str(row["rank"])
        parts.append(_place_label(text, px, py, (y(row["best"]["max"]), y(row["best"]["min"])), taken))
    description = "; ".join(
        f"{row['name']}: {size:,} parameters, {row['best']['median']:.3f}"
        for row, size in zip(rows, sizes, strict=True)
    )
    return _svg(parts, f"{task['task']}: {task['metric']} against trainable parameters", description, number)


def against_rank(task: Row, styles: dict[str, int], number: str) -> Markup:
    """Draw the metric against the rank; empty where no method has two ranks.

    A method without a rank is a horizontal line.
    """
    rows = [row for row in task["rows"] if row["best"]]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = {method: [row for row in rows if row["method"] == method] for method in methods}
    ranks = sorted({row["rank"] for of_method in lines.values() if len(of_method) > 1 for row in of_method})
    if len(ranks) < 2:
        return Markup()
    names = {method: of_method[0]["name"].split(" r = ")[0] for method, of_method in lines.items()}
    end = WIDTH - RIGHT - LETTER * max(len(name) for name in names.values()) - 10
    low, high = math.log(ranks[0]), math.log(ranks[-1])

    def x(rank: float) -> float:
        return LEFT + 12 + (end - LEFT - 24) * (math.log(rank) - low) / (high - low)

    y, y_ticks = _metric_axis(task)
    parts = _frame(y, y_ticks, [(x(rank), str(rank)) for rank in ranks], "rank", end)
    ends = {}
    for method, of_method in lines.items():
        style = styles[method]
        if len(of_method) == 1:
            level = of_method[0]["best"]
            band = [(LEFT, y(level["max"])), (end, y(level["max"])), (end, y(level["min"])), (LEFT, y(level["min"]))]
            parts.append(f'<polygon class="band s{style}" points="{_points(band)}"/>')
            parts.append(_path([(LEFT, y(level["median"])), (end, y(level["median"]))], f"dashed s{style}"))
        else:
            upper = [(x(row["rank"]), y(row["best"]["max"])) for row in of_method]
            lower = [(x(row["rank"]), y(row["best"]["min"])) for row in reversed(of_method)]
            middle = [(x(row["rank"]), y(row["best"]["median"])) for row in of_method]
            parts.append(f'<polygon class="band s{style}" points="{_points(upper + lower)}"/>')
            parts += [_path(middle, f"thick s{style}"), *(marker(style, *point) for point in middle)]
        ends[method] = y(of_method[-1]["best"]["median"])
    heights = spread_out(list(ends.values()), LINE, TOP + 4, HEIGHT - BOTTOM)
    for (method, start), height in zip(ends.items(), heights, strict=True):
        parts.append(_path([(end, start), (end + 6, height)], f"thin s{styles[method]}"))
        parts.append(_text(end + 9, height + 4, names[method], "label", "start"))
    description = "; ".join(f"{row['name']}: {row['best']['median']:.3f}" for row in rows)
    return _svg(parts, f"{task['task']}: {task['metric']} against rank", description, number)


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


def curves(task: Row, row: Row, style: int, names: Sequence[str], number: str) -> Markup:
    """Draw the fields `names` of metrics.jsonl by epoch, one line per seed; a second field is dashed.

    All rows of a task share their axes. With one field, the other rows are drawn in grey.
    """
    rows = [other for other in task["rows"] if other["runs"]]
    history = [entry for other in rows for run in other["runs"] for entry in run["history"]]
    last = max(entry["epoch"] for entry in history)
    values = [entry[name] for entry in history for name in names]
    left, right, top, bottom = 34, 6, 6, 18
    y, ticks = _linear_axis(min(values), max(values), SMALL_HEIGHT - bottom, top, 3)

    def x(epoch: float) -> float:
        middle = (left + SMALL_WIDTH - right) / 2
        return left + 5 + (SMALL_WIDTH - left - right - 10) * (epoch - 1) / (last - 1) if last > 1 else middle

    parts = [_grid(left, SMALL_WIDTH - right, y(tick)) for tick in ticks]
    parts += [_text(left - 5, y(tick) + 3.5, _decimal(tick, ticks), "tick", "end") for tick in ticks]
    parts.append(_text(x(1), SMALL_HEIGHT - 4, "1", "tick", "middle"))
    if last > 1:
        parts.append(_text(x(last) + 3, SMALL_HEIGHT - 4, f"epoch {last}", "tick", "end"))

    def line(run: Row, name: str, look: str) -> str:
        points = [(x(entry["epoch"]), y(entry[name])) for entry in run["history"]]
        dot = f'<circle class="{look} dot" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="2.5"/>'
        return _path(points, look) if len(points) > 1 else dot

    if len(names) == 1:
        parts += [line(run, names[0], "faint") for other in rows if other is not row for run in other["runs"]]
    for run in row["runs"]:
        parts += [line(run, name, f"{'dashed' if place else 'thin'} s{style}") for place, name in enumerate(names)]
        if len(names) == 1:
            at = next(entry for entry in run["history"] if entry["epoch"] == run["best"]["epoch"])
            parts.append(
                f'<circle class="s{style} best" cx="{x(at["epoch"]):.1f}" cy="{y(at[names[0]]):.1f}" r="2.6"/>'
            )
    ends = ", ".join(f"seed {run['seed']} {run['history'][-1][names[0]]:.3f}" for run in row["runs"])
    title = f"{row['name']}: {' and '.join(name.replace('_', ' ') for name in names)} by epoch"
    return _svg(parts, title, f"After the last epoch: {ends}", number, SMALL_WIDTH, SMALL_HEIGHT)


def seed_strip(task: Row, row: Row, style: int) -> str:
    """Draw a row's seeds as dots on the scale that all rows of the task share, for a cell of the table."""
    low, high = _range(task)
    dots = "".join(
        f'<circle class="s{style} seed" cx="{4 + 92 * (run["best"]["value"] - low) / (high - low):.1f}" cy="8" r="3"/>'
        for run in row["runs"]
    )
    middle = 4 + 92 * (row["best"]["median"] - low) / (high - low)
    tick = f'<line class="median" x1="{middle:.1f}" x2="{middle:.1f}" y1="1" y2="15"/>'
    line = '<path class="grid" d="M0 8H100"/>'
    return f'<svg class="strip" viewBox="0 0 100 16" aria-hidden="true">{line}{dots}{tick}</svg>'


def marker(style: int, x: float, y: float) -> Markup:
    """Draw a method's marker: circle, square, triangle, diamond, inverted triangle, and so on cyclically."""
    shapes = ("", "-5,-5 5,-5 5,5 -5,5", "0,-6.5 6.5,5 -6.5,5", "0,-7 7,0 0,7 -7,0", "0,6.5 6.5,-5 -6.5,-5")
    shape = shapes[style % len(shapes)]
    drawn = f'<polygon points="{shape}"/>' if shape else '<circle r="5.5"/>'
    return Markup(f'<g class="mark s{style}" transform="translate({x:.1f} {y:.1f})">{drawn}</g>')


def _svg(
    parts: list[str], title: str, description: str, number: str, width: int = WIDTH, height: int = HEIGHT
) -> Markup:
    return Markup(
        f'<svg role="img" viewBox="0 0 {width} {height}" aria-labelledby="{number}t {number}d">'
        f'<title id="{number}t">{escape(title)}</title><desc id="{number}d">{escape(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _frame(
    y: Scale, y_ticks: list[float], x_ticks: list[tuple[float, str]], label: str, end: float = WIDTH - RIGHT
) -> list[str]:
    parts = [_grid(LEFT, end, y(tick)) for tick in y_ticks]
    parts += [_text(LEFT - 7, y(tick) + 4, _decimal(tick, y_ticks), "tick", "end") for tick in y_ticks]
    parts += [_text(x, HEIGHT - BOTTOM + 17, text, "tick", "middle") for x, text in x_ticks]
    parts.append(_text((LEFT + end) / 2, HEIGHT - 6, label, "axis", "middle"))
    return parts


def _grid(start: float, end: float, y: float) -> str:
    return f'<path class="grid" d="M{start:.1f} {y:.1f}H{end:.1f}"/>'


def _text(x: float, y: float, text: str, look: str, anchor: str) -> str:
    return f'<text class="{look}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _path(points: Sequence[tuple[float, float]], look: str) -> str:
    return f'<polyline class="{look}" points="{_points(points)}"/>'


def _band(task: Row, y: Scale) -> str:
    """Draw one standard error above and below the highest median."""
    best = max(row["best"]["median"] for row in task["rows"] if row["best"])
    error = standard_error(task["metric"], best, task["validation_examples"])
    top, bottom = max(TOP, y(best + error)), min(HEIGHT - BOTTOM, y(best - error))
    return f'<rect class="error" x="{LEFT}" y="{top:.1f}" width="{WIDTH - RIGHT - LEFT}" height="{bottom - top:.1f}"/>'


def _place_label(text: str, x: float, y: float, bar: tuple[float, float], taken: list[Box]) -> str:
    """Place a label where it overlaps nothing: above, below or next to its point; omit it if there is no room."""
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
            return _text(x + dx, y + dy, text, "label", anchor)
    return ""


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _range(task: Row) -> tuple[float, float]:
    values = [row["best"][end] for row in task["rows"] if row["best"] for end in ("min", "max")]
    room = max((max(values) - min(values)) * 0.06, 5e-3)  # ticks have three decimals at most
    return min(values) - room, max(values) + room


def _metric_axis(task: Row) -> tuple[Scale, list[float]]:
    return _linear_axis(*_range(task), HEIGHT - BOTTOM, TOP, 5)


def _linear_axis(low: float, high: float, start: float, end: float, count: int) -> tuple[Scale, list[float]]:
    """Return the map from values to pixels, and about `count` round values as ticks."""
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    ticks = [step * index for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return (lambda value: start + (end - start) * (value - low) / (high - low)), ticks


def _log_axis(values: list[int], start: float, end: float) -> tuple[Scale, list[float]]:
    low, high = math.log10(min(values, default=1)), math.log10(max(values, default=1))
    if high - low < 0.3:
        low, high = low - 0.15, high + 0.15
    factors = (1,) if high - low > 2 else (1, 3) if high - low > 1 else (1, 2, 5)
    ticks = [10.0**power * factor for power in range(math.floor(low), math.ceil(high) + 1) for factor in factors]
    inside = [tick for tick in ticks if low - 0.02 <= math.log10(tick) <= high + 0.02]
    return (lambda value: start + (end - start) * (math.log10(value) - low) / (high - low)), inside


def _short(value: float) -> str:
    """30000 → 30k."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _decimal(value: float, ticks: Sequence[float]) -> str:
    """Format a tick with as many decimal places as distinguish the ticks."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(value) or 1.0
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{places + (round(step * 10**places, 6) % 1 > 0)}f}"
