"""The table of docs/ablations.md: its rows, their commands, and the sentence that each row teaches."""

import shlex
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from report_tables import TASKS, dates, entries, markdown

TRAIN_ROWS, VALIDATION_ROWS = 20_000, 872
COMMON = f"--task sst2 --train-limit {TRAIN_ROWS} --max-length 128 --threads 1"
LORA = "--method lora --alpha 16 --dropout 0.0"
RATE, EPOCHS, PRECISION, WARMUP = "--lr 1e-3", "--epochs 1", "--precision fp32", "--warmup-steps 30"
REFERENCE, BAG_OF_WORDS = "LoRA, rank 8", "bag of words, logistic regression"
MODEL = "all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Row:
    """One row: the question that it answers, and the flags that differ from the reference's; none is the baseline."""

    part: str
    name: str
    question: str
    flags: str
    script: str = "train.py"

    def all_flags(self) -> str:
        """Return the flags of the script, with the reference's for those that the row leaves out."""
        rest = [flag for flag in (RATE, EPOCHS, PRECISION, WARMUP) if f"{flag.split()[0]} " not in f"{self.flags} "]
        return " ".join([COMMON, self.flags, *rest])

    def command(self) -> str:
        if not self.flags:
            return f'python benchmarks/ablations.py --data GLUE --only "{self.name}"'
        return shlex.join(f"python {self.script} --data GLUE --model {MODEL} {self.all_flags()} --seed 42".split())


ROWS = (
    Row("baseline", BAG_OF_WORDS, "What do word counts give without an encoder?", ""),
    Row("method", "frozen features", "What do the pretrained features give, with a trained head?", "--method head"),
    Row(
        "method",
        "last layer only",
        "How much does adapting the last layer add?",
        f"{LORA} --rank 8 --method-options rank_pattern={{{','.join(f'%{layer}%:0' for layer in range(5))}}}".replace(
            "%", '"'
        ),
    ),
    *(
        Row("rank", f"LoRA, rank {rank}", question, f"{LORA} --rank {rank}")
        for rank, question in (
            (1, "Is one direction enough?"),
            (2, "Are two directions enough?"),
            (8, "The reference:"),
            (64, "Does a high rank help?"),
        )
    ),
    Row(
        "method",
        "LoRA, all linear layers",
        "Do more adapted layers help?",
        f"{LORA} --rank 8 --targets query key value output intermediate ffn_output",
    ),
    Row("method", "BitFit", "Are biases enough?", "--method bitfit"),
    Row("method", "full fine-tuning", "What do all weights add?", "--method full --lr 1e-4"),
    Row(
        "packing",
        "padded batches, transformers + peft",
        "Does padding change the result?",
        f"{LORA} --rank 8",
        "benchmarks/peer_accuracy.py",
    ),
    Row("precision", "bf16", "Does bf16 cost accuracy?", f"{LORA} --rank 8 --precision bf16"),
    Row("learning rate", "learning rate x 0.3", "Is a lower rate as good?", f"{LORA} --rank 8 --lr 3e-4"),
    Row("learning rate", "learning rate x 3", "Is a higher rate as good?", f"{LORA} --rank 8 --lr 3e-3"),
    Row("warmup", "no warmup", "Does warmup matter?", f"{LORA} --rank 8 --warmup-steps 0"),
)


def close_to_reference(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return the names of the rows whose first seed is within two standard errors of the reference's."""
    first = {row["name"]: row["last"]["value"] for row in rows if row["seed"] == 42}
    reference = first.get(REFERENCE)
    if reference is None:
        return []
    error = standard_error(reference)
    return [name for name, value in first.items() if name != REFERENCE and abs(value - reference) < 2 * error]


def standard_error(accuracy: float) -> float:
    """Return the standard error of the difference of two accuracies on the validation split, as if it were two."""
    return float((2 * accuracy * (1 - accuracy) / VALIDATION_ROWS) ** 0.5)


def lesson(name: str, values: list[float], reference: list[float]) -> str:
    """Return what a row teaches: its difference from the reference, and whether it is two standard errors or more."""
    if name == REFERENCE:
        return "the other rows are compared with it."
    if not reference:
        return "Not compared: the reference has not been run."
    difference = statistics.mean(values) - statistics.mean(reference)
    error = standard_error(statistics.mean(reference))
    if abs(difference) < 2 * error:
        return f"Not distinguishable from the reference: {difference:+.3f}, within two standard errors."
    direction = "Better" if difference > 0 else "Worse"
    return f"{direction} than the reference by {abs(difference):.3f}, more than two standard errors."


def ablations() -> str:
    """One line a row: the accuracy of its seeds, seconds, what was learned; rows that were not run say so."""
    content = entries("ablations")
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in content.values():
        for row in entry["rows"]:
            found.setdefault(row["name"], []).append(row)
    reference = [row["last"]["value"] for row in found.get(REFERENCE, [])]
    lines = []
    for row in ROWS:
        rows = found.get(row.name, [])
        values = [entry["last"]["value"] for entry in rows]
        learned = f"{row.question} {lesson(row.name, values, reference) if rows else 'Not run.'}"
        parameters = rows[0]["parameters"] if rows else None
        lines.append(
            [
                row.name,
                f"{parameters['method']:,}" if parameters else "",
                ", ".join(f"{value:.3f}" for value in values) or "not run",
                f"{rows[0]['train_seconds']:.0f}" if rows else "",
                learned,
            ]
        )
    columns = ["row", "trainable parameters", "accuracy, seeds 42, 1, 2", "seconds, seed 42", "what was learned"]
    text = markdown(columns, [False, True, False, True, False], lines)
    for machine, entry in content.items():
        text += f"\nRun on {machine}; {dates(entry['rows'])}; other work shared the cores.\n"
    return text


def ablation_commands() -> str:
    """The command of each row."""
    return "```bash\n" + "\n".join(f"{row.command()}  # {row.name}" for row in ROWS) + "\n```\n"


def train_layers() -> str:
    """The best metric and the seconds of training with the top layers only and with all, and of the peer."""
    content, text = entries("train_layers"), ""
    for machine, entry in content.items():
        found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for row in sorted(entry["rows"], key=lambda row: (row["model"], row["part"], row["name"])):
            found.setdefault((row["part"], row["model"], row["name"]), []).append(row)
        lines = []
        for (task, model, name), rows in found.items():
            method, part, *peer = name.split(", ")
            layers = {"1 layers": "top layer", "all layers": "all layers"}.get(part, f"top {part}")
            case = [TASKS[task], model, {"lora": "LoRA, r = 8"}.get(method, method), ", ".join([layers, *peer])]
            seconds = [str(round(statistics.mean(values))) for values in zip(*map(epoch_seconds, rows), strict=True)]
            lines.append([*case, mean_and_error([row["best"]["value"] for row in rows]), str(len(rows)), *seconds])
        columns = ["data", "model", "method", "trained", "best value", "seeds", "seconds", "of the last epoch"]
        text += markdown(columns, [False] * 4 + [True] * 4, lines)
        text += f"\nRun on {machine}; {dates(entry['rows'])}; other work shared the cores.\n"
    return text


def epoch_seconds(row: dict[str, Any]) -> tuple[float, float]:
    """Return the seconds of a training and of its last epoch."""
    return row["train_seconds"], row["epochs"][-1]["seconds"]


def mean_and_error(values: list[float]) -> str:
    """Return the mean of the values of several seeds and its standard error."""
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{error}"


def tables() -> dict[str, Callable[[], str]]:
    return {"ablations": ablations, "ablation-commands": ablation_commands, "train-layers": train_layers}
