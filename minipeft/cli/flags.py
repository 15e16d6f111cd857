"""The flags of `minipeft train` and `minipeft pretrain`, each with its help and its default."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from minipeft.cli.describe import choose_defaults
from minipeft.data.tasks.task import TASKS
from minipeft.device import MAX_TOKENS
from minipeft.errors import nearest
from minipeft.training.settings.other_names import nearest_setting
from minipeft.training.settings.recipes import (
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

METHODS = (  # minipeft.methods.METHODS, which imports torch
    "lora, dora, adalora, vera, bitfit, layernorm, ia3, houlsby, pfeiffer, prefix_tuning, prompt_tuning, head, full"
)
TRAIN_EXAMPLES = """examples:
  {prog} --task rte --method lora --rank 2
  {prog} --data reviews.csv --text-column review --label-column stars --output runs/reviews
  {prog} --task sst2 --method bitfit --model roberta-base --epochs 3 --lr 1e-3 --holdout 0.1

`minipeft methods` lists the methods with their options. --help after other flags shows the defaults of their recipe:
{prog} --task sst2 --method full --help"""


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
