"""The parser of `minipeft`: one subparser for each command."""

import argparse
import os
from typing import Any

from minipeft.cli.flags import HELP, TRAIN_EXAMPLES, Parser, RecipeHelp, add_settings, add_train_flags
from minipeft.compare.runners.runner_options import RunnerOptions
from minipeft.data.tasks.task import TASKS
from minipeft.pretraining.pretrain_settings import PretrainSettings
from minipeft.training.settings.train_settings import METHOD_NAMES, TrainSettings
from minipeft.version import __version__

COMPARE_EXAMPLES = """examples:
  minipeft compare --task rte sst2 --method lora bitfit --output comparisons/two
  minipeft compare --task rte --method lora --rank 1 2 8 --lr 3e-4 1e-3 --seed 1 2 3 --output comparisons/ranks
  minipeft compare --task rte mrpc --method lora full --epochs rte=20 mrpc=10 --jobs 2 --output comparisons/epochs
  minipeft compare --task rte --method lora head --lr auto head=1e-3 --output comparisons/search

every flag with a VALUE takes it for all runs, or for some:
  VALUE              for every run that can take it: --rank 4 goes to the methods that have a rank
  TASK=VALUE         for the runs of a task:      --epochs sst2=1 mrpc=3
  METHOD=VALUE       for the runs of a method:    --lr 1e-3 full=3e-4
  TASK/METHOD=VALUE  for the runs of both:        --lr stsb/full=1e-4
--rank, --lr and --seed take several, as in --lr lora=1e-3,3e-3. Of several learning rates the tables
keep the one with the best median over the seeds, for each task, method and rank. --lr auto searches:
short runs of five learning rates, longer ones of the best two, and the best in full for every seed.

DIR gets page.html, table.csv, table.json, plan.json and a folder for each run. Exit status: 0 done,
2 wrong input or a run that failed, 130 or 143 interrupted, with every run saved."""
OWN = ("task", "method", "seed", "fold", "output", "resume", "quiet")  # where compare has its own

PREDICT_EXAMPLES = """examples:
  minipeft predict runs/rte-lora-r2-seed42 --text "It rains." --pair "The street is wet."
  minipeft predict runs/reviews --input new.csv --echo id text --output labels.csv
  minipeft predict runs/sst2 --glue-test submission"""

path = os.path.expanduser  # a shell leaves ~ in --input=~/file as it is
RUN = "folder of a run, of an adapter (minipeft's or peft's), or of a merged checkpoint"


def command_line() -> Parser:
    """Return the parser of `minipeft`."""
    parser = Parser(prog="minipeft", description="Parameter-efficient fine-tuning of encoders in plain PyTorch.")
    parser.add_argument("--version", action="version", version=f"minipeft {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    train = commands.add_parser(
        "train",
        help="fine-tune on a task",
        epilog=TRAIN_EXAMPLES.format(prog="minipeft train"),
        usage="%(prog)s [flags]",
        add_help=False,
    )
    add_train_flags(train)

    _add_compare_flags(commands)

    methods = commands.add_parser("methods", help="the methods: options, defaults, parameters, paper, peft")
    methods.add_argument("name", nargs="?", help="one method, with an explanation of its options [all]")

    _add_predict_flags(commands)

    pretrain = commands.add_parser(
        "pretrain", help="masked-language-model pretraining, from nothing or from a checkpoint"
    )
    add_settings(pretrain, PretrainSettings)

    export = commands.add_parser(
        "merge",
        aliases=["export"],
        help="merge a run's adapter: a checkpoint that transformers loads, or an ONNX program, and the largest "
        "difference of a logit",
    )
    export.add_argument("run", help=RUN)
    export.add_argument("folder", help="new folder for the checkpoint")
    export.add_argument(
        "--format",
        choices=("transformers", "onnx"),
        default="transformers",
        help="transformers: config.json and model.safetensors; onnx: model.onnx for ONNX Runtime [transformers]",
    )
    export.add_argument(
        "--int8", action="store_true", help="with --format onnx: model_int8.onnx too, with weights of 8 bits [off]"
    )

    push = commands.add_parser("push", help="upload an adapter with its model card, or a merged checkpoint, to the hub")
    push.add_argument("folder", metavar="run", help=RUN)
    push.add_argument("repo_id", metavar="name", help="repository: owner/name; it is created if it does not exist")
    push.add_argument("--private", action="store_true", help="make a new repository private [off]")
    push.add_argument("--dry-run", action="store_true", help="list the files, without a token or a connection [off]")

    fetch = commands.add_parser(
        "fetch", help="download a checkpoint into the Hugging Face cache, verified; print its folder"
    )
    fetch.add_argument("name", help="roberta-base, roberta-large, …, owner/name or owner/name@revision")
    return parser


def _add_compare_flags(commands: Any) -> None:
    """`minipeft compare`: its own flags, and the flags of `train`, each with several values."""
    parser = commands.add_parser(
        "compare",
        help="several runs side by side: tasks, methods, ranks, learning rates, seeds -> tables and a page",
        usage="minipeft compare [--task TASK ...] --method METHOD ... --output DIR [settings of train]",
        description="Train every combination of tasks, methods, ranks, learning rates and seeds, and compare them.",
        epilog=COMPARE_EXAMPLES,
        add_help=False,
    )
    group = parser.add_argument_group("comparison")
    flag = group.add_argument
    flag("--task", nargs="+", metavar="TASK", help=f"{', '.join(TASKS)} [the name of --data]")
    flag("--method", nargs="+", required=True, metavar="METHOD", help=METHOD_NAMES)
    flag("--seed", nargs="+", action="extend", metavar="VALUE", help="three or more show a spread [1 2 3]")
    flag("--folds", type=int, metavar="K", help="cross-validation: each run on K folds of your dataset, seed 1 [none]")
    flag("--output", required=True, metavar="DIR", help="folder of the comparison")
    add_settings(group, RunnerOptions)
    flag("--resume", action="store_true", help="continue the comparison in --output; finished runs are kept [off]")
    flag("--quiet", action="store_true", help="no progress bar [off]")
    actions = add_settings(parser, TrainSettings, without=OWN, several=True)
    parser.add_argument("-h", "--help", action=RecipeHelp, actions=actions, default=argparse.SUPPRESS, help=HELP)


def _add_predict_flags(commands: Any) -> None:
    """`minipeft evaluate` and `minipeft predict`: a finished run, and the texts that it is used on."""
    evaluate = commands.add_parser(
        "evaluate", help="loss and metrics of a run's best adapter", argument_default=argparse.SUPPRESS
    )
    flag = evaluate.add_argument
    flag("run", type=path, help=RUN)
    flag("--split", help="split to evaluate [the task's validation split]")
    flag("--data", type=path, help="folder with <task>/<split>.parquet [the run's own data]")
    _add_input_flags(evaluate)
    flag("--label-column", help="column of the labels in --input [the run's]")
    flag(
        "--report",
        type=path,
        metavar="FOLDER",
        help="figures by class, calibration and mistakes in a new folder [none]",
    )
    flag("--calibrate", action="store_true", help="fit temperatures on validation, which predict then uses [off]")
    _add_threshold(evaluate, "auto to choose it on validation, which predict then uses")
    flag("--json", action="store_true", help="JSON on a terminal too [a table on a terminal]")
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1 … or mps [auto]")

    predict = commands.add_parser(
        "predict", help="label and probabilities of texts", epilog=PREDICT_EXAMPLES, argument_default=argparse.SUPPRESS
    )
    flag = predict.add_argument
    flag("run", type=path, help=RUN)
    flag("--text", action="append", help="a text; may be given several times")
    flag("--pair", action="append", help="its second sentence, for tasks on pairs")
    flag("--output", type=path, help="new csv or jsonl file, or a folder for one file per input [standard output]")
    _add_threshold(predict, "auto for those that evaluate or the training chose")
    flag("--echo", nargs="+", metavar="COLUMN", help="columns of --input to repeat: id, text, … [none]")
    flag(
        "--glue-test",
        type=path,
        metavar="FOLDER",
        help="predict GLUE's test split into FOLDER/RTE.tsv, …, as its server takes it",
    )
    flag("--data", type=path, help="folder with <task>/test.parquet for --glue-test [the run's own data]")
    add_settings(predict.add_argument_group("a folder of files into a folder of predictions"), RunnerOptions)
    flag("--resume", action="store_true", help="predict the missing files only [off]")
    _add_input_flags(predict)
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1 … or mps [auto]")


def _add_threshold(command: Any, auto: str) -> None:
    command.add_argument(
        "--threshold",
        metavar="X",
        help=f"probability of a predicted label, or of the second of two classes; {auto} [what is stored, else 0.5]",
    )


def _add_input_flags(command: Any) -> None:
    flag = command.add_argument
    flag(
        "--input",
        type=path,
        help="jsonl, json, csv, tsv, parquet, conll or txt (a text per line), its address, a folder of files, or - "
        "for standard input",
    )
    flag(
        "--format",
        dest="file_format",
        help="of --input: txt, csv, tsv, jsonl, json, conll [by ending; -: txt or jsonl]",
    )
    flag("--text-column", help="column of the texts in --input [the task's, or text]")
    flag("--pair-column", help="column of the second sentences [the task's, or pair]")
