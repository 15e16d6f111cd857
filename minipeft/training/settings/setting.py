"""One row of a table of settings, and what derives from a table: checks, signatures, docstrings, help texts.

A table is a dataclass whose fields are made by `setting`. The command line makes its flags from the same rows
(cli/flags.py), and --resume reads in them what a resumed run may change (resume.py). Nothing here imports torch, so
that --help is quick. There is no configuration file and no nesting: a setting has a name and a value.
"""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Literal

from minipeft.errors import MinipeftError, check_int, flag_of
from minipeft.training.settings import checks

# What a resumed run does with a setting.
#   equal          not given: the value of the run; given: it must be that value
#   may grow       the same, but a finished run continues with a larger value
#   may change     not given: the value of the run; given: any value
#   of the call    what is given this time, or the default
OnResume = Literal["equal", "may grow", "may change", "of the call"]
REQUIRED: Any = dataclasses.MISSING  # the default of a setting that must be given
Check = Callable[[str, Any], Any]
# type → the check of a setting that has no other one, and what stands for its value in --help
OF_TYPE: dict[str, tuple[Check, str | None]] = {
    "str": (checks.text, None),
    "int": (check_int, "N"),
    "float": (checks.not_negative, "X"),
    "bool": (checks.boolean, None),
    "tuple[str, ...]": (checks.texts, None),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row of a table; what is not given to `setting` derives from the type.

    Attributes:
        name: the keyword of a Python function, and the flag with dashes.
        annotation: the type, as it is written in the table.
        default: the value where none is given; None where something else decides.
        help: one line, without the default where it is a plain value; {NAME} stands for a default that depends on
            other settings.
        metavar: what stands for the value in --help; None for the name in capitals.
        group: the heading in --help.
        check: (flag, value) → the value in its right type; raises MinipeftError.
        alone: the value of a flag that is given without one; None: it needs a value.
        on_resume: what a resumed run does with it.
    """

    name: str
    annotation: str
    default: Any
    help: str
    metavar: str | None
    group: str
    check: Check
    alone: str | None
    on_resume: OnResume

    @property
    def flag(self) -> str:
        """The name on the command line: "--max-length"."""
        return flag_of(self.name)

    @property
    def number(self) -> type[int] | type[float] | None:
        """int or float, where the values are numbers only."""
        return {"int": int, "float": float}.get(self.annotation.removesuffix(" | None"))

    @property
    def several(self) -> bool:
        """Whether the flag takes several values."""
        return "[" in self.annotation

    def describe(self, found: Mapping[str, str]) -> str:
        """Return the help with the default in brackets; `found` has what stands for each {NAME}."""
        text = self.help.format(**found)
        if text.endswith("]") or self.default is REQUIRED:
            return text
        if isinstance(self.default, bool):
            return f"{text} [{'on' if self.default else 'off'}]"
        return f"{text} [{self.default:g}]" if isinstance(self.default, float) else f"{text} [{self.default or 'none'}]"


def setting(
    default: Any,
    help: str,
    metavar: str | None = None,
    *,
    group: str,
    check: Check | None = None,
    alone: str | None = None,
    on_resume: OnResume = "equal",
) -> Any:
    """Return a dataclass field that is a row of a table; the arguments are the attributes of `Setting`."""
    row = {"help": help, "metavar": metavar, "group": group, "check": check}
    return dataclasses.field(default=default, metadata={**row, "alone": alone, "on_resume": on_resume})


DATA = partial(setting, group="task and data")
MODEL = partial(setting, group="model")
METHOD = partial(setting, group="method")
OPTIM = partial(setting, group="optimization")
HARDWARE = partial(setting, group="hardware")
OUTPUT = partial(setting, group="output")


def rows(table: type[Any]) -> dict[str, Setting]:
    """Return the rows of a table by name, in their order."""
    found = {}
    for field in dataclasses.fields(table):
        annotation = str(field.type)
        check, metavar = OF_TYPE.get(annotation.removesuffix(" | None"), (checks.text, None))
        given = {name: value for name, value in field.metadata.items() if value is not None}
        row = {"check": check, "metavar": metavar, "alone": None} | given
        found[field.name] = Setting(field.name, annotation, field.default, **row)
    return found


def check_given(table: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are given, in their right types; None is the same as not given."""
    known = rows(table)
    for name in given:
        if name not in known:
            from minipeft.training.settings.other_names import nearest_setting

            raise MinipeftError(f"unknown setting {name!r}{nearest_setting(name, known)}. They are train.py's flags.")
    return {name: known[name].check(known[name].flag, value) for name, value in given.items() if value is not None}


def signature_of(
    table: type[Any], without: Collection[str] = (), defaults: Mapping[str, Any] | None = None
) -> list[inspect.Parameter]:
    """Return the rows of a table as keyword-only parameters, with their types and defaults, or other `defaults`."""
    parameters = inspect.signature(table, eval_str=True).parameters.values()
    return [
        parameter.replace(default=(defaults or {}).get(parameter.name, parameter.default))
        for parameter in parameters
        if parameter.name not in without
    ]


def describe_settings(table: type[Any], found: Mapping[str, str]) -> str:
    """Return the section `Settings:` of a docstring, a line for each row."""
    lines = [f"        {row.name}: {row.describe(found)}\n" for row in rows(table).values()]
    return f"\n\n    Settings:\n{''.join(lines)}"
