"""Write each walkthrough as an executed notebook: `python walkthroughs/notebooks.py`, or with some pages' names.

Needs the extra `docs`. A notebook is written again only where its script or code that it quotes has changed; `--all`
writes every one. `stale` says which these are; the tests call it.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]

from showing import fingerprint  # noqa: E402 - a script next to this one

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0"}
HIDDEN, FOLDED, SOLUTION = "remove-input", "hide-input", "hide-cell"  # MyST-NB's tags


def main(arguments: list[str]) -> None:
    names = [name for name in arguments if not name.startswith("-")]
    for page in pages():
        if any(name in page.name for name in names) or (not names and ("--all" in arguments or stale(page))):
            path = page.with_suffix(".ipynb")
            path.write_text(write(executed(page)), encoding="utf-8")
            print(f"{path.name}: {path.stat().st_size // 1024} KB", flush=True)


def pages() -> list[Path]:
    """Return the walkthroughs in reading order."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def of_script(page: Path) -> Any:
    """Return the notebook of a script, without outputs and with the same bytes each time."""
    import jupytext

    notebook = jupytext.read(page, fmt="py:percent")
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "minipeft": {"script": fingerprint(page.read_text(encoding="utf-8"))},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    solutions = False
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell["metadata"] = {}
        solutions = solutions or "### Solution" in cell.source
        if cell.cell_type == "code" and solutions:
            cell["metadata"] = {"tags": [SOLUTION]}
        elif cell.cell_type == "code":
            called = set(re.findall(r"^(\w+)\(", cell.source, re.MULTILINE))
            if not re.sub(r"^(source|piece)\((.|\n)*?\)$", "", cell.source, flags=re.MULTILINE).strip():
                cell["metadata"] = {"tags": [HIDDEN]}
            elif "picture" in called:
                cell["metadata"] = {"tags": [FOLDED]}
    return notebook


def executed(page: Path) -> Any:
    """Return the notebook with its outputs, from a kernel of its own in the walkthroughs' folder.

    Raises nbclient's CellExecutionError where a cell raises.
    """
    from nbclient import NotebookClient

    notebook = of_script(page)
    os.environ |= ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(FOLDER.parent), str(FOLDER)])}
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(FOLDER)}}).execute()
    quoted: dict[str, str] = {}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
            for output in cell.outputs:
                quoted |= output.get("metadata", {}).pop("quoted", {})
    notebook.metadata = of_script(page).metadata  # the kernel adds its version
    notebook.metadata["minipeft"]["quoted"] = dict(sorted(quoted.items()))
    return notebook


def joined(outputs: list[Any]) -> list[Any]:
    """Return a cell's outputs with consecutive pieces of printed text as one, and without the error stream."""
    kept: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and output.name == "stderr":
            continue
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def write(notebook: Any) -> str:
    """Return the notebook as JSON, without this machine's paths."""
    import nbformat

    text = nbformat.writes(notebook)
    return text.replace(str(FOLDER.parent), ".").replace(str(Path.home()), "~") + "\n"


def stale(page: Path) -> str:
    """Return why the notebook of a script has to be written again, or an empty string."""
    import nbformat

    path = page.with_suffix(".ipynb")
    if not path.is_file():
        return f"{path.name} is not there"
    recorded = nbformat.read(path, as_version=4).metadata["minipeft"]
    if recorded["script"] != fingerprint(page.read_text(encoding="utf-8")):
        return f"{page.name} has changed since"
    for name, code in recorded["quoted"].items():
        try:
            now = fingerprint(textwrap.dedent(inspect.getsource(_named(name))))
        except (AttributeError, ModuleNotFoundError):
            return f"{name} is not there any more"
        if now != code:
            return f"{name} has changed since"
    return ""


def _named(path: str) -> Any:
    """Return the module, class or function with a dotted name."""
    parts = path.split(".")
    end = next(end for end in range(len(parts), 0, -1) if _is_module(parts[:end]))
    thing: Any = importlib.import_module(".".join(parts[:end]))
    for part in parts[end:]:
        thing = getattr(thing, part)
    return thing


def _is_module(parts: list[str]) -> bool:
    path = FOLDER.parent.joinpath(*parts)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


if __name__ == "__main__":
    main(sys.argv[1:])
