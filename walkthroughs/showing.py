"""What the walkthroughs show in addition to printed text: the package's own code, and pictures.

In a notebook both are displayed. In a script the code is printed, and a picture is described in text.
"""

from __future__ import annotations

import hashlib
import html
import inspect
import io
import re
import sys
import textwrap
from typing import Any

TEXT_COLOUR = "#7d8590"  # legible on white and on black; the site draws it in the page's own text colour
PALETTE = ("#3b82c4", "#e07b39", "#3f9d6b", "#9a6fc4", "#d0524f", "#8a8f98")


def source(*things: Any) -> None:
    """Show the code of functions, methods or classes of the package as it stands in the installed file."""
    for thing in things:
        code = textwrap.dedent(inspect.getsource(thing))
        _show_code(thing, code, code)


def piece(thing: Any, first: str, last: str) -> None:
    """Show the lines of `source(thing)` from the one that begins with `first` to the next that begins with `last`.

    Raises StopIteration where the code has no such lines any more.
    """
    code = textwrap.dedent(inspect.getsource(thing))
    lines = code.splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if line.strip().startswith(first))
    stop = next(number for number, line in enumerate(lines) if number >= start and line.strip().startswith(last))
    _show_code(thing, code, textwrap.dedent("".join(lines[start : stop + 1])))


def fingerprint(text: str) -> str:
    """Return a short hash of a text: a notebook records those of its script and of the code that it quotes."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _show_code(thing: Any, code: str, shown: str) -> None:
    """Show `shown`, a part of `code`, which is all of `thing`; the notebook records the hash of all of it."""
    name = f"{thing.__module__}.{thing.__qualname__}"
    if "ipykernel" in sys.modules:
        from IPython.display import Markdown, display

        text = f"`{name}`\n\n```python\n{shown.rstrip()}\n```"
        display(Markdown(text), metadata={"quoted": {name: fingerprint(code)}})
    else:
        print(f"# {name}\n{shown}")


def picture(figure: Any, alt: str) -> None:
    """Show a matplotlib figure; `alt` describes what it shows."""
    import matplotlib.pyplot as plt

    if "ipykernel" in sys.modules:
        from IPython.display import SVG, display

        display(SVG(_svg(figure, alt)))
    else:
        print(f"[picture: {alt}]")
    plt.close(figure)


def _svg(figure: Any, alt: str) -> str:
    """Return the figure as SVG: the same text for the same figure, with names that no other picture of a page has."""
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None}
    figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"\n\s*", "\n", svg)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    prefix = f"p{fingerprint(svg)[:8]}-"
    svg = re.sub(r' id="([^"]+)"', lambda match: f' id="{prefix}{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)


def _set_style() -> None:
    """Give matplotlib colours that fit light and dark pages."""
    import matplotlib as mpl
    from cycler import cycler

    coloured = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    mpl.rcParams.update(
        {
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
    )


if "ipykernel" in sys.modules:
    _set_style()
