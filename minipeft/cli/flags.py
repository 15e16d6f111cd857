"""The flags of every command, each with its help and its default."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from minipeft.training.recipes import (
    ALPHA,
    BATCH_SIZE,
    CHECKPOINT_MINUTES,
    DROPOUT,
    GRAD_ACCUM,
    RANK,
    WARMUP_STEPS,
    WEIGHT_DECAY,
)


class Parser(argparse.ArgumentParser):
    """argparse, with one line for bad input."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"minipeft: {message}; see {self.prog} --help\n")


def command_line() -> Parser:
    parser = Parser(prog="minipeft", description="Parameter-efficient fine-tuning of RoBERTa in plain PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    add_train_flags(commands.add_parser("train", help="fine-tune on a task"))

    add_compare_flags(commands)

    evaluate = commands.add_parser("evaluate", help="loss and metrics of a run's best adapter")
    evaluate.add_argument("run", help="folder of a finished run")
    evaluate.add_argument("--split", help="split to evaluate [the task's validation split]")
    evaluate.add_argument("--data", help="folder with <task>/<split>.parquet [the run's own data]")

    predict = commands.add_parser("predict", help="label and probabilities of texts")
    predict.add_argument("run", help="folder of a finished run")
    predict.add_argument("--text", action="append", help="a text; may be given several times")
    predict.add_argument("--pair", action="append", help="its second sentence, for tasks on pairs")
    predict.add_argument("--output", help="new file for the predictions of --input [standard output]")
    predict.add_argument(
        "--glue-test", metavar="FOLDER", help="predict GLUE's test split into FOLDER/RTE.tsv, …, as its server takes it"
    )
    predict.add_argument("--data", help="folder with <task>/test.parquet for --glue-test [the run's own data]")
    for command in (evaluate, predict):
        command.add_argument(
            "--input",
            help="jsonl, csv, tsv, parquet or txt (one text a line), a folder of such files, or - for standard input",
        )
        command.add_argument(
            "--format", dest="file_format", help="of --input: txt, csv, tsv or jsonl [by the ending; - : txt or jsonl]"
        )
        command.add_argument("--text-column", help="column of the texts in --input [the task's, or text]")
        command.add_argument("--pair-column", help="column of the second sentences [the task's, or pair]")
        if command is evaluate:
            command.add_argument("--label-column", help="column of the labels in --input [the run's]")
        command.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")

    pretrain = commands.add_parser(
        "pretrain", help="masked-language-model pretraining, from nothing or from a checkpoint"
    )
    pretrain.add_argument(
        "--text", nargs="+", required=True, help='text files, a paragraph a line, or jsonl with a "text"'
    )
    pretrain.add_argument("--output", required=True, help="folder that becomes the checkpoint")
    pretrain.add_argument("--model", help="checkpoint to continue [none: a new model and tokenizer]")
    pretrain.add_argument("--start", default="counts", help="of a new model: word co-occurrence counts, or random")
    pretrain.add_argument("--vocab-size", type=int, default=8192, help="of a new tokenizer [8192]")
    pretrain.add_argument("--hidden-size", type=int, default=256, help="of a new model [256]")
    pretrain.add_argument("--num-hidden-layers", type=int, default=6, help="of a new model [6]")
    pretrain.add_argument("--num-attention-heads", type=int, default=4, help="of a new model [4]")
    pretrain.add_argument("--steps", type=int, default=10_000, help="optimizer steps [10000]")
    pretrain.add_argument("--batch-tokens", type=int, default=8192, help="tokens a step [8192]")
    pretrain.add_argument("--block-length", type=int, default=128, help="tokens a sequence [128]")
    pretrain.add_argument(
        "--long-block-length", type=int, default=512, help="in the last 10 percent of the steps [512]"
    )
    pretrain.add_argument("--lr", type=float, default=1e-3, help="peak learning rate [1e-3]")
    pretrain.add_argument("--warmup-steps", type=int, default=500, help="[500]")
    pretrain.add_argument("--weight-decay", type=float, default=0.01, help="[0.01]")
    pretrain.add_argument(
        "--dropout", type=float, default=0.0, help="a new model keeps it in config.json, --model its own [0]"
    )
    pretrain.add_argument("--evaluate-every", type=int, default=500, help="steps [500]")
    pretrain.add_argument("--checkpoint-minutes", type=float, default=5.0, help="minutes between checkpoints [5]")
    pretrain.add_argument("--seed", type=int, default=0, help="[0]")
    pretrain.add_argument("--precision", default="auto", help="auto, fp32 or bf16 [auto]")
    pretrain.add_argument("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    pretrain.add_argument("--resume", action="store_true", help="continue the run in --output")
    pretrain.add_argument("--quiet", action="store_true", help="no progress bar")

    export = commands.add_parser(
        "export",
        aliases=["merge"],
        help="merge a run's adapter: a checkpoint that transformers loads, and the largest difference of a logit",
    )
    export.add_argument("run", help="folder of a finished run")
    export.add_argument("folder", help="new folder for the checkpoint")

    fetch = commands.add_parser(
        "fetch", help="download a checkpoint into the Hugging Face cache, verified; print its folder"
    )
    fetch.add_argument("name", help="roberta-base, roberta-large, …, owner/name or owner/name@revision")
    return parser


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `minipeft train` and of train.py."""
    flag = parser.add_argument
    flag(
        "--task",
        default="auto",
        help="rte, sst2, cola, mrpc, stsb, qnli, qqp, mnli or wnli; or a name for a custom dataset "
        "[auto: rte, or the name of --data's file or folder]",
    )
    flag("--method", default="lora", help="lora, bitfit, dora, ia3, full, head, …: minipeft/methods/ [lora]")
    flag("--rank", type=int, help=f"LoRA's rank [{RANK}]")
    flag("--alpha", type=float, help=f"LoRA's alpha; alpha / rank scales the update [{ALPHA:g}]")
    flag("--dropout", type=float, help=f"on LoRA's input [{DROPOUT:g}]")
    flag("--targets", nargs="+", help="LoRA's layers: query key value output intermediate ffn_output [query value]")
    flag(
        "--method-options",
        nargs="+",
        metavar="NAME=VALUE",
        help="the method's other settings, such as rslora=true or init=pissa: minipeft/methods/",
    )
    flag("--init-adapter", metavar="RUN", help="start from another run's adapter; a new head where the labels differ")
    flag("--model", default="auto", help="a name or a folder [auto: roberta-base, else the bundled roberta-mini]")
    flag(
        "--data",
        default="auto",
        help="folder with <task>/train.parquet, …; or a custom dataset: a csv, tsv, jsonl or parquet file, or a folder "
        "with train.csv, … and, optionally, validation.csv, test.csv [auto: GLUE; without a network, synthetic data]",
    )
    flag("--text-column", help="of a custom dataset: the texts [text]")
    flag("--pair-column", help="of a custom dataset: the second texts [none]")
    flag("--label-column", help="of a custom dataset: the labels, as names or numbers [label]")
    flag(
        "--label-type",
        default="auto",
        help="of a custom dataset: classes, or numbers (regression) [auto: numbers if all are and one has a fraction]",
    )
    flag("--validation", metavar="FILE", help="of a custom dataset: the validation split [10 percent of the rows]")
    flag(
        "--holdout",
        type=float,
        metavar="FRACTION",
        help="hold out this fraction of the training split and choose the best epoch on it; the validation split is "
        "reported at that epoch and chooses nothing [none: the best epoch on the validation split]",
    )
    flag(
        "--select-by",
        metavar="METRIC",
        help="the metric, or eval_loss, that chooses the best epoch [the task's first metric]",
    )
    flag("--epochs", type=int, help="[by task: rte 25, sst2 5, …: training/recipes.py]")
    flag("--lr", type=float, help="peak learning rate [by task and method: training/recipes.py]")
    flag("--batch-size", type=int, default=BATCH_SIZE, help=f"sequences [{BATCH_SIZE}]")
    flag("--grad-accum", type=int, default=GRAD_ACCUM, help=f"batches in an optimizer step [{GRAD_ACCUM}]")
    flag(
        "--warmup-steps",
        type=int,
        help=f"steps of linear warmup [{WARMUP_STEPS}, or 10 percent of a run of fewer than {9 * WARMUP_STEPS} steps]",
    )
    flag("--weight-decay", type=float, default=WEIGHT_DECAY, help=f"AdamW's, on matrices [{WEIGHT_DECAY:g}]")
    flag(
        "--max-length", type=int, help="tokens of a sequence; longer ones are truncated [512, or what the model takes]"
    )
    flag("--seed", type=int, default=42, help="of the head, LoRA's A, the order and dropout [42]")
    flag("--precision", default="auto", help="auto, fp32 or bf16 [auto: bf16 on CUDA, else fp32]")
    flag("--device", default="auto", help="auto, cpu, cuda or mps [auto]")
    flag(
        "--max-tokens",
        type=int,
        help="most tokens of a batch, which bounds the memory "
        "[CPU: by the hidden size, 768 for roberta-base in fp32; CUDA: 16384]",
    )
    flag("--compile", action="store_true", help="let torch.compile fuse the small operations")
    flag(
        "--activation-checkpointing",
        action="store_true",
        help="compute each layer a second time rather than keep what it computed: less memory, more time",
    )
    flag(
        "--cuda-graphs",
        action="store_true",
        help="on CUDA, record a batch's operations and ask for all of them at once: faster where batches are short",
    )
    flag("--train-limit", type=int, help="train on the first N examples [all]")
    flag("--eval-limit", type=int, help="evaluate on the first N examples [all]")
    flag("--output", help="folder of the run [runs/<task>-<method>…]")
    flag(
        "--checkpoint-minutes",
        type=float,
        default=CHECKPOINT_MINUTES,
        help=f"minutes between checkpoints; each epoch ends with one as well [{CHECKPOINT_MINUTES:g}]",
    )
    flag("--resume", action="store_true", help="continue from the run's last checkpoint")
    flag("--quiet", action="store_true", help="no banner and no progress bars")


class SeveralValues(Parser):
    """Takes the flags of `train` for `compare`: each that has a value has several, kept as the words they are."""

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        if options.get("action") != "store_true":
            options = {"help": options["help"], "metavar": "VALUE", "nargs": "+", "action": "extend"}
        return super().add_argument(*names, **options)


def add_compare_flags(commands: Any) -> None:
    """`minipeft compare`: the flags of `train`, and in place of some its own."""
    settings = SeveralValues(add_help=False)
    add_train_flags(settings)
    compare = commands.add_parser(
        "compare",
        help="several runs side by side: tasks, methods, ranks, learning rates, seeds → tables and a page",
        usage="minipeft compare --task TASK ... --method METHOD ... --output DIR [settings of train]",
        parents=[settings],
        conflict_handler="resolve",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train every combination of tasks, methods, ranks, learning rates and seeds, and compare them.",
        epilog=(
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
    flag = compare.add_argument
    flag("--task", nargs="+", required=True, metavar="TASK", help="rte, sst2, cola, mrpc, stsb, qnli, qqp, mnli, wnli")
    flag("--method", nargs="+", required=True, metavar="METHOD", help="lora, bitfit, full, head, …: minipeft/methods/")
    flag("--seed", nargs="+", action="extend", metavar="VALUE", help="three or more show a spread [1 2 3]")
    flag("--output", required=True, metavar="DIR", help="folder of the comparison")
    flag("--jobs", type=int, metavar="N", help="runs at once [CPU: as cores and memory allow, else 1]")
    flag("--resume", action="store_true", help="continue the comparison in --output; finished runs are kept")
    flag("--quiet", action="store_true", help="no progress bar")
