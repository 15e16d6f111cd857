"""The flags of `minipeft compare`."""

import argparse
from typing import Any

from minipeft.cli.flags import HELP, RecipeHelp, add_settings
from minipeft.compare.runner_options import RunnerOptions
from minipeft.data.tasks.task import TASKS
from minipeft.training.settings.train_settings import METHOD_NAMES, TrainSettings

COMPARE_EXAMPLES = """examples:
  minipeft compare --task rte sst2 --method lora bitfit --output comparisons/two
  minipeft compare --task rte --method lora --rank 1 2 8 --lr 3e-4 1e-3 --seed 1 2 3 --output comparisons/ranks
  minipeft compare --task rte mrpc --method lora full --epochs rte=20 mrpc=10 --jobs 2 --output comparisons/epochs

every flag with a VALUE takes it for all runs, or for some:
  VALUE              for every run that can take it: --rank 4 goes to the methods that have a rank
  TASK=VALUE         for the runs of a task:      --epochs sst2=1 mrpc=3
  METHOD=VALUE       for the runs of a method:    --lr 1e-3 full=3e-4
  TASK/METHOD=VALUE  for the runs of both:        --lr stsb/full=1e-4
--rank, --lr and --seed take several, as in --lr lora=1e-3,3e-3. Of several learning rates the tables
keep the one with the best median over the seeds, for each task, method and rank.

DIR gets page.html, table.csv, table.json, plan.json and a folder for each run. Exit status: 0 done,
2 wrong input or a run that failed, 130 or 143 interrupted, with every run saved."""
COMPARISON = "comparison"
OWN = ("task", "method", "seed", "output", "resume", "quiet")  # where compare has its own


def add_compare_flags(commands: Any) -> None:
    """`minipeft compare`: its own flags, and the flags of `train`, each with several values."""
    parser = commands.add_parser(
        "compare",
        help="several runs side by side: tasks, methods, ranks, learning rates, seeds -> tables and a page",
        usage="minipeft compare [--task TASK ...] --method METHOD ... --output DIR [settings of train]",
        description="Train every combination of tasks, methods, ranks, learning rates and seeds, and compare them.",
        epilog=COMPARE_EXAMPLES,
        add_help=False,
    )
    group = parser.add_argument_group(COMPARISON)
    flag = group.add_argument
    flag("--task", nargs="+", metavar="TASK", help=f"{', '.join(TASKS)} [the name of --data]")
    flag("--method", nargs="+", required=True, metavar="METHOD", help=METHOD_NAMES)
    flag("--seed", nargs="+", action="extend", metavar="VALUE", help="three or more show a spread [1 2 3]")
    flag("--output", required=True, metavar="DIR", help="folder of the comparison")
    add_settings(group, RunnerOptions)
    flag("--resume", action="store_true", help="continue the comparison in --output; finished runs are kept [off]")
    flag("--quiet", action="store_true", help="no progress bar [off]")
    actions = add_settings(parser, TrainSettings, without=OWN, several=True)
    parser.add_argument("-h", "--help", action=RecipeHelp, actions=actions, default=argparse.SUPPRESS, help=HELP)
