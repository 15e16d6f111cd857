"""The walkthroughs run from top to bottom, each in a process of its own; the rendered pages belong to them."""

from __future__ import annotations

import html
import importlib
import inspect
import re
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from browser import DESKTOP, OVERLAPS, PHONE, chromium
from conftest import REPOSITORY, run_command

import minipeft

FOLDER = REPOSITORY / "walkthroughs"
PAGES = sorted(FOLDER.glob("[0-9]*.py"))
SHORT = [page for page in PAGES if page.stem.startswith(("04", "08"))]  # a few seconds each
RENDERED = sorted((FOLDER / "html").glob("*.html"))
RERENDER = "run python walkthroughs/render.py"
MOST_BYTES = 400 * 1024


def of_stem(path: Path) -> str:
    return path.stem


@pytest.fixture(scope="module")
def render() -> ModuleType:
    """The renderer, which is a script and no part of the package."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("render")
    finally:
        sys.path.remove(str(FOLDER))


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


def test_there_are_walkthroughs() -> None:
    assert PAGES


def test_every_public_name_appears_in_a_walkthrough() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert set(minipeft.__all__) <= set(re.findall(r"\bminipeft\.(\w+)", text))


@pytest.mark.parametrize("page", PAGES, ids=of_stem)
def test_a_rendered_page_belongs_to_its_source(page: Path, render: ModuleType) -> None:
    text = (FOLDER / "html" / f"{page.stem}.html").read_text(encoding="utf-8")
    source = re.findall(r'<meta name="source" content="(\w+)">', text)
    assert source == [render.fingerprint(page.read_text(encoding="utf-8"))], f"the page has changed: {RERENDER}"


@pytest.mark.parametrize("page", PAGES, ids=of_stem)
def test_a_rendered_page_quotes_the_code_as_it_is(page: Path, render: ModuleType) -> None:
    text = (FOLDER / "html" / f"{page.stem}.html").read_text(encoding="utf-8")
    for name, code in re.findall(r'data-name="([^"]+)" data-code="(\w+)"', text):
        now = textwrap.dedent(inspect.getsource(named(name)))
        assert render.fingerprint(now) == code, f"{name} has changed since: {RERENDER}"


def named(path: str) -> Any:
    """What stands under a dotted name: a module's, a class's or a method."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            thing = getattr(thing, part)
        return thing
    raise AssertionError(f"nothing is called {path}")


@pytest.mark.parametrize("page", RENDERED, ids=of_stem)
def test_a_rendered_page_is_whole_by_itself(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < MOST_BYTES
    assert not re.search(r"<(script|iframe|img)\b", text)
    assert re.findall(r"<link [^>]*>", text) == ['<link rel="icon" href="data:,">']
    for label in re.findall(r'<svg [^>]*?aria-label="([^"]*)"', text):
        assert len(label.split()) > 5, "a picture says in words what is to be seen"
    assert text.count("<svg ") == text.count('<svg role="img" aria-label=')


@pytest.mark.parametrize("page", RENDERED, ids=of_stem)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r'<a [^>]*href="([^"]+)"', text):
        file, _, anchor = html.unescape(link).partition("#")
        assert not link.startswith("http") and (page.parent / file).exists(), f"{page.name} links to {link}"
        assert not anchor or f'id="{anchor}"' in (page.parent / (file or page.name)).read_text(encoding="utf-8")


def test_a_reader_gets_from_page_to_page_in_order() -> None:
    index = (FOLDER / "html" / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<li><a href="(\w+)\.html">', index) == [page.stem for page in PAGES], RERENDER
    for before, after in pairwise(PAGES):
        text = (FOLDER / "html" / f"{before.stem}.html").read_text(encoding="utf-8")
        assert f'rel="next" href="{after.stem}.html"' in text, RERENDER
        text = (FOLDER / "html" / f"{after.stem}.html").read_text(encoding="utf-8")
        assert f'rel="prev" href="{before.stem}.html"' in text, RERENDER


def test_pages_show_without_an_error_on_a_phone_and_a_desktop_in_light_and_dark() -> None:
    with chromium() as browser:
        for page in RENDERED:
            for size, dark in ((PHONE, False), (PHONE, True), (DESKTOP, False)):
                assert browser.open(page, size, dark) == [], page.name
                shown = browser.evaluate("[...document.querySelectorAll('svg')].map(svg => svg.clientHeight)")
                assert all(height > 100 for height in shown), page.name
                assert browser.evaluate(OVERLAPS) == [], page.name


def test_rendering_shows_text_mathematics_code_and_pictures_the_same_each_time(
    render: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jupytext", reason="rendering needs the extra docs: pip install -e '.[docs]'")
    page = tmp_path / "01_small.py"
    page.write_text(
        "# %% [markdown]\n# # A small page\n#\n# Says $x^2$ and <s>.\n\n# %%\n"
        "import matplotlib.pyplot as plt\nfrom showing import picture, source\n\nimport minipeft\n\n"
        "print('first < second')\nsource(minipeft.apply)\nfigure, axes = plt.subplots()\naxes.plot([1, 2])\n"
        "picture(figure, 'a line from one to two & back')\nprint('at the end')\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(render, "pages", lambda: [page])
    monkeypatch.setattr(render, "HTML", tmp_path)
    texts = []
    for _ in range(2):
        monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
        render.render(page)
        texts.append((tmp_path / "01_small.html").read_text(encoding="utf-8"))
    assert texts[0] == texts[1]
    wanted = (
        "<h1",
        "<math",
        'output">first &lt; second',
        'data-name="minipeft.methods.apply"',
        'aria-label="a line from one to two &amp; back"',
        "at the end<",
    )
    places = [texts[0].index(part) for part in wanted]
    assert places == sorted(places)
