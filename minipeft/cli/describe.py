"""What the help says beyond the flags: a recipe's defaults, the nearest flag, the list of the methods."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minipeft.device import choose_max_tokens
from minipeft.errors import MinipeftError, check_choice
from minipeft.files import read_json
from minipeft.training.settings.recipes import LORA_RECIPES, recipe


@dataclasses.dataclass(frozen=True)
class Defaults:
    """The defaults that depend on the task, the method and the model, with the names of these three."""

    epochs: int
    lr: float
    max_tokens: dict[str, int]
    choice: str


def choose_defaults(arguments: Sequence[str]) -> Defaults:
    """Return the defaults for the task, method and model that a command line names."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    for flag, default in (("--task", "rte"), ("--method", "lora"), ("--model", "roberta-base")):
        parser.add_argument(flag, default=default)
    try:
        given, _ = parser.parse_known_args(arguments)
    except (argparse.ArgumentError, SystemExit):  # a flag without its value: reported when all flags are read
        given, _ = parser.parse_known_args([])
    task = "rte" if given.task == "auto" else given.task
    hidden_size, model_type = _shape(given.model)
    defaults = recipe(task if task in LORA_RECIPES else None, given.method, hidden_size, model_type)
    tokens = {precision: choose_max_tokens("cpu", precision, hidden_size) for precision in ("fp32", "bf16")}
    model = "roberta-base" if given.model == "auto" else given.model
    return Defaults(defaults.epochs, defaults.lr, tokens, f"{task}, {given.method}, {Path(model).name}")


def _shape(model: str) -> tuple[int, str]:
    """The hidden size and model_type of a checkpoint on this machine, else what its name suggests."""
    from minipeft.hub.hub import bundled, weights_folder

    for folder in (Path(model).expanduser(), weights_folder() / model, bundled(model)):
        if folder is not None and (folder / "config.json").is_file():
            try:
                content = read_json(folder / "config.json")
            except MinipeftError:
                break
            size = content.get("hidden_size", content.get("dim"))
            return size if isinstance(size, int) and size > 0 else 768, str(content.get("model_type"))
    families = {"deberta-v3": "deberta-v2", "electra": "electra", "modernbert": "modernbert"}
    model_type = next((families[name] for name in families if name in model.lower()), "roberta")
    return 1024 if "large" in model else 768, model_type


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
    from minipeft.model.families import FAMILIES
    from minipeft.training.settings.train_settings import METHOD_FLAGS, TrainSettings, choose_method

    row, method = METHODS[name], choose_method(TrainSettings(method=name))
    module, about = inspect.getmodule(row.config), inspect.getdoc(row.config) or ""
    title = (inspect.getdoc(module) or name).splitlines()[0].partition(": ")
    formula = about.partition("\n")[0]
    parameters = re.search(r"^Parameters: (.*?)(?:\n\n|\Z)", about, re.DOTALL | re.MULTILINE)
    options = [
        f"--{field.name} {written}" if field.name in METHOD_FLAGS else f"{field.name}={written}"
        for field in dataclasses.fields(method)
        for written in [_written(getattr(method, field.name))]
    ]
    peft = f"reads and writes its adapters ({row.peft_type})" if row.peft_type else "does not have it"
    without = [family for family, of in FAMILIES.items() if name in of.unsupported]
    facts = {
        "formula": formula.removesuffix(".").removesuffix(f"({row.paper})").rstrip(),
        "options": " ".join(options) or "none",
        "parameters": " ".join(parameters[1].split()) if parameters else "",
        "paper": row.paper or "none",
        "peft": peft + ("" if row.merges else "; it cannot be merged"),
        "encoders": f"all but {', '.join(without)}" if without else "all",
    }
    wrap = textwrap.TextWrapper(112, initial_indent="    ", subsequent_indent=" " * 16, break_on_hyphens=False).wrap
    lines = [f"{name}: {title[2] or title[0]}"]
    for fact, text in facts.items():
        lines += wrap(f"{fact:<12}{text}")
    explanation = re.search(r"^Args:\n(.*?)\n\n", about + "\n\n", re.DOTALL | re.MULTILINE)
    if explained and explanation:
        lines += ["", *explanation[1].splitlines()]
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
