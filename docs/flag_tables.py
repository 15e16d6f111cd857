"""Directive `commands`: every command of minipeft with its flags, from the parser that reads them."""

from __future__ import annotations

import argparse
import re
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of every command by its name."""
    from minipeft.cli.command_line import command_line

    actions = command_line()._actions
    (choice,) = (action for action in actions if isinstance(action, argparse._SubParsersAction))
    return dict(choice.choices)


class Commands(SphinxDirective):
    """List the flags of every command in their groups; each flag has an address, such as `#train-rank`."""

    def run(self) -> list[nodes.Node]:
        sections: list[nodes.Node] = []
        for command, parser in commands().items():
            section = nodes.section(ids=[f"minipeft-{command}"], names=[f"minipeft {command}"])
            section += nodes.title("", f"minipeft {command}")
            section += self._groups(command, parser)
            self.state.document.note_implicit_target(section)
            sections.append(section)
        return sections

    def _groups(self, command: str, parser: argparse.ArgumentParser) -> list[nodes.Node]:
        found: list[nodes.Node] = []
        for group in parser._action_groups:
            actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
            if not actions:
                continue
            if group.title:
                found.append(nodes.rubric("", group.title[0].upper() + group.title[1:]))
            if group.description:
                found.append(nodes.paragraph("", group.description))
            entries = nodes.definition_list(classes=["flags"])
            for action in actions:
                entries += self._entry(command, action)
            found.append(entries)
        return found

    def _entry(self, command: str, action: argparse.Action) -> nodes.definition_list_item:
        name = action.option_strings[-1] if action.option_strings else action.dest
        term = nodes.term("", "", nodes.literal("", _usage(action)), ids=[f"{command}-{name.lstrip('-')}"])
        text = (action.help or "") % {**vars(action), "prog": f"minipeft {command}"}
        return nodes.definition_list_item("", term, nodes.definition("", _paragraph(text)))


def _usage(action: argparse.Action) -> str:
    """`--rank RANK`, `--targets NAME …`, or a positional argument's name."""
    flags = ", ".join(action.option_strings)
    if action.nargs == 0:
        return flags
    value = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else "")
    value = str(value or (action.dest.upper() if flags else action.dest))
    if action.nargs in ("+", "*"):
        value += " …"
    return f"{flags} {value}".strip()


def _paragraph(text: str) -> nodes.paragraph:
    """Return the help text with its flags and [defaults] as code."""
    paragraph = nodes.paragraph()
    for part in re.split(r"(--[a-z][a-z-]*)", text):
        paragraph += nodes.literal("", part) if part.startswith("--") else nodes.Text(part)
    return paragraph


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}
