"""A comparison's page: one file that needs nothing else, for a phone and a desk, in the light and in the dark."""

from __future__ import annotations

from html import escape
from typing import Any

from minipeft.compare.charts import against_parameters, against_rank, curves, marker, strip
from minipeft.compare.formatting import in_words, listed, rates_in_words, spread_in_words
from minipeft.compare.table import RULE, Table, standard_error

STYLE = """
:root { color-scheme: light dark; --paper: #fcfbf8; --card: #ffffff; --ink: #1c1d20; --soft: #63656b; --line: #e4e1da;
  --band: #efece4; --warn: #8a3b00; --warnband: #fdf0e2;
  --c0: #0067a5; --c1: #c44e00; --c2: #00795a; --c3: #9c3d84; --c4: #7d6200; --c5: #4c55b8; --c6: #5b646e;
  --c7: #a3182c }
@media (prefers-color-scheme: dark) { :root { --paper: #15161a; --card: #1b1d22; --ink: #e9e9ea; --soft: #a2a5ac;
  --line: #31343b; --band: #24272e; --warn: #ffc48a; --warnband: #2f2419;
  --c0: #6bb8f0; --c1: #f39355; --c2: #3fc9a0; --c3: #e597cf; --c4: #dcbf4a; --c5: #a7aef5; --c6: #aeb6c0;
  --c7: #f2848f } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; -webkit-text-size-adjust: 100%; overflow-wrap: break-word }
main, header, footer { max-width: 1140px; margin: 0 auto; padding: 0 16px }
header { padding-top: 40px }
h1 { font-size: 1.7rem; line-height: 1.2; font-weight: 650; letter-spacing: -.012em; margin: 0 0 6px }
h2 { font-size: 1.3rem; font-weight: 650; letter-spacing: -.008em; margin: 56px 0 2px; padding-top: 20px;
  border-top: 1px solid var(--line) }
h3 { font-size: 1rem; font-weight: 650; margin: 36px 0 2px }
p { margin: 6px 0; max-width: 76ch } .pictures { margin-top: 34px }
.soft, figcaption, footer { color: var(--soft); font-size: .875rem }
.warn { background: var(--warnband); color: var(--warn); padding: 10px 14px; border-radius: 8px; margin: 14px 0;
  max-width: none }
ul { margin: 6px 0; padding-left: 1.2em; max-width: 72ch } li { margin: 2px 0 }
.scroll { overflow-x: auto; margin: 14px -16px; padding: 0 16px } .scroll:focus-visible { outline: 2px solid var(--c0) }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem }
caption { text-align: left; color: var(--soft); font-size: .875rem; padding-bottom: 8px }
th, td { padding: 7px 9px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
thead th { font-weight: 500; color: var(--soft); font-size: .8rem; vertical-align: bottom }
tbody th { font-weight: 600 } th:first-child { text-align: left; padding-left: 0; background: var(--paper) }
th:first-child { position: sticky; left: 0 } .scroll > table th:first-child { padding-right: 14px }
td small { color: var(--soft); font-size: .8rem; padding-left: .35em } td:last-child,
thead th:last-child { padding-right: 0 }
svg.key { display: inline-block; width: 15px; height: 15px; vertical-align: -2px; margin-right: 6px }
.keys { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 6px 0; font-size: .85rem }
caption span { display: block; position: sticky; left: 0; width: min(100vw - 32px, 68ch) }
.charts { display: grid; gap: 20px 28px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr));
  margin-top: 14px }
.many { display: grid; gap: 18px 20px; grid-template-columns: repeat(auto-fill, minmax(min(46%, 190px), 1fr));
  margin-top: 12px } @media (max-width: 600px) { .many { grid-template-columns: 1fr 1fr; gap: 18px 12px } }
figure { margin: 0; min-width: 0 } figcaption { margin-top: 4px }
.many figcaption { margin: 0 0 2px; color: var(--ink); font-weight: 600; font-size: .85rem }
.charts figcaption b { color: var(--ink); font-weight: 650; display: block; font-size: .95rem }
svg { display: block; width: 100%; height: auto; overflow: visible } svg text { font-family: inherit }
svg.strip { width: 100px; height: 18px; display: inline-block; vertical-align: middle }
.tick { fill: var(--soft); font-size: 11px } .many .tick { font-size: 9.5px } .axis { fill: var(--soft);
  font-size: 11.5px }
.label { fill: var(--ink); font-size: 11.5px } .grid { stroke: var(--line); fill: none; stroke-width: 1 }
.error { fill: var(--band) } .bar { stroke: var(--c); stroke-width: 2.2; stroke-linecap: round; opacity: .55 }
.mark { fill: var(--c); stroke: var(--paper); stroke-width: 1.2 } polyline { fill: none; stroke-linejoin: round }
.thick { stroke: var(--c); stroke-width: 2 } .thin { stroke: var(--c); stroke-width: 1.4 }
.dashed { stroke: var(--c); stroke-width: 1.4; stroke-dasharray: 4 3 } .band { fill: var(--c); opacity: .13 }
.faint { stroke: var(--line); stroke-width: 1 } circle.faint { fill: var(--line) }
circle.dot:not(.faint) { fill: var(--c) }
.seed { fill: var(--c); opacity: .55 } .median { stroke: var(--ink); stroke-width: 1.6 }
.best { fill: var(--paper); stroke: var(--c); stroke-width: 1.5 }
details { margin: 10px 0 } summary { cursor: pointer; color: var(--soft) } a { color: inherit }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; background: var(--band); border-radius: 8px;
  padding: 12px 14px }
footer { padding-top: 44px; padding-bottom: 56px }
""" + "".join(f".s{number} {{ --c: var(--c{number}) }} " for number in range(8))


def page(table: Table) -> str:
    """The whole page as HTML; `table` is table.json's content."""
    tasks = table["tasks"]
    methods = list(dict.fromkeys(row["method"] for task in tasks for row in task["rows"]))
    styles = {method: number % 8 for number, method in enumerate(methods)}
    names = list(dict.fromkeys(row["name"].split(" r = ")[0] for task in tasks for row in task["rows"]))
    title = f"{listed(names)} on {listed([task['task'] for task in tasks])}"
    told = [*dict.fromkeys(words for task in tasks for words in task["models"] + task["data"])]
    stand_in = [words for words in told if "stand-in" in words]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<header><h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_what(tasks))}</p>',
    ]
    if stand_in:
        parts.append(
            f'<p class="warn">Stand-ins: {escape("; ".join(stand_in))}. These figures show that the machine works and '
            "say nothing about the real thing.</p>"
        )
    parts.append("</header><main>")
    parts += [_task(task, styles, f"t{place}") for place, task in enumerate(tasks)]
    parts.append(f"</main><footer>{_footer(table)}</footer></body></html>\n")
    return "".join(parts)


def _what(tasks: list[Table]) -> str:
    runs = [run for task in tasks for row in task["rows"] for run in row["runs"]]
    seeds = sorted({run["seed"] for run in runs})
    models = " / ".join(dict.fromkeys(model for task in tasks for model in task["models"]))
    return f"Model: {models}. Seeds: {', '.join(map(str, seeds))}. Made by minipeft compare."


def _task(task: Table, styles: dict[str, int], number: str) -> str:
    rows = [row for row in task["rows"] if row["best"]]
    metric = (task["metric"] or "").replace("_", " ")
    head = f'<section aria-labelledby="{number}"><h2 id="{number}">{escape(task["task"])}</h2>'
    failed = "".join(
        f'<p class="warn">{escape(name)} failed: {escape(reason)}</p>'
        for row in task["rows"]
        for name, reason in row["failed"].items()
    )
    if not rows:
        return f"{head}{failed}</section>"
    error = standard_error(task["metric"], max(row["best"]["median"] for row in rows), task["validation_examples"])
    parts = [
        head,
        f'<p class="soft">{metric.capitalize()} on {task["validation_examples"]:,} validation examples, where one '
        f"standard error of the highest median is {error:.3f}. Data: {escape('; '.join(task['data']))}.</p>",
        failed,
        _table(task, styles),
        *(
            f'<p class="soft">{escape(row["name"])}: {escape(rates_in_words(row))}.</p>'
            for row in rows
            if len(row["learning_rates"]) > 1
        ),
        '<h3>Which differences stand out of the noise</h3><div class="charts">',
        *(f"<div>{_apart(task, which)}</div>" for which in ("best", "last")),
        '</div><div class="charts pictures">',
        _figure(
            against_parameters(task, styles, f"{number}p"),
            f"{metric.capitalize()} against trainable parameters",
            "Medians over the seeds; bars from the worst seed to the best. Numbers are ranks. The band is one standard "
            "error of the validation split either side of the highest median.",
            _key(rows, styles),
        ),
    ]
    if ranks := against_rank(task, styles, f"{number}r"):
        parts.append(
            _figure(
                ranks,
                f"{metric.capitalize()} against rank",
                "Medians over the seeds, with bands from the worst seed to the best. Dashed: methods without a rank.",
            )
        )
    parts.append("</div>")
    if max(run["last"]["epoch"] for row in rows for run in row["runs"]) > 1:
        seeds, pairs = (
            "A line a seed, a ring at its best epoch; the other rows in grey.",
            "Training solid, validation dashed.",
        )
        parts.append(f'<h3>{metric.capitalize()} by epoch</h3><p class="soft">{seeds}</p>')
        parts.append(_curves(task, [task["metric"]], styles, number))
        parts.append(f'<details><summary>Loss by epoch</summary><p class="soft">{pairs}</p>')
        parts.append(f"{_curves(task, ['train_loss', 'eval_loss'], styles, f'{number}l')}</details>")
    return "".join([*parts, "</section>"])


def _curves(task: Table, names: list[str], styles: dict[str, int], number: str) -> str:
    """A small picture for each row, of the same axes."""
    figures = [
        f"<figure><figcaption>{escape(row['name'])}</figcaption>"
        f"{curves(task, row, styles[row['method']], names, f'{number}c{place}')}</figure>"
        for place, row in enumerate(task["rows"])
        if row["runs"]
    ]
    return f'<div class="many">{"".join(figures)}</div>'


def _key(rows: list[Table], styles: dict[str, int]) -> str:
    """Each method's shape and colour with its name."""
    names = {row["method"]: row["name"].split(" r = ")[0] for row in rows}
    shapes = "".join(f"<span>{_shape(styles[method])}{escape(name)}</span>" for method, name in names.items())
    return f'<p class="keys">{shapes}</p>'


def _shape(style: int) -> str:
    return f'<svg class="key" viewBox="-8 -8 16 16" aria-hidden="true">{marker(style, 0, 0)}</svg>'


def _figure(chart: str, title: str, caption: str, key: str = "") -> str:
    return f"<figure><figcaption><b>{escape(title)}</b>{escape(caption)}</figcaption>{key}{chart}</figure>"


def _table(task: Table, styles: dict[str, int]) -> str:
    others = list(dict.fromkeys(name for row in task["rows"] for name in row["others"]))
    headings = ["Best epoch", "Seeds", "Last epoch", *(name.replace("_", " ") for name in others)]
    headings += ["Parameters", "+ head", "Learning rate", "Seconds", "Memory"]
    cells = "".join(f'<th scope="col">{escape(text)}</th>' for text in ["Method", *headings])
    body = []
    for row in task["rows"]:
        name = f'<th scope="row">{_shape(styles[row["method"]])}{escape(row["name"])}</th>'
        if not row["best"]:
            body.append(f'<tr>{name}<td colspan="{len(headings)}">failed</td></tr>')
            continue
        figures: list[Any] = [
            _spread(row["best"]),
            strip(task, row, styles[row["method"]]),
            _spread(row["last"]),
            *(f"{row['others'][other]:.3f}" for other in others),
            f"{row['parameters']['method']:,}",
            f"{row['parameters']['head']:,}",
            f"{row['lr']:g}",
            f"{row['seconds']:,.0f}",
            _memory(row["peak_memory_bytes"]),
        ]
        body.append(f"<tr>{name}{''.join(f'<td>{figure}</td>' for figure in figures)}</tr>")
    also = f" {', '.join(name.replace('_', ' ') for name in others).capitalize()}: at the best epoch." if others else ""
    caption = f"{str(task['metric']).replace('_', ' ').capitalize()}: median over the seeds, and worst to best.{also}"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(task["task"])}: table"><table><caption>'
        f"<span>{escape(caption)}</span></caption><thead><tr>{cells}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _spread(spread: Table) -> str:
    median, _, rest = spread_in_words(spread).partition(" ")
    return f"{median}<small>{rest.strip('()')}</small>"


def _memory(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _apart(task: Table, which: str) -> str:
    first, *lines = (line.replace(" r = ", "\u00a0r\u00a0=\u00a0") for line in in_words(task, which))
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<p>By the {which} epoch: {escape(first)}</p>" + (f"<ul>{items}</ul>" if items else "")


def _footer(table: Table) -> str:
    return (
        f"<h3>How to read this</h3><p>{escape(RULE)} Two rows of the same three seeds that do not differ at all fulfil "
        "the first condition in 1 of 10 pairs, of five seeds in 1 of 126: of many pairs, some are apart by chance. "
        "The standard error counts the validation examples alone.</p><p>The best epoch, and the learning rate where "
        "several were tried, were chosen on the same validation examples, which flatters them; the last epoch was "
        "not chosen. Seconds are the median of the runs’ training time, memory is their highest peak.</p>"
        f"<details><summary>The command</summary><pre>{escape(table['command'])}</pre></details>"
    )
