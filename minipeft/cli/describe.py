"""What `minipeft methods` prints."""

import dataclasses
import inspect
import textwrap
from typing import Any

from minipeft.errors import check_choice, flag_of


def describe_methods(name: str | None = None) -> str:
    """Return what there is to know of one method, or some lines about each, from the registry and the docstrings."""
    from minipeft.methods import METHODS

    if name is not None:
        check_choice("method", name, METHODS)
    lines = [line for method in ([name] if name else METHODS) for line in _describe_method(method, name is not None)]
    if name is None:
        lines.append("`minipeft methods NAME` explains the options of one. Options without a flag: --method-options.")
    return "\n".join(lines)


def _describe_method(name: str, explained: bool) -> list[str]:
    from minipeft.methods import METHODS
    from minipeft.model.families import FAMILIES, get_family
    from minipeft.training.settings.choices import choose_method
    from minipeft.training.settings.train_settings import METHOD_FLAGS, TrainSettings

    row, method = METHODS[name], choose_method(TrainSettings(method=name))
    module, about = inspect.getmodule(row.config), inspect.getdoc(row.config) or ""
    title = (inspect.getdoc(module) or name).splitlines()[0].partition(": ")
    formula = about.partition("\n")[0]
    arguments = about.partition("\nArgs:\n")[2].partition("\n\n")[0]
    parameters = about.partition("\nParameters: ")[2].partition("\n\n")[0]
    options = [
        f"{flag_of(field.name)} {written}" if field.name in METHOD_FLAGS else f"{field.name}={written}"
        for field in dataclasses.fields(method)
        for written in [_written(getattr(method, field.name))]
    ]
    peft = f"reads and writes its adapters ({row.peft_type})" if row.peft_type else "does not have it"
    without = [model_type for model_type in FAMILIES if name in get_family(model_type).unsupported]
    facts = {
        "formula": formula.removesuffix(".").removesuffix(f"({row.paper})").rstrip(),
        "options": " ".join(options) or "none",
        "parameters": " ".join(parameters.split()),
        "paper": row.paper or "none",
        "peft": peft + ("" if row.merges else "; it cannot be merged"),
        "encoders": f"all but {', '.join(without)}" if without else "all",
    }
    wrap = textwrap.TextWrapper(112, initial_indent="    ", subsequent_indent=" " * 16, break_on_hyphens=False).wrap
    lines = [f"{name}: {title[2] or title[0]}"]
    for fact, text in facts.items():
        lines += wrap(f"{fact:<12}{text}")
    if explained and arguments:
        lines += ["", *arguments.splitlines()]
    return [*lines, ""]


def _written(value: Any) -> str:
    """A value as a flag takes it."""
    if not value and not isinstance(value, (bool, int, float)):
        return "none"
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
