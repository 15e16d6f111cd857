"""The flags of every command, each with its help and its default."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from minipeft import __version__
from minipeft.cli.describe import choose_defaults
from minipeft.data.tasks import TASKS
from minipeft.device import MAX_TOKENS
from minipeft.errors import nearest
from minipeft.training.recipes import (
    ALPHA,
    BATCH_SIZE,
    BETA1,
    BETA2,
    CHECKPOINT_MINUTES,
    DROPOUT,
    EPSILON,
    GRAD_ACCUM,
    GROUP_TIMEOUT,
    MAX_GRAD_NORM,
    RANK,
    WARMUP_STEPS,
    WEIGHT_DECAY,
)
from minipeft.training.setting_names import nearest_setting

METHODS = (  # minipeft.methods.METHODS, which imports torch
    "lora, dora, adalora, vera, bitfit, layernorm, ia3, houlsby, pfeiffer, prefix_tuning, prompt_tuning, head, full"
)
TRAIN_EXAMPLES = """examples:
  {prog} --task rte --method lora --rank 2
  {prog} --data reviews.csv --text-column review --label-column stars --output runs/reviews
  {prog} --task sst2 --method bitfit --model roberta-base --epochs 3 --lr 1e-3 --holdout 0.1

`minipeft methods` lists the methods with their options. --help after other flags shows the defaults of their recipe:
{prog} --task sst2 --method full --help"""
PREDICT_EXAMPLES = """examples:
  minipeft predict runs/rte-lora-r2-seed42 --text "It rains." --pair "The street is wet."
  minipeft predict runs/reviews --input new.csv --echo id text --output labels.csv
  minipeft predict runs/sst2 --glue-test submission"""
COMPARE_EXAMPLES = """examples:
  minipeft compare --task rte sst2 --method lora bitfit --output comparisons/two
  minipeft compare --task rte --method lora --rank 1 2 8 --lr 3e-4 1e-3 --seed 1 2 3 --output comparisons/ranks
  minipeft compare --task rte mrpc --method lora full --epochs rte=20 mrpc=10 --jobs 2 --output comparisons/epochs

"""


RUN = "folder of a run, of an adapter (minipeft's or peft's), or of a merged checkpoint"


class Parser(argparse.ArgumentParser):
    """argparse, with one line for bad input."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", Formatter)
        super().__init__(**options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            meant = nearest_setting(unknown[0], self._option_string_actions) if unknown[0].startswith("-") else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += nearest(choice[1], re.findall(r"[\w-]+", choice[2]))
        self.exit(2, f"minipeft: {message}; see {self.prog} --help\n")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """argparse's, with more room for the flags, so that most of them take one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36)


def command_line(arguments: Sequence[str] | None = None) -> Parser:
    """Return the parser of `minipeft`; its help states the defaults of the task and method that `arguments` name."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = Parser(prog="minipeft", description="Parameter-efficient fine-tuning of encoders in plain PyTorch.")
    parser.add_argument("--version", action="version", version=f"minipeft {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    train = commands.add_parser(
        "train",
        help="fine-tune on a task",
        epilog=TRAIN_EXAMPLES.format(prog="minipeft train"),
        usage="%(prog)s [flags]",
    )
    add_train_flags(train, arguments)

    add_compare_flags(commands, arguments)

    methods = commands.add_parser("methods", help="the methods: options, defaults, parameters, paper, peft")
    methods.add_argument("name", nargs="?", help="one method, with an explanation of its options [all]")

    evaluate = commands.add_parser("evaluate", help="loss and metrics of a run's best adapter")
    evaluate.add_argument("run", help=RUN)
    evaluate.add_argument("--split", help="split to evaluate [the task's validation split]")
    evaluate.add_argument("--data", help="folder with <task>/<split>.parquet [the run's own data]")

    predict = commands.add_parser("predict", help="label and probabilities of texts", epilog=PREDICT_EXAMPLES)
    predict.add_argument("run", help=RUN)
    predict.add_argument("--text", action="append", help="a text; may be given several times")
    predict.add_argument("--pair", action="append", help="its second sentence, for tasks on pairs")
    predict.add_argument("--output", help="new csv or jsonl file, or a folder for one file per input [standard output]")
    predict.add_argument("--echo", nargs="+", metavar="COLUMN", help="columns of --input to repeat: id, text, … [none]")
    predict.add_argument(
        "--glue-test", metavar="FOLDER", help="predict GLUE's test split into FOLDER/RTE.tsv, …, as its server takes it"
    )
    predict.add_argument("--data", help="folder with <task>/test.parquet for --glue-test [the run's own data]")
    add_runner_flags(predict.add_argument_group("a folder of files into a folder of predictions").add_argument)
    predict.add_argument("--resume", action="store_true", default=None, help="predict the missing files only [off]")
    for command in (evaluate, predict):
        command.add_argument(
            "--input",
            help="jsonl, json, csv, tsv, parquet or txt (a text per line), its address, a folder of files, or - for "
            "standard input",
        )
        command.add_argument(
            "--format",
            dest="file_format",
            help="of --input: txt, csv, tsv, jsonl, json [by ending; -: txt or jsonl]",
        )
        command.add_argument("--text-column", help="column of the texts in --input [the task's, or text]")
        command.add_argument("--pair-column", help="column of the second sentences [the task's, or pair]")
        if command is evaluate:
            command.add_argument("--label-column", help="column of the labels in --input [the run's]")
            command.add_argument(
                "--report", metavar="FOLDER", help="figures by class, calibration and mistakes in a new folder [none]"
            )
            command.add_argument("--json", action="store_true", help="JSON on a terminal too [a table on a terminal]")
        command.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … or mps [auto]")

    add_pretrain_flags(
        commands.add_parser("pretrain", help="masked-language-model pretraining, from nothing or from a checkpoint")
    )

    export = commands.add_parser(
        "export",
        aliases=["merge"],
        help="merge a run's adapter: a checkpoint that transformers loads, and the largest difference of a logit",
    )
    export.add_argument("run", help="folder of a finished run")
    export.add_argument("folder", help="new folder for the checkpoint")

    push = commands.add_parser("push", help="upload an adapter with its model card, or a merged checkpoint, to the hub")
    push.add_argument("run", help=RUN)
    push.add_argument("name", help="repository: owner/name; it is created if it does not exist")
    push.add_argument("--private", action="store_true", help="make a new repository private [off]")
    push.add_argument("--dry-run", action="store_true", help="list the files, without a token or a connection [off]")

    fetch = commands.add_parser(
        "fetch", help="download a checkpoint into the Hugging Face cache, verified; print its folder"
    )
    fetch.add_argument("name", help="roberta-base, roberta-large, …, owner/name or owner/name@revision")
    return parser


def add_train_flags(parser: argparse.ArgumentParser, arguments: Sequence[str] = ()) -> None:
    """The flags of `minipeft train` and of train.py: one line a flag, with its choices and its [default].

    The defaults of the recipe are those of the task, method and model that `arguments` name.
    """
    recipe = choose_defaults(arguments)
    tokens = f"CPU {recipe.max_tokens['fp32']}, in bf16 {recipe.max_tokens['bf16']}; CUDA {MAX_TOKENS['cuda']}"
    flag = parser.add_argument_group("task and data").add_argument
    flag(
        "--task",
        default="auto",
        help=f"{', '.join(TASKS)}, or a name for a custom dataset [auto: rte, or --data's name]",
    )
    flag(
        "--data",
        default="auto",
        help="a file, folder or address, a data set of the hub (owner/name:config), or GLUE's folder [auto: GLUE]",
    )
    flag("--long-text", default="truncate", help="over --max-length: truncate, or window to split it [truncate]")
    flag("--stride", type=int, metavar="N", help="tokens that two windows have in common [--max-length / 4]")
    flag("--window-pooling", default="mean", help="of a text's windows: mean or max of their logits [mean]")
    flag("--text-column", metavar="COLUMN", help="of a custom dataset: the texts [text]")
    flag("--pair-column", metavar="COLUMN", help="of a custom dataset: the second texts [none]")
    flag("--label-column", metavar="COLUMN", help="of a custom dataset: the labels, as names or numbers [label]")
    flag("--label-type", default="auto", help="of a custom dataset: classes, numbers or multilabel [auto]")
    flag("--label-separator", metavar="C", help="character between labels, for multilabel [none: the labels are lists]")
    flag("--threshold", default=0.5, help="probability of a predicted label, or auto, for multilabel [0.5]")
    flag("--validation", metavar="SPLIT", help="of a custom dataset: a file, or a split [10 percent of the rows]")
    flag("--holdout", type=float, metavar="FRACTION", help="of the training split, to choose the best epoch on [none]")
    flag("--max-length", type=int, metavar="N", help="tokens; longer sequences are truncated [512, or the model's]")
    flag("--train-limit", type=int, metavar="N", help="train on the first N examples [all]")
    flag("--eval-limit", type=int, metavar="N", help="evaluate on the first N examples [all]")

    flag = parser.add_argument_group("model").add_argument
    flag("--model", default="auto", help="a name or a folder [auto: roberta-base, else the bundled roberta-mini]")
    flag("--init-adapter", metavar="RUN", help="start from another run's adapter; a new head for other labels [none]")

    flag = parser.add_argument_group("method").add_argument
    flag("--method", default="lora", help=f"{METHODS} [lora]")
    flag("--rank", type=int, metavar="N", help=f"LoRA's rank [{RANK}]")
    flag("--alpha", type=float, help=f"LoRA's alpha; alpha / rank scales the update [{ALPHA:g}]")
    flag("--dropout", type=float, help=f"on LoRA's input [{DROPOUT:g}]")
    flag("--targets", nargs="+", help="query key value output intermediate ffn_output [query value]")
    flag("--method-options", nargs="+", metavar="NAME=VALUE", help="other settings of the method: rslora=true … [none]")

    flag = parser.add_argument_group("optimization").add_argument
    flag("--epochs", type=int, metavar="N", help=f"passes over the data [{recipe.epochs} for {recipe.choice}]")
    flag("--lr", type=float, help=f"peak learning rate [{recipe.lr:g} for {recipe.choice}]")
    flag("--steps", type=int, metavar="N", help="optimizer steps, in place of --epochs [those of the epochs]")
    flag("--lr-schedule", default="linear", help="linear, cosine or constant after the warmup [linear]")
    flag("--batch-size", type=int, default=BATCH_SIZE, metavar="N", help=f"sequences [{BATCH_SIZE}]")
    flag("--grad-accum", type=int, default=GRAD_ACCUM, metavar="N", help=f"batches in a step [{GRAD_ACCUM}]")
    flag("--warmup-steps", type=int, metavar="N", help=f"linear [{WARMUP_STEPS}; of fewer than 900, 10 percent]")
    flag("--warmup-ratio", type=float, metavar="X", help="warmup as a fraction of the steps [--warmup-steps]")
    flag("--weight-decay", type=float, default=WEIGHT_DECAY, help=f"AdamW's, on matrices [{WEIGHT_DECAY:g}]")
    flag("--beta1", type=float, default=BETA1, metavar="X", help=f"AdamW's [{BETA1:g}]")
    flag("--beta2", type=float, default=BETA2, metavar="X", help=f"AdamW's [{BETA2:g}]")
    flag("--epsilon", type=float, default=EPSILON, metavar="X", help=f"AdamW's [{EPSILON:g}]")
    flag("--max-grad-norm", type=float, default=MAX_GRAD_NORM, help=f"0: no clipping [{MAX_GRAD_NORM:g}]")
    flag("--class-weights", nargs="+", metavar="NAME=WEIGHT", help="balanced, or NAME=WEIGHT … for the loss [all 1]")
    flag("--label-smoothing", type=float, default=0.0, metavar="X", help="of the targets, towards all classes [0]")
    flag("--select-by", metavar="METRIC", help="a metric, or eval_loss, to choose the best epoch [the task's first]")
    flag("--patience", type=int, metavar="EPOCHS", help="stop after so many without a better --select-by [none]")
    flag("--eval-every", type=int, metavar="STEPS", help="evaluate within epochs too [only at the end of each]")
    flag("--seed", type=int, default=42, help="of the head, LoRA's A, the order and dropout [42]")

    flag = parser.add_argument_group("hardware").add_argument
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1 … or mps [auto]")
    flag("--precision", default="auto", help="auto, fp32 or bf16 [auto: bf16 where that is native, else fp32]")
    flag("--max-tokens", type=int, metavar="N", help=f"tokens of a batch; bounds the memory [{tokens}]")
    flag("--compile", action="store_true", help="let torch.compile fuse the small operations [off]")
    flag("--activation-checkpointing", action="store_true", help="compute layers twice: less memory, more time [off]")
    flag("--cuda-graphs", action="store_true", help="record and replay a batch's CUDA operations: less overhead [off]")
    flag(
        "--group-timeout",
        type=float,
        default=GROUP_TIMEOUT,
        help=f"minutes until a lost node counts [{GROUP_TIMEOUT:g}]",
    )

    flag = parser.add_argument_group("output").add_argument
    flag("--output", metavar="DIR", help="folder of the run [runs/<task>-<method>…]")
    flag("--checkpoint-minutes", type=float, default=CHECKPOINT_MINUTES, help=f"between two [{CHECKPOINT_MINUTES:g}]")
    flag("--resume", action="store_true", help="continue from the run's last checkpoint [off]")
    flag("--report-to", nargs="+", metavar="TRACKER", help="tensorboard, wandb, mlflow or none [tensorboard, if there]")
    flag("--quiet", action="store_true", help="no banner and no progress bars [off]")


def describe_settings(train: Any) -> None:
    """Add the flags' help to the docstring of `minipeft.train`, whose keywords are the flags."""
    if "\n    Settings:" not in train.__doc__:
        parser = argparse.ArgumentParser(add_help=False)
        add_train_flags(parser)
        lines = [f"        {action.dest}: {action.help}\n" for action in parser._actions]
        train.__doc__ = f"{train.__doc__.rstrip()}\n\n    Settings:\n{''.join(lines)}"


def add_pretrain_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `minipeft pretrain`."""
    flag = parser.add_argument_group("task and data").add_argument
    flag("--text", nargs="+", required=True, help='text files, a paragraph a line, or jsonl with a "text"')
    flag("--block-length", type=int, default=128, help="tokens a sequence [128]")
    flag("--long-block-length", type=int, default=512, help="in the last 10 percent of the steps [512]")

    flag = parser.add_argument_group("model").add_argument
    flag("--model", help="checkpoint to continue [none: a new model and tokenizer]")
    flag("--start", default="counts", help="of a new model: word co-occurrence counts, or random [counts]")
    flag("--vocab-size", type=int, default=8192, help="of a new tokenizer [8192]")
    flag("--hidden-size", type=int, default=256, help="of a new model [256]")
    flag("--num-hidden-layers", type=int, default=6, help="of a new model [6]")
    flag("--num-attention-heads", type=int, default=4, help="of a new model [4]")
    flag("--dropout", type=float, default=0.0, help="a new model keeps it in config.json, --model its own [0]")

    flag = parser.add_argument_group("optimization").add_argument
    flag("--steps", type=int, default=10_000, help="optimizer steps [10000]")
    flag("--batch-tokens", type=int, default=8192, help="tokens a step [8192]")
    flag("--lr", type=float, default=1e-3, help="peak learning rate [1e-3]")
    flag("--warmup-steps", type=int, default=500, help="steps of linear warmup [500]")
    flag("--weight-decay", type=float, default=0.01, help="AdamW's, on matrices [0.01]")
    flag("--seed", type=int, default=0, help="of the weights, the order, the masks and dropout [0]")

    flag = parser.add_argument_group("hardware").add_argument
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1 … or mps [auto]")
    flag("--precision", default="auto", help="auto, fp32 or bf16 [auto: bf16 where that is native, else fp32]")

    flag = parser.add_argument_group("output").add_argument
    flag("--output", required=True, help="folder that becomes the checkpoint")
    flag("--evaluate-every", type=int, default=500, help="steps between evaluations [500]")
    flag("--checkpoint-minutes", type=float, default=5.0, help="minutes between checkpoints [5]")
    flag("--resume", action="store_true", help="continue the run in --output [off]")
    flag("--quiet", action="store_true", help="no progress bar [off]")


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
