"""The plan of a comparison: flags whose values may be for one task or one method → every run's settings.

One rule for every flag that has a value:

    VALUE                   for every run that can take it
    TASK=VALUE              for the runs of a task                  --epochs sst2=1 mrpc=3
    METHOD=VALUE            for the runs of a method                --lr 1e-3 full=3e-4
    TASK/METHOD=VALUE       for the runs of both                    --lr stsb/full=1e-4

What is more special comes before what is less; a task's and a method's value that meet in a run are an error. Rank,
learning rate and seed may have several values, --lr lora=1e-3,3e-3, and every combination is a run; the other flags
have one. Of the learning rate "auto", learning_rates.py makes one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from shlex import quote
from typing import Any

from minipeft.compare.runners.local_runner import Command, format_flags
from minipeft.data.tasks.custom import is_custom, task_name
from minipeft.data.tasks.splits import choose_data
from minipeft.data.tasks.task import get_task
from minipeft.errors import MinipeftError, nearest, public_settings
from minipeft.methods import get_method
from minipeft.training.settings.choices import check_windows, choose_method
from minipeft.training.settings.setting import rows
from minipeft.training.settings.train_settings import METHOD_FLAGS, TrainSettings, read_settings

SWEPT = ("rank", "lr", "seed")  # with task and method: what a comparison is a product of
OWN = ("output", "resume", "quiet", "fold")  # the comparison sets them for its runs
SEEDS = (1, 2, 3)
AUTO = "auto"  # of --lr: learning_rates.py chooses it
ROWS = rows(TrainSettings)
LISTS = tuple(name for name, row in ROWS.items() if row.several)  # all arguments of the flag are one value
NUMBERS = tuple(name for name, row in ROWS.items() if row.number)
SPLIT_AT_COMMAS = (*NUMBERS, "targets")

Values = dict[str, list[Any]]  # where it is for ("" for all, a task, a method, TASK/METHOD) → values


@dataclass(frozen=True)
class Run:
    """One run: the settings that `minipeft.train` gets, and the name of its folder."""

    name: str
    settings: dict[str, Any]
    tried: dict[float, list[dict[str, Any]]] = field(default_factory=dict)  # learning rate → results of rungs

    @property
    def row(self) -> tuple[str, str, int | None]:
        """The row of the table: task, method and rank."""
        return self.settings["task"], self.settings["method"], self.settings.get("rank")

    @property
    def wanted(self) -> TrainSettings:
        """The settings, checked, without a learning rate that is searched."""
        return TrainSettings(
            **read_settings({name: value for name, value in self.settings.items() if (name, value) != ("lr", AUTO)})
        )

    def train_command(self, folder: Path) -> Command:
        """Return the command that trains the run in `folder`/runs, or continues it there."""
        output = folder / "runs" / self.name
        settings = self.settings | {"output": output, "resume": True, "quiet": True}
        if "checkpoint_copy" in settings:
            settings["checkpoint_copy"] += f"/{self.name}"
        return Command(self.name, ["train", *format_flags(settings)], output)


@dataclass(frozen=True)
class Plan:
    """The flags as they were understood, and the runs that they ask for, each seed's after the other."""

    flags: dict[str, Values]
    runs: list[Run]

    @property
    def command(self) -> str:
        """The command that asks for this plan, but for its --output and for secrets in addresses."""
        arguments = ["minipeft compare"]
        for name, values in public_settings(self.flags).items():
            if name == "fold":
                arguments.append(f"--folds {len(values[''])}")
                continue
            flag = ROWS[name].flag
            switch = values.get("", [None])[0] is True  # 1 == True: a rank of 1 is not a switch
            arguments.append(flag if switch else f"{flag} {format_values(values, quote)}")
        return " ".join(arguments)


def make_plan(given: dict[str, Any]) -> Plan:
    """The command line's arguments, a list for each flag, as a plan. Raises MinipeftError by the flag's name."""
    data = given.get("data") or ["auto"]
    if given.get("task") is None:
        if len(data) > 1 or not is_custom("auto", data[0], given.get("file_format", [None])[0]):
            if len(data) == 1 and data != ["auto"] and not Path(data[0]).is_dir():
                choose_data(get_task("rte"), data[0])  # raises for what is not there
            own = "your own dataset: a file, or a folder with train.csv (--format reads any ending)"
            raise MinipeftError(f"--task is missing. Name one of GLUE's tasks, or pass --data with {own}.")
        given = given | {"task": [task_name(data[0])]}
    tasks, methods = (_names(name, given[name]) for name in ("task", "method"))
    if "auto" in tasks:
        raise MinipeftError("--task auto: in a comparison every task has a name; give one of GLUE's, or your data one")
    options = {method: {field.name for field in fields(get_method(method))} for method in methods}
    flags: dict[str, Values] = {
        name: {"": [True]} if arguments is True else read_values(name, arguments, tasks, methods)
        for name in ROWS
        if name not in ("task", "method", *OWN) and (arguments := given.get(name))
    }
    if (num_folds := given.get("folds")) is not None:
        if num_folds < 2:
            raise MinipeftError(f"--folds {num_folds} leaves no fold to train on. Choose 2 or more.")
        flags["fold"] = {"": [f"{number}/{num_folds}" for number in range(1, num_folds + 1)]}
    flags.setdefault("seed", {}).setdefault("", list(SEEDS[:1] if num_folds else SEEDS))
    used: set[tuple[str, str]] = set()
    runs = []
    for task, method in product(tasks, methods):
        choices = {}
        for name, values in flags.items():
            where, chosen = value_for(name, values, task, method)
            if where == "":
                chosen = _accepted_values(name, chosen, options[method])
            if chosen:
                used.add((name, where))
                choices[name] = [chosen] if name in LISTS else chosen
            if name == "lr" and AUTO in chosen:
                for rate in chosen:
                    read_settings({"lr": None if rate == AUTO else rate})
                choices[name] = [AUTO]
        for combination in product(*choices.values()):
            settings = {"task": task, "method": method, **dict(zip(choices, combination, strict=True))}
            run = Run(run_name(settings), settings)
            check_windows(run.wanted)  # every error comes before anything runs
            choose_method(run.wanted)
            runs.append(run)
    for name, values in flags.items():
        if "" in values and len(values) == 1 and (name, "") not in used:
            raise MinipeftError(
                f"{ROWS[name].flag} {format_values(values)} has no meaning for {', '.join(methods)}. Leave it out."
            )
    flags = {"task": {"": tasks}, "method": {"": methods}, **flags}
    seeds = [seed for values in flags["seed"].values() for seed in values]
    folds = flags.get("fold", {}).get("", [None])
    by_seed = sorted(runs, key=lambda run: (seeds.index(run.settings["seed"]), folds.index(run.settings.get("fold"))))
    return Plan(flags, by_seed)


def _names(name: str, arguments: list[str]) -> list[str]:
    names = [part for argument in arguments for part in argument.split(",") if part]
    _check_unique(name, names)
    return names


def _check_unique(name: str, values: list[Any]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise MinipeftError(f"{ROWS[name].flag} {value} is given twice; give it once")


def read_values(name: str, arguments: list[str], tasks: list[str], methods: list[str]) -> Values:
    """A flag's arguments → its values, by where they are for."""
    flag = ROWS[name].flag
    values: Values = {}
    for argument in arguments:
        where, text = _split(flag, name, argument, tasks, methods)
        parts = text.split(",") if name in SPLIT_AT_COMMAS else [text]
        if not all(parts):
            raise MinipeftError(f"{flag} {argument!r}: a value is missing; give one, or leave it out")
        values.setdefault(where, []).extend(_value(name, part) for part in parts)
    for where, chosen in values.items():
        if len(chosen) > 1 and name not in SWEPT + LISTS:
            of = f" for {where}" if where else ""
            raise MinipeftError(f"{flag} has {len(chosen)} values{of}, {format_values({'': chosen})}; give one")
        _check_unique(name, chosen)
    return values


def _split(flag: str, name: str, word: str, tasks: list[str], methods: list[str]) -> tuple[str, str]:
    """WHERE=VALUE → the two; a word without a WHERE that this comparison has is a value, but a number has no "="."""
    where, equals, text = word.partition("=")
    task, slash, method = where.partition("/")
    if equals and (where in (*tasks, *methods) or (slash and task in tasks and method in methods)):
        return where, text
    if equals and name in SPLIT_AT_COMMAS:
        raise MinipeftError(
            f"{flag} {word!r}: {where!r} is not a task or method of this comparison; "
            f"one of {', '.join((*tasks, *methods))}, or TASK/METHOD{nearest(where, (*tasks, *methods))}"
        )
    return "", word


def _value(name: str, text: str) -> int | float | str:
    """A number, where there has to be one and the text is one; `read_settings` raises for other text."""
    for kind in (int, float) if ROWS[name].number else ():
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def value_for(name: str, values: Values, task: str, method: str) -> tuple[str, list[Any]]:
    """Where the values that a run takes are from, and the values; none where nothing was given for it."""
    if (both := f"{task}/{method}") in values:
        return both, values[both]
    if task in values and method in values and values[task] != values[method]:
        raise MinipeftError(
            f"{ROWS[name].flag}: {task}={values[task][0]} and {method}={values[method][0]} meet in the runs "
            f"of {both}; add {both}=VALUE"
        )
    where = next((where for where in (task, method) if where in values), "")
    return where, values.get(where, [])


def _accepted_values(name: str, values: list[Any], fields: set[str]) -> list[Any]:
    """Of values for every run, those that a method with these fields has a use for."""
    if name == "method_options":
        return [option for option in values if str(option).partition("=")[0].replace("-", "_") in fields]
    return values if name not in METHOD_FLAGS or name in fields else []


def run_name(settings: dict[str, Any]) -> str:
    """Return the name of a run's folder."""
    rank, lr = (f"-{sign}{settings[name]}" if name in settings else "" for name, sign in (("rank", "r"), ("lr", "lr")))
    fold = f"-fold{settings['fold'].replace('/', 'of')}" if "fold" in settings else ""
    return f"{settings['task']}-{settings['method']}{rank}{lr}-seed{settings['seed']}{fold}"


def format_values(values: Values, form: Callable[[str], str] = str) -> str:
    """A flag's values as the command line has them; `form` may quote each for a shell."""
    given = ((where, value) for where, chosen in values.items() for value in chosen)
    return " ".join(form(f"{where}={value}" if where else str(value)) for where, value in given)
