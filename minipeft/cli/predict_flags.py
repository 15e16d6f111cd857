"""The flags of `minipeft evaluate` and `minipeft predict`."""

import os
from argparse import SUPPRESS
from typing import Any

from minipeft.cli.flags import add_settings
from minipeft.compare.runner_options import RunnerOptions

PREDICT_EXAMPLES = """examples:
  minipeft predict runs/rte-lora-r2-seed42 --text "It rains." --pair "The street is wet."
  minipeft predict runs/reviews --input new.csv --echo id text --output labels.csv
  minipeft predict runs/sst2 --glue-test submission"""

path = os.path.expanduser  # a shell leaves ~ in --input=~/file as it is
RUN = "folder of a run, of an adapter (minipeft's or peft's), or of a merged checkpoint"


def add_predict_flags(commands: Any) -> None:
    """`minipeft evaluate` and `minipeft predict`: a finished run, and the texts that it is used on."""
    evaluate = commands.add_parser(
        "evaluate", help="loss and metrics of a run's best adapter", argument_default=SUPPRESS
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
    flag("--json", action="store_true", help="JSON on a terminal too [a table on a terminal]")
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1 … or mps [auto]")

    predict = commands.add_parser(
        "predict", help="label and probabilities of texts", epilog=PREDICT_EXAMPLES, argument_default=SUPPRESS
    )
    flag = predict.add_argument
    flag("run", type=path, help=RUN)
    flag("--text", action="append", help="a text; may be given several times")
    flag("--pair", action="append", help="its second sentence, for tasks on pairs")
    flag("--output", type=path, help="new csv or jsonl file, or a folder for one file per input [standard output]")
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


def _add_input_flags(command: Any) -> None:
    flag = command.add_argument
    flag(
        "--input",
        type=path,
        help="jsonl, json, csv, tsv, parquet or txt (a text per line), its address, a folder of files, or - for "
        "standard input",
    )
    flag(
        "--format",
        dest="file_format",
        help="of --input: txt, csv, tsv, jsonl, json, conll [by ending; -: txt or jsonl]",
    )
    flag("--text-column", help="column of the texts in --input [the task's, or text]")
    flag("--pair-column", help="column of the second sentences [the task's, or pair]")
