"""Execute the walkthroughs and write them as web pages: `python walkthroughs/render.py`, or with some pages' names.

Each page runs in a process of its own. The pages need nothing from outside: pictures are SVG in the text's colour,
mathematics is MathML, and the style is in the page. What they quote of the package is marked with its name and hash,
so that the tests can tell whether a committed page still says what the code says.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import html
import io
import multiprocessing
import os
import re
import sys
import types
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
HTML = FOLDER / "html"
TEXT_COLOUR = "#010203"  # what matplotlib draws in it becomes the page's own text colour
PALETTE = ("#3b82c4", "#e07b39", "#3f9d6b", "#9a6fc4", "#d0524f", "#8a8f98")  # legible on white and on black


def pages() -> list[Path]:
    """The walkthroughs in reading order."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def fingerprint(text: str) -> str:
    """What the meta tag and the quotations carry."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main(names: list[str]) -> None:
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
        "TOKENIZERS_PARALLELISM": "false",
    }
    os.environ["PYTHONPATH"] = str(FOLDER.parent)
    HTML.mkdir(exist_ok=True)
    wanted = [page for page in pages() if not names or any(name in page.name for name in names)]
    spawn = multiprocessing.get_context("spawn")
    for page in wanted:
        with ProcessPoolExecutor(1, mp_context=spawn) as executor:
            print(executor.submit(render, page).result(), flush=True)
    write_index()
    for page in pages():  # a page that is new has neighbours that have to know it
        if (file := HTML / f"{page.stem}.html").is_file():
            text = re.sub(r"<nav>.*?</nav>", lambda _, page=page: f"<nav>{links(page)}</nav>", file.read_text("utf-8"))
            file.write_text(text, encoding="utf-8")


def render(page: Path) -> str:
    """Execute a page and write it; returns one line about it."""
    import jupytext

    sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
    text = page.read_text(encoding="utf-8")
    parts = []
    module = types.ModuleType("walkthrough")
    sys.modules["walkthrough"] = module
    for number, cell in enumerate(jupytext.reads(text, fmt="py:percent").cells):
        if cell.cell_type == "markdown":
            parts.append(markdown().render(cell.source))
        else:
            parts.append(code_box(cell.source))
            parts += execute(cell.source, f"<{page.name}, cell {number}>", module, len(parts))
    title, _ = title_and_start(page)
    path = HTML / f"{page.stem}.html"
    path.write_text(whole_page(title, "\n".join(parts), links(page), fingerprint(text)), encoding="utf-8")
    return f"{path.name}: {path.stat().st_size // 1024} KB"


def code_box(code: str) -> str:
    """A cell's code; that of a picture is folded away, and a mere quotation needs none."""
    called = [getattr(getattr(getattr(line, "value", None), "func", None), "id", "") for line in ast.parse(code).body]
    if set(called) <= {"source", "piece"}:
        return ""
    if "picture" in called:
        return f'<details class="code"><summary>The code of the picture</summary>{highlighted(code)}</details>'
    return f'<div class="code">{highlighted(code)}</div>'


def execute(code: str, name: str, module: types.ModuleType, number: int) -> list[str]:
    """Run a cell in the page's module → what it printed, quoted and drew, in order, as HTML."""
    import matplotlib as mpl
    import showing

    mpl.rcParams.update(style())
    parts: list[str] = []
    printed = io.StringIO()

    def end_of_text() -> None:
        if text := printed.getvalue().rstrip():
            parts.append(f'<pre class="output">{html.escape(text)}</pre>')
        printed.seek(0)
        printed.truncate()

    def collect(kind: str, content: dict[str, Any]) -> None:
        end_of_text()
        if kind == "source":
            parts.append(quotation(**content))
        else:
            parts.append(drawing(**content, prefix=f"p{number}-{len(parts)}-"))

    showing.collect = collect
    with contextlib.redirect_stdout(printed):
        exec(compile(code, name, "exec"), module.__dict__)
    end_of_text()
    return parts


def quotation(name: str, code: str, shown: str) -> str:
    """What is shown of the code of `name`; the hash is that of all of it."""
    parts = name.split(".")
    homes = [FOLDER.parent.joinpath(*parts[:end]) for end in range(len(parts), 0, -1)]
    files = [file for home in homes for file in (home.with_suffix(".py"), home / "__init__.py")]
    file = next(file for file in files if file.is_file())
    link = f'<a href="../../{file.relative_to(FOLDER.parent)}">{name}</a>'
    return (
        f'<figure class="quotation" data-name="{name}" data-code="{fingerprint(code)}">'
        f"<figcaption>{link}</figcaption>{highlighted(shown)}</figure>"
    )


def drawing(figure: Any, alt: str, prefix: str) -> str:
    """A matplotlib figure as SVG inside the page, in the page's colours; `prefix` keeps its names apart."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None, "Creator": None}
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(TEXT_COLOUR, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)
    return f'<figure class="picture">{svg}</figure>'


def style() -> dict[str, Any]:
    from cycler import cycler

    coloured = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(coloured, TEXT_COLOUR),
        "axes.prop_cycle": cycler(color=PALETTE),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "legend.frameon": False,
        "font.size": 11,
        "svg.fonttype": "none",
        "svg.hashsalt": "minipeft",
    }


def markdown() -> Any:
    """Markdown with tables and $mathematics$; links to pages go to their rendered form."""
    from latex2mathml.converter import convert
    from markdown_it import MarkdownIt
    from mdit_py_plugins.anchors import anchors_plugin
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    def mathematics(tex: str, options: dict[str, Any]) -> str:
        return convert(tex, display="block" if options["display_mode"] else "inline")

    reader = MarkdownIt("commonmark", {"highlight": lambda code, language, _: highlighted(code, language)})
    reader.enable("table").use(anchors_plugin, max_level=3).use(dollarmath_plugin, renderer=mathematics)
    reader.add_render_rule("table_open", lambda *_: '<div class="table"><table>')
    reader.add_render_rule("table_close", lambda *_: "</table></div>")

    def link_open(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
        token = tokens[index]
        token.attrs["href"] = re.sub(r"^(\d\w+)\.py", r"\1.html", token.attrs["href"])
        return self.renderToken(tokens, index, options, env)

    reader.add_render_rule("link_open", link_open)
    return reader


def highlighted(code: str, language: str = "python") -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    return highlight(code, get_lexer_by_name(language or "text"), HtmlFormatter(nowrap=False, cssclass="highlight"))


def title_and_start(page: Path) -> tuple[str, str]:
    """A page's title and its first paragraph, in Markdown."""
    lines = [line.removeprefix("#").strip() for line in page.read_text(encoding="utf-8").splitlines()]
    paragraph = lines[3 : lines.index("", 3)]
    return lines[1].removeprefix("#").strip(), " ".join(paragraph)


def links(page: Path) -> str:
    """To the page before, to all pages, and to the page after."""
    order = pages()
    place = order.index(page)
    before = f'<a rel="prev" href="{order[place - 1].stem}.html">← {title_and_start(order[place - 1])[0]}</a>'
    after = ""
    if place + 1 < len(order):
        after = f'<a rel="next" href="{order[place + 1].stem}.html">{title_and_start(order[place + 1])[0]} →</a>'
    return f'<span>{before if place else ""}</span><a href="index.html">All pages</a><span>{after}</span>'


def write_index() -> None:
    """html/index.html: every page with its first paragraph, in reading order."""
    entries = []
    for page in pages():
        title, start = title_and_start(page)
        entries.append(f'<li><a href="{page.stem}.html">{title}</a>{markdown().render(start)}</li>')
    body = "<h1>minipeft: the walkthroughs</h1>" + f'<ol class="pages">{"".join(entries)}</ol>'
    if (HTML / "api.html").is_file():
        body += '<p>And <a href="api.html">every public name</a>, with its shapes, units, errors and source.</p>'
    text = whole_page("minipeft: the walkthroughs", body, "", fingerprint(body))
    (HTML / "index.html").write_text(text, encoding="utf-8")


def whole_page(title: str, body: str, navigation: str, source: str) -> str:
    """A page that needs no other file."""
    from pygments.formatters import HtmlFormatter

    light = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    rules = (FOLDER / "page.css").read_text(encoding="utf-8")
    navigation = f"<nav>{navigation}</nav>" if navigation else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="source" content="{source}">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>
{light}
@media (prefers-color-scheme: dark) {{
{dark}
}}
{rules}</style>
</head>
<body>
{navigation}
<main>
{body}
</main>
{navigation}
</body>
</html>
"""


if __name__ == "__main__":
    main(sys.argv[1:])
