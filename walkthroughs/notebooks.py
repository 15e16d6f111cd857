"""Write each walkthrough as an executed notebook: `python walkthroughs/notebooks.py`, or with some pages' names.

Needs the extra `docs`. A notebook is written again only where its script or code that it quotes has changed; `--all`
writes every one. `stale` says which these are; the tests call it.
"""

from __future__ import annotations

import ast
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

from check import NAMES  # noqa: E402 - scripts next to this one
from showing import fingerprint  # noqa: E402

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0"}
HIDDEN, FOLDED = "remove-input", "hide-input"  # MyST-NB's tags


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
        "minipeft": {"script": fingerprint(written_text(page))},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.cells += exercise_cells(page)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell["metadata"] = {}
        if cell.cell_type == "code":
            called = set(re.findall(r"^(\w+)\(", cell.source, re.MULTILINE))
            if not re.sub(r"^(source|piece)\((.|\n)*?\)$", "", cell.source, flags=re.MULTILINE).strip():
                cell["metadata"] = {"tags": [HIDDEN]}
            elif "picture" in called:
                cell["metadata"] = {"tags": [FOLDED]}
    return notebook


def written_text(page: Path) -> str:
    """Return the text of a script, its exercises and its solutions."""
    files = (page, *(FOLDER / folder / page.name for folder in ("exercises", "solutions")))
    return "".join(path.read_text(encoding="utf-8") for path in files if path.is_file())


def exercise_cells(page: Path) -> list[Any]:
    """Return the cells of a page's exercises: the question, the stub with its check, and the solution, collapsed."""
    from nbformat.v4 import new_code_cell, new_markdown_cell

    if not (FOLDER / "exercises" / page.name).is_file():
        return []
    stubs, solutions = (functions_of(FOLDER / folder / page.name) for folder in ("exercises", "solutions"))
    cells = []
    for number, (name, title) in enumerate(NAMES.items(), start=1):
        question, stub = stubs[name]
        explanation, solution = solutions[name]
        code = f"{stub}\n\n\ncheck_answer({int(page.stem[:2])}, {name})"
        if number == 1:
            code = f"from check import check_answer\n\n\n{code}"
        cells += [new_markdown_cell(f"### {number}. {title}\n\n{question}"), new_code_cell(code)]
        folded = f"{explanation}\n\n```python\n{solution}\n```" if name != "explain" else explanation
        cells.append(new_markdown_cell(f"<details><summary>Solution {number}</summary>\n\n{folded}\n\n</details>"))
    return cells


def functions_of(path: Path) -> dict[str, tuple[str, str]]:
    """Return the docstring and the code without it of each function of a file."""
    text = path.read_text(encoding="utf-8")
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and (docstring := ast.get_docstring(node)):
            lines = text.splitlines()
            head, body = (
                lines[node.lineno - 1 : node.body[0].lineno - 1],
                lines[node.body[1].lineno - 1 : node.end_lineno],
            )
            found[node.name] = (docstring, "\n".join(head + body))
    return found


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
    if recorded["script"] != fingerprint(written_text(page)):
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
