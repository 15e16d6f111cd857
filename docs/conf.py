"""Sphinx builds the site offline: `pip install -e ".[docs]" && sphinx-build -W docs docs/_build`."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes

DOCS = Path(__file__).resolve().parent
REPOSITORY = DOCS.parent
sys.path[:0] = [str(REPOSITORY), str(DOCS)]

import flag_tables  # noqa: E402 - it lies next to this file

import minipeft  # noqa: E402

project = "minipeft"
author = copyright = "the minipeft authors"
version = release = minipeft.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build", "jupyter_execute", "**.ipynb_checkpoints"]

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks are committed with their outputs; walkthroughs/notebooks.py writes them
nb_ipywidgets_js: dict[str, Any] = {}  # no page asks a CDN
nb_render_markdown_format = "gfm"
nb_code_prompt_show = "Show the code"
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": False}
napoleon_numpy_docstring = False
napoleon_use_ivar = True

default_role = "code"
add_module_names = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "minipeft"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp, .go"


def copy_walkthroughs(app: Any) -> None:
    """Copy the notebooks into the source folder: Sphinx reads no file outside it."""
    folder = DOCS / "walkthroughs"
    for notebook in sorted((REPOSITORY / "walkthroughs").glob("[0-9]*.ipynb")):
        target = folder / notebook.name
        if not target.is_file() or target.read_bytes() != notebook.read_bytes():
            shutil.copy(notebook, target)


def visit_math(self: Any, node: nodes.math) -> None:
    """Write a formula as MathML, which browsers show without a script."""
    from latex2mathml.converter import convert

    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def visit_displaymath(self: Any, node: nodes.math_block) -> None:
    from latex2mathml.converter import convert

    self.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def put_pictures_into_the_page(app: Any, doctree: nodes.document, name: str) -> None:
    """Replace SVG files by their content: text then has the page's own colour, also where a reader switches to dark."""
    from picture import TEXT_COLOURS
    from showing import TEXT_COLOUR

    for image in list(doctree.findall(nodes.image)):
        file = Path(app.srcdir, image["uri"])
        if file.suffix == ".svg":
            svg = re.sub(r"@media .*?\}\s*\}", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
            for colour in (TEXT_COLOUR, *TEXT_COLOURS):
                svg = svg.replace(colour, "currentColor")
            content = f'<figure class="picture">{svg[svg.index("<svg") :]}</figure>'
            image.replace_self(nodes.raw("", content, format="html"))


def setup(app: Any) -> None:
    sys.path.append(str(REPOSITORY / "walkthroughs"))
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    app.connect("builder-inited", copy_walkthroughs)
    app.connect("doctree-resolved", put_pictures_into_the_page)
    flag_tables.setup(app)
