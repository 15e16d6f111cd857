"""Train the top K layers of an encoder, and all of them: accuracy against time, for LoRA and full fine-tuning.

    python benchmarks/train_layers.py --data ../shared/glue --model FOLDER --task sst2 --seeds 42 1 2

FOLDER holds a checkpoint, for example all-MiniLM-L6-v2. Each training adds a row to
benchmarks/results/train_layers.json when it ends; those that are there are not run again. `--peer` trains with
transformers + peft too, all layers in fp32. `python docs/tables.py` writes the table of docs/methods.md.
"""

import argparse
from collections.abc import Iterator

from trials import ROOT, Trial, run_trials

RESULTS = ROOT / "benchmarks" / "results" / "train_layers.json"
# Of each task: rows and epochs, and the learning rates are those of docs/ablations.md.
SIZES = {"sst2": (20_000, 2), "mrpc": (3_668, 3), "stsb": (5_749, 3)}
METHODS = {"lora": "--method lora --rank 8 --alpha 16 --dropout 0.0 --lr 1e-3", "full": "--method full --lr 1e-4"}


def trials(wanted: argparse.Namespace) -> Iterator[Trial]:
    """Yield the trainings, the smallest number of layers first."""
    rows, epochs = SIZES[wanted.task]
    common = f"--task {wanted.task} --train-limit {rows} --epochs {epochs} --max-length 128 --threads 1"
    common += f" --warmup-steps 30 --precision {wanted.precision}"
    for seed in wanted.seeds:
        for method in wanted.methods:
            for layers in wanted.layers:
                flags = f"{common} {METHODS[method]}" + (f" --train-layers {layers}" if layers != "all" else "")
                yield Trial(wanted.task, f"{method}, {layers} layers", wanted.model, flags, seed)
            if wanted.peer:
                name = f"{method}, all layers, transformers + peft"
                flags = f"{common} {METHODS[method]}".replace(wanted.precision, "fp32")
                yield Trial(wanted.task, name, wanted.model, flags, seed, "benchmarks/peer_accuracy.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--data", required=True, help="folder with GLUE's tasks")
    flag("--model", default="all-MiniLM-L6-v2", help="name or folder of a checkpoint of six layers")
    flag("--task", choices=SIZES, default="sst2", help="[sst2]")
    flag("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="[all]")
    flag("--layers", nargs="+", default=["1", "2", "4", "all"], help="[1 2 4 all]")
    flag("--precision", default="fp32", help="[fp32]")
    flag("--seeds", nargs="+", type=int, default=[42, 1, 2], help="[42 1 2]")
    flag("--peer", action="store_true", help="train with transformers + peft as well")
    wanted = parser.parse_args()
    run_trials(trials(wanted), wanted.data, RESULTS)


if __name__ == "__main__":
    main()
