"""The flags that derive from a table of settings, and the parser that reads them."""

import argparse
import re
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, NoReturn

from minipeft.errors import nearest
from minipeft.training.settings.setting import REQUIRED, Setting, rows
from minipeft.training.settings.train_settings import TrainSettings, recipe_defaults

TRAIN_EXAMPLES = """examples:
  {prog} --task rte --method lora --rank 2
  {prog} --data reviews.csv --text-column review --label-column stars --output runs/reviews
  {prog} --task sst2 --method bitfit --model roberta-base --epochs 3 --lr 1e-3 --holdout 0.1

`minipeft methods` lists the methods with their options. --help after other flags shows the defaults of their recipe:
{prog} --task sst2 --method full --help"""
HELP = "show this help message and exit"


class Parser(argparse.ArgumentParser):
    """argparse, with one line for bad input."""

    def __init__(self, **options: Any) -> None:
        # With more room for the flags, so that most of them take one line.
        options.setdefault("formatter_class", partial(argparse.RawDescriptionHelpFormatter, max_help_position=36))
        super().__init__(**options)
        # What begins with one - is a value such as -1=2 or -_-, for no flag but -h does.
        self._negative_number_matcher = re.compile("-[^-]")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            from minipeft.training.settings.other_names import nearest_setting

            meant = nearest_setting(unknown[0], self._option_string_actions) if unknown[0].startswith("-") else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += nearest(choice[1], re.findall(r"[\w-]+", choice[2]))
        if flag := re.match(r"argument (--[\w-]+)\S*: expected", message):
            message += f"; a value that begins with - is written {flag[1]}=VALUE"
        self.exit(2, f"minipeft: {message}; see {self.prog} --help\n")


class RecipeHelp(argparse.Action):
    """--help, with the defaults of the task, the method and the model that the flags before it name."""

    def __init__(self, actions: Mapping[str, argparse.Action], **options: Any) -> None:
        super().__init__(nargs=0, **options)
        self.actions = actions

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, *rest: Any) -> None:
        from minipeft.cli.recipe_help import describe_recipe

        for name, text in describe_recipe(namespace).items():
            self.actions[name].help = text
        parser.print_help()
        parser.exit()


def add_settings(
    parser: Any, table: type[Any], *, without: Collection[str] = (), several: bool = False
) -> dict[str, argparse.Action]:
    """Add a flag for each row of a table, and return the flags by name.

    A flag that is not given is absent from the parsed arguments. `parser` gets a group for each heading, or is a group
    for all flags. With `several` every flag that has a value takes several, kept as the words that they are.
    """
    chosen, defaults = {name: row for name, row in rows(table).items() if name not in without}, recipe_defaults()
    groups = dict.fromkeys((row.group for row in chosen.values()), parser)
    if isinstance(parser, argparse.ArgumentParser):
        groups = {heading: parser.add_argument_group(heading) for heading in groups}
    return {
        name: groups[row.group].add_argument(
            row.flag, dest=name, default=argparse.SUPPRESS, help=row.describe(defaults), **_options(row, several)
        )
        for name, row in chosen.items()
    }


def _options(row: Setting, several: bool) -> dict[str, Any]:
    """Return the arguments of add_argument for a row."""
    if row.annotation == "bool":
        return {"action": "store_true"}
    required = row.default is REQUIRED
    if row.alone is not None:
        return {"nargs": "?"} | (
            {"const": [row.alone], "type": lambda word: [word]} if several else {"const": row.alone}
        )
    if several:
        return {"metavar": "VALUE", "nargs": "+", "action": "extend", "required": required}
    return {"metavar": row.metavar, "nargs": "+" if row.several else None, "type": row.number, "required": required}


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `minipeft train` and of train.py; the parser must have been made with add_help=False."""
    actions = add_settings(parser, TrainSettings)
    parser.add_argument("-h", "--help", action=RecipeHelp, actions=actions, default=argparse.SUPPRESS, help=HELP)
