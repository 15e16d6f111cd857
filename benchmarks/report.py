"""Repeat the course report that this project starts from, and test its two conclusions.

    python benchmarks/report.py --data ../shared/glue --model roberta-base

The report fine-tunes roberta-base with LoRA and with BitFit on RTE and on SST-2. The four trainings have exactly its
settings. Two more train SST-2 at minipeft's own learning rate, and the ranks 1 to 64 follow. Each training adds a row
to benchmarks/results/report.json when it ends; those that are there are not run again, so that the study can stop and
continue. At the end the tables and curves of docs/report.md are written; `--page` writes these alone.

The whole study takes a GPU. With a small encoder and few rows the same steps run on a CPU:

    python benchmarks/report.py --data ../shared/glue --model roberta-mini --sst2-rows 2000 --rte-rows 600 \\
        --rank-task sst2 --rank-rows 500 --rank-epochs 8 --rank-lr 2e-3 --eval-rows 200
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from trials import ROOT, Trial, run_trials

RESULTS = ROOT / "benchmarks" / "results" / "report.json"
# The report's settings of both tasks and both methods.
COMMON = "--epochs {epochs} --lr {lr} --warmup-steps 100 --weight-decay 0.01 --batch-size 16 --grad-accum 4"
METHODS = {"LoRA": "--method lora --rank 2 --alpha 8 --dropout 0.01", "BitFit": "--method bitfit"}
EPOCHS = {"rte": 25, "sst2": 5}
RATES = {"rte": "5e-4", "sst2": "2e-5"}
RANKS = (1, 2, 4, 8, 16, 32, 64)


def trials(wanted: argparse.Namespace) -> Iterator[Trial]:
    """Yield the trainings: for each seed the report's four and SST-2 at the default learning rate, then the ranks."""
    limit = {"rte": wanted.rte_rows, "sst2": wanted.sst2_rows}
    for seed in wanted.seeds:
        for task, epochs in EPOCHS.items():
            for name, method in METHODS.items():
                flags = f"--task {task} {method} {COMMON.format(epochs=epochs, lr=RATES[task])}{rows(limit[task])}"
                yield Trial("report", f"{task} {name}", wanted.model, flags, seed)
        for name, method in METHODS.items():
            flags = f"--task sst2 {method} {COMMON.format(epochs=EPOCHS['sst2'], lr=wanted.default_lr[name])}"
            yield Trial("default rate", f"sst2 {name}", wanted.model, flags + rows(wanted.sst2_rows), seed)
    common = COMMON.format(epochs=wanted.rank_epochs, lr=wanted.rank_lr)
    for seed in wanted.seeds:
        for rank in RANKS:
            flags = f"--task {wanted.rank_task} {METHODS['LoRA'].replace('--rank 2', f'--rank {rank}')} {common}"
            yield Trial("rank", str(rank), wanted.model, flags + rows(wanted.rank_rows, wanted.eval_rows), seed)


def rows(train: int | None, evaluation: int | None = None) -> str:
    """Return the flags that limit the rows; none where the whole split is taken."""
    return (f" --train-limit {train}" if train else "") + (f" --eval-limit {evaluation}" if evaluation else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--data", help="folder with GLUE's rte/ and sst2/")
    flag("--model", default="roberta-base", help="name or folder of a checkpoint [roberta-base]")
    flag("--seeds", nargs="+", type=int, default=[42, 1, 2])
    flag("--parts", nargs="+", default=["report", "default rate", "rank"], help="which parts to run [all]")
    flag("--rte-rows", type=int, help="training rows of RTE [all]")
    flag("--sst2-rows", type=int, help="training rows of SST-2 [all]")
    flag("--rank-task", default="rte", choices=list(EPOCHS), help="task of the ranks [rte]")
    flag("--rank-rows", type=int, help="training rows of the ranks [all]")
    flag("--rank-epochs", type=int, default=EPOCHS["rte"])
    flag("--rank-lr", default=RATES["rte"])
    flag("--eval-rows", type=int, help="validation rows of the ranks [all]")
    flag("--page", action="store_true", help="write the page from the rows that are there")
    wanted = parser.parse_args()
    small = Path(wanted.model).name == "roberta-mini"  # minipeft's default learning rates of each size
    wanted.default_lr = {"LoRA": "2e-3" if small else "5e-4", "BitFit": "3e-3" if small else "5e-4"}
    if not wanted.page:
        if wanted.data is None:
            parser.error("--data is missing: name the folder with GLUE's rte/ and sst2/, or pass --page")
        run_trials((trial for trial in trials(wanted) if trial.part in wanted.parts), wanted.data, RESULTS)
    sys.path.insert(0, str(ROOT / "docs"))
    import curves
    import tables

    curves.main()
    tables.main()


if __name__ == "__main__":
    main()
