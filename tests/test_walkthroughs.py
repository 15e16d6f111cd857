"""The walkthroughs run from top to bottom, each in a process of its own; the notebooks belong to them."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import REPOSITORY, run_command

import minipeft

FOLDER = REPOSITORY / "walkthroughs"
PAGES = sorted(FOLDER.glob("[0-9]*.py"))
SHORT = [page for page in PAGES if page.stem.startswith("04")]  # a few seconds
MOST_BYTES = 400 * 1024


def of_stem(path: Path) -> str:
    return path.stem


@pytest.fixture(scope="module")
def notebooks() -> ModuleType:
    """The script that writes the notebooks, which is no part of the package."""
    pytest.importorskip("jupytext", reason="notebooks need the extra docs: pip install -e '.[docs]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(FOLDER), *sys.path])
        return importlib.import_module("notebooks")


@pytest.mark.parametrize(
    "page", [page if page in SHORT else pytest.param(page, marks=pytest.mark.full) for page in PAGES], ids=of_stem
)
def test_a_walkthrough_runs_and_leaves_no_temporary_files(page: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    folders = {"TMPDIR": str(temporary), "TEMP": str(temporary), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "torch")}
    done = run_command(page, MPLBACKEND="Agg", OMP_NUM_THREADS="1", **folders)
    assert done.returncode == 0, done.stderr
    assert not list(temporary.iterdir())


def test_every_public_name_appears_in_a_walkthrough() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert set(minipeft.__all__) <= set(re.findall(r"\bminipeft\.(\w+)", text))


@pytest.mark.parametrize("page", PAGES, ids=of_stem)
def test_a_notebook_ends_with_three_exercises_that_check_and_their_collapsed_solutions(
    page: Path, notebooks: ModuleType
) -> None:
    assert f"python walkthroughs/check.py {int(page.stem[:2])}`" in page.read_text(encoding="utf-8")
    cells = notebooks.of_script(page).cells[-9:]
    assert [cell.cell_type for cell in cells] == ["markdown", "code", "markdown"] * 3
    for number, (name, title) in enumerate(
        (("compute", "Compute"), ("change", "Change the code"), ("explain", "Explain"))
    ):
        question, stub, solution = (cell.source for cell in cells[3 * number : 3 * number + 3])
        assert question.startswith(f"### {number + 1}. {title}\n\n")
        assert f"def {name}(" in stub and "return ...\n" in stub and stub.endswith(f", {name})")
        assert solution.startswith(f"<details><summary>Solution {number + 1}</summary>\n\n")
        assert solution.endswith("</details>") and (name == "explain" or "```python\ndef " in solution)


@pytest.mark.parametrize("page", PAGES, ids=of_stem)
def test_a_notebook_has_the_scripts_text_and_code_and_quotes_the_present_code(
    page: Path, notebooks: ModuleType
) -> None:
    assert notebooks.stale(page) == "", "run python walkthroughs/notebooks.py"
    written = json.loads(page.with_suffix(".ipynb").read_text(encoding="utf-8"))
    wanted = json.loads(notebooks.write(notebooks.of_script(page)))
    for cell in [*written["cells"], *wanted["cells"]]:
        cell.pop("outputs", None), cell.pop("execution_count", None)
    assert written["cells"] == wanted["cells"]


@pytest.mark.parametrize("page", PAGES, ids=of_stem)
def test_a_notebook_holds_its_outputs_and_nothing_of_the_machine(page: Path) -> None:
    path = page.with_suffix(".ipynb")
    assert path.stat().st_size < MOST_BYTES
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|work|Users|tmp)/", text)
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        pictures = [output["data"].get("image/svg+xml") for output in cell["outputs"] if "data" in output]
        assert any(pictures) == bool(re.search(r"^ *picture\(", "".join(cell["source"]), re.MULTILINE))
        for picture in filter(None, pictures):
            (label,) = re.findall(r'<svg [^>]*?aria-label="([^"]*)"', "".join(picture))
            assert len(label.split()) > 5, "a picture's label describes it"


@pytest.mark.full
def test_a_notebook_is_the_same_each_time_and_stale_after_a_change(
    notebooks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "01_small.py"
    page.write_text(
        "# %% [markdown]\n# # A small page\n#\n# Says $x^2$ and <s>.\n\n# %%\n"
        "import matplotlib.pyplot as plt\nfrom showing import picture, source\n\nimport minipeft\n\n"
        "print('first < second')\nsource(minipeft.apply)\nfigure, axes = plt.subplots()\naxes.plot([1, 2])\n"
        "picture(figure, 'a line from one to two & back')\nprint('at the end')\n",
        encoding="utf-8",
    )
    texts = [notebooks.write(notebooks.executed(page)) for _ in range(2)]
    assert texts[0] == texts[1]
    outputs = texts[0][texts[0].index('"outputs"') :]
    wanted = ("first < second", "```python", "a line from one to two &amp; back", "at the end")
    places = [outputs.index(part) for part in wanted]
    assert places == sorted(places)
    page.with_suffix(".ipynb").write_text(texts[0], encoding="utf-8")
    assert notebooks.stale(page) == ""
    monkeypatch.setattr(notebooks, "_named", lambda name: of_stem)
    assert "minipeft.methods.apply has changed" in notebooks.stale(page)
    page.write_text(page.read_text(encoding="utf-8") + "\n# %%\nprint('more')\n", encoding="utf-8")
    assert "01_small.py has changed" in notebooks.stale(page)
