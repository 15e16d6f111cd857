"""The documentation site builds without a warning and without a network, and shows without an error."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from browser import DESKTOP, OVERLAPS, PHONE, chromium
from conftest import REPOSITORY, environment

import minipeft
from minipeft.methods import METHODS


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    pytest.importorskip("sphinx", reason="the site needs the extra docs: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-d",
        folder / "trees",
        "docs",
        folder / "html",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder / "html"


def pages(site: Path) -> list[Path]:
    """Every page but the listings of code."""
    return [page for page in sorted(site.rglob("*.html")) if "_modules" not in page.parts]


@pytest.mark.full
def test_every_link_leads_to_a_page_and_its_heading(site: Path) -> None:
    anchors = {
        page: set(re.findall(r' id="([^"]+)"', page.read_text(encoding="utf-8"))) for page in site.rglob("*.html")
    }
    for page in pages(site):
        for link in re.findall(r'<a [^>]*href="([^"]+)"', page.read_text(encoding="utf-8")):
            if link.startswith(("http://", "https://", "mailto:")):
                continue
            file, _, anchor = html.unescape(link).partition("#")
            target = (page.parent / unquote(file)).resolve() if file else page
            assert target.is_file(), f"{page.name} links to {link}"
            assert not anchor or target.suffix != ".html" or anchor in anchors[target], f"{page.name} links to {link}"


@pytest.mark.full
def test_pages_load_nothing_from_a_network(site: Path) -> None:
    for page in pages(site):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe|source)\b[^>]*src="([^"]+)"', text)
        loaded += re.findall(r'<link\b(?=[^>]*rel="(?:stylesheet|preload|icon)")[^>]*href="([^"]+)"', text)
        assert not [link for link in loaded if re.match(r"(https?:)?//", link)], page.name


@pytest.mark.full
def test_the_reference_names_everything(site: Path) -> None:
    api = (site / "reference" / "api.html").read_text(encoding="utf-8")
    assert set(re.findall(r'id="minipeft\.(\w+)"', api)) == set(minipeft.__all__)
    flags = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    assert 'id="train-rank"' in flags and "LoRA" in flags
    sys.path.append(str(REPOSITORY / "docs"))
    from flag_tables import commands

    assert set(re.findall(r"<h2>minipeft (\w+)<", flags)) == set(commands())
    methods = (site / "methods.html").read_text(encoding="utf-8")
    assert [name for name in METHODS if f">{name}<" not in methods and name not in methods] == []


def test_every_flag_of_training_comparing_and_predicting_is_on_a_written_page() -> None:
    """In addition to the reference, which is made from the parser."""
    docs = REPOSITORY / "docs"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(docs))
        from flag_tables import commands
    text = "".join(path.read_text(encoding="utf-8") for path in [*docs.glob("*.md"), *docs.glob("examples/*")])
    written = set(re.findall(r"--[a-z][a-z0-9-]*[a-z0-9]", text))
    for command in ("train", "compare", "evaluate", "predict"):
        flags = {flag for action in commands()[command]._actions for flag in action.option_strings}
        assert {flag for flag in flags if flag.startswith("--")} - written <= {"--help"}, command


@pytest.mark.full
def test_pages_show_without_an_error_on_a_phone_and_a_desktop_in_light_and_dark(site: Path) -> None:
    with chromium() as browser:
        for page in pages(site):
            for size, dark in ((PHONE, False), (DESKTOP, True)):
                assert browser.open(page, size, dark, site) == [], page.name
                assert browser.evaluate("document.querySelectorAll('merror').length") == 0, page.name
            assert browser.evaluate(OVERLAPS) == [], page.name
