"""Every public name with its signature and docstring, as a web page: `python walkthroughs/api.py`.

Also the registry of methods and the settings of a run, from the code that holds them.
"""

from __future__ import annotations

import argparse
import dataclasses
import html
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import minipeft
from minipeft.cli.flags import add_train_flags
from minipeft.methods import METHODS
from minipeft.training.settings import TrainSettings

PAGE = Path(__file__).resolve().parent / "html" / "api.html"
TITLE = "Every public name"
GROUPS = {
    "Text and models": (
        *("load_tokenizer", "Tokenizer", "pack", "PackedBatch", "load_pretrained", "SequenceClassifier"),
        "EncoderConfig",
    ),
    "Methods": (
        *("Full", "Head", "BitFit", "LayerNormTuning", "LoRA", "DoRA", "AdaLoRA", "VeRA", "IA3", "Houlsby", "Pfeiffer"),
        *("PrefixTuning", "PromptTuning"),
    ),
    "A method in a model": (
        *("apply", "count_parameters", "LoRALinear", "save_adapter", "load_adapter", "merge", "unmerge", "export"),
        "AdapterSet",
    ),
    "Runs": ("train", "Result", "load_run", "MinipeftError"),
}


def main() -> None:
    from render import fingerprint, whole_page

    text = body()
    PAGE.write_text(whole_page(TITLE, text, '<a href="index.html">All pages</a>', fingerprint(text)), encoding="utf-8")


def body() -> str:
    """The page's content: the same for the same code, whatever the versions of Python and of other packages."""
    start = (
        f"minipeft {minipeft.__version__}: what <code>import minipeft</code> gives, from the docstrings of the code."
    )
    parts = [f"<h1>{TITLE}</h1>", f"<p>{start}</p>"]
    for group, names in GROUPS.items():
        linked = ", ".join(f'<a href="#{name}">{name}</a>' for name in names)
        parts.append(f"<p><strong>{group}</strong>: {linked}</p>")
    parts.append(
        '<p>And <a href="#registry">the methods by name</a> and <a href="#settings">a run\'s settings</a>.</p>'
    )
    for group, names in GROUPS.items():
        parts += [f"<h2>{group}</h2>", *(section(name) for name in names)]
    return "\n".join([*parts, registry(), settings()])


def section(name: str) -> str:
    thing = getattr(minipeft, name)
    path = f"{thing.__module__.replace('.', '/')}.py"
    if not (PAGE.parents[2] / path).is_file():
        path = f"{thing.__module__.replace('.', '/')}/__init__.py"
    lines = [f'<section id="{name}">', f'<h3>{name} <a class="file" href="../../{path}">{path}</a></h3>']
    lines += described(signature(name, thing), thing)
    for member, value in members(thing) if inspect.isclass(thing) else ():
        shown = member if isinstance(value, property) else signature(member, value)
        lines += described(f".{shown}", value)
    return "\n".join([*lines, "</section>"])


def described(head: str, thing: Any) -> list[str]:
    return [f'<pre class="signature">{html.escape(head)}</pre>', *map(block, docstring(thing).split("\n\n"))]


def block(text: str) -> str:
    """A docstring's paragraphs and its lines of a name and its meaning, or its example."""
    if all(line.startswith("    ") for line in text.splitlines()):
        return f'<pre class="output">{html.escape(text)}</pre>'
    rows: list[list[str]] = []  # a paragraph, or a name and its meaning
    for line in text.splitlines():
        name = re.match(r"(\S.*?) {2,}(?!\([A-Z])(\S.*)", line)  # a formula's source stands in brackets
        if name:
            rows.append([name[1], name[2]])
        elif rows and (line.startswith(" ") or len(rows[-1]) == 1):
            rows[-1][-1] += "\n" + line.strip()
        else:
            rows.append([line])
    written = []
    for row in rows:
        cells = [re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(cell, quote=False)) for cell in row]
        field = f'<p class="field"><code>{cells[0]}</code>\n{cells[-1]}</p>'
        written.append(field if len(row) == 2 else f"<p>{cells[0]}</p>")
    return "\n".join(written)


def docstring(thing: Any) -> str:
    """A thing's own docstring, not one that it inherits."""
    return inspect.cleandoc(thing.__doc__ or "")


def members(thing: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class itself defines."""
    for name, value in vars(thing).items():
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            yield name, value


def signature(name: str, thing: Any) -> str:
    """The call, with the types as the source writes them; one parameter a line where it is long."""
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return f"{name}(message)"
    made = {f.name: f.default_factory for f in dataclasses.fields(thing)} if dataclasses.is_dataclass(thing) else {}
    written = []
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.name == "self":
            continue
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        text = f"{stars}{parameter.name}: {parameter.annotation}"
        if parameter.default is not parameter.empty:
            factory = made.get(parameter.name, dataclasses.MISSING)
            text += f" = {parameter.default if factory is dataclasses.MISSING else factory()!r}"
        written.append(text)
    returns = getattr(thing, "__annotations__", {}).get("return") if inspect.isfunction(thing) else None
    end = f") -> {returns}" if returns is not None else ")"
    line = f"{name}({', '.join(written)}{end}"
    return line if len(line) <= 88 else f"{name}(\n    " + ",\n    ".join(written) + f",\n{end}"


def registry() -> str:
    rows = [
        f'<tr><td><code>{name}</code></td><td><a href="#{row.config.__name__}">{row.config.__name__}</a></td>'
        f"<td>{'yes' if row.peft else 'no'}</td><td>{'yes' if row.merges else 'no'}</td></tr>"
        for name, row in METHODS.items()
    ]
    head = "<tr><th>--method</th><th>config</th><th>in peft's format</th><th>can be merged</th></tr>"
    return (
        f'<h2 id="registry">The methods by name</h2>\n<div class="table"><table>{head}\n' + "\n".join(rows) + TABLE_END
    )


def settings() -> str:
    """The flags of `minipeft train`, which are the settings of minipeft.train."""
    parser = argparse.ArgumentParser()
    add_train_flags(parser)
    types = {f.name: f.type for f in dataclasses.fields(TrainSettings)}
    rows = [
        f"<tr><td><code>{action.option_strings[-1]}</code></td>"
        f"<td><code>{action.dest}: {types[action.dest]}</code></td><td>{html.escape(action.help or '')}</td></tr>"
        for action in parser._actions
        if action.dest in types
    ]
    text = (
        "<p>Flags of <code>minipeft train</code> and <code>train.py</code>, and settings of "
        "<code>minipeft.train</code>, with the default in brackets. In Python, <code>None</code> means the default, "
        "and <code>method</code> may be a config, which holds its own settings.</p>"
    )
    head = "<tr><th>flag</th><th>setting</th><th>what it is</th></tr>"
    return (
        f'<h2 id="settings">A run\'s settings</h2>\n{text}\n<div class="table"><table>{head}\n'
        + "\n".join(rows)
        + TABLE_END
    )


TABLE_END = "\n</table></div>"

if __name__ == "__main__":
    main()
