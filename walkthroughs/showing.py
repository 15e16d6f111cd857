"""What the walkthroughs show in addition to printed text: the package's own code, and pictures.

In Jupyter both are displayed, in a script the code is printed and a picture is described in text, and `render.py` puts
them into the page, through `collect`.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable
from typing import Any

collect: Callable[[str, dict[str, Any]], None] | None = None  # kind, and what belongs to it; set by render.py


def source(*things: Any) -> None:
    """Show the code of functions, methods or classes of the package as it stands in the installed file."""
    for thing in things:
        code = textwrap.dedent(inspect.getsource(thing))
        _show(thing, code, code)


def piece(thing: Any, first: str, last: str) -> None:
    """Show the lines of `source(thing)` from the one that begins with `first` to the next that begins with `last`.

    Raises StopIteration where the code has no such lines any more.
    """
    code = textwrap.dedent(inspect.getsource(thing))
    lines = code.splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if line.strip().startswith(first))
    stop = next(number for number, line in enumerate(lines) if number >= start and line.strip().startswith(last))
    _show(thing, code, textwrap.dedent("".join(lines[start : stop + 1])))


def _show(thing: Any, code: str, shown: str) -> None:
    name = f"{thing.__module__}.{thing.__qualname__}"
    if collect is not None:
        collect("source", {"name": name, "code": code, "shown": shown})
    elif "ipykernel" in sys.modules:
        from IPython.display import Code, display

        display(Code(shown, language="python"))
    else:
        print(f"# {name}\n{shown}")


def picture(figure: Any, alt: str) -> None:
    """Show a matplotlib figure; `alt` describes what it shows."""
    if collect is not None:
        collect("picture", {"figure": figure, "alt": alt})
    elif "ipykernel" in sys.modules:
        from IPython.display import display

        display(figure)
    else:
        print(f"[picture: {alt}]")
    import matplotlib.pyplot as plt

    plt.close(figure)
