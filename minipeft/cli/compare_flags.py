"""The flags of `minipeft compare`, and those of the runners that execute several commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from minipeft.cli.flags import METHODS, Parser, add_train_flags
from minipeft.data.tasks.task import TASKS

COMPARE_EXAMPLES = """examples:
  minipeft compare --task rte sst2 --method lora bitfit --output comparisons/two
  minipeft compare --task rte --method lora --rank 1 2 8 --lr 3e-4 1e-3 --seed 1 2 3 --output comparisons/ranks
  minipeft compare --task rte mrpc --method lora full --epochs rte=20 mrpc=10 --jobs 2 --output comparisons/epochs

"""


class SeveralValues(Parser):
    """Take the flags of `train` for `compare`: each that has a value has several, kept as the words they are."""

    def add_argument_group(self, *names: Any, **options: Any) -> Any:
        group = super().add_argument_group(*names, **options)
        add_argument = group.add_argument

        def add_several(name: str, **options: Any) -> argparse.Action | None:
            if name in COMPARE_FLAGS:
                return None
            if options.get("action") != "store_true":
                options = {"help": options["help"], "metavar": "VALUE", "nargs": "+", "action": "extend"}
            return add_argument(name, **options)

        group.add_argument = add_several  # type: ignore[method-assign, assignment]
        return group


def add_runner_flags(flag: Callable[..., Any]) -> None:
    """The flags that say where several commands are executed, and how many at once."""
    flag("--runner", help="local, or ray: on a Ray cluster that shares --output [local]")
    flag(
        "--jobs", type=int, metavar="N", help="at once [CPU: by cores and memory; --jobs-per-gpu on each GPU; ray: all]"
    )
    flag("--jobs-per-gpu", type=int, metavar="N", help="at once on each GPU of this machine [1]")
    flag("--ray-address", metavar="ADDRESS", help="of a Ray cluster [RAY_ADDRESS, or a Ray on this machine]")
    flag("--cpus-per-run", type=float, metavar="N", help="CPUs, and threads, of each on Ray [1]")
    flag("--gpus-per-run", type=float, metavar="N", help="GPUs of each on Ray, such as 0.5 [1 if the cluster has any]")


COMPARE_FLAGS = ("--task", "--method", "--seed", "--output", "--resume", "--quiet")  # where compare has its own


def add_compare_flags(commands: Any, arguments: Sequence[str]) -> None:
    """`minipeft compare`: its own flags, and the flags of `train`."""
    own, settings = Parser(add_help=False), SeveralValues(add_help=False)
    flag = own.add_argument_group("comparison").add_argument
    flag("--task", nargs="+", required=True, metavar="TASK", help=", ".join(TASKS))
    flag("--method", nargs="+", required=True, metavar="METHOD", help=METHODS)
    flag("--seed", nargs="+", action="extend", metavar="VALUE", help="three or more show a spread [1 2 3]")
    flag("--output", required=True, metavar="DIR", help="folder of the comparison")
    add_runner_flags(flag)
    flag("--resume", action="store_true", help="continue the comparison in --output; finished runs are kept [off]")
    flag("--quiet", action="store_true", help="no progress bar [off]")
    add_train_flags(settings, arguments)
    commands.add_parser(
        "compare",
        help="several runs side by side: tasks, methods, ranks, learning rates, seeds -> tables and a page",
        usage="minipeft compare --task TASK ... --method METHOD ... --output DIR [settings of train]",
        parents=[own, settings],
        description="Train every combination of tasks, methods, ranks, learning rates and seeds, and compare them.",
        epilog=COMPARE_EXAMPLES
        + (
            "every flag with a VALUE takes it for all runs, or for some:\n"
            "  VALUE              for every run that can take it: --rank 4 goes to the methods that have a rank\n"
            "  TASK=VALUE         for the runs of a task:      --epochs sst2=1 mrpc=3\n"
            "  METHOD=VALUE       for the runs of a method:    --lr 1e-3 full=3e-4\n"
            "  TASK/METHOD=VALUE  for the runs of both:        --lr stsb/full=1e-4\n"
            "--rank, --lr and --seed take several, as in --lr lora=1e-3,3e-3. Of several learning rates the tables\n"
            "keep the one with the best median over the seeds, for each task, method and rank.\n\n"
            "DIR gets page.html, table.csv, table.json, plan.json and a folder for each run. Exit status: 0 done,\n"
            "2 wrong input or a run that failed, 130 or 143 interrupted, with every run saved."
        ),
    )
