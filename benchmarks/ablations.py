"""Fill docs/ablations.md: one table, one command a row, SST-2 with a small encoder and a baseline without any.

    python benchmarks/ablations.py --data ../shared/glue --model FOLDER

FOLDER holds a checkpoint, for example all-MiniLM-L6-v2. Every row is one `python train.py` with seed 42, which changes
one thing of the reference: LoRA of rank 8. The row with padded batches is the reference's training with transformers +
peft. Rows whose accuracy differs from the reference's by less than two standard errors are trained again with the seeds
1 and 2, and so is the reference. Each training adds a row to benchmarks/results/ablations.json when it ends; those that
are there are not run again. `--only` takes some rows, `--list` prints every command, and `--page` writes the page from
the rows that are there.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import describe_machine, write_rows
from trials import IDENTITY, ROOT, Trial, read_rows, run_trials

from minipeft.data.tasks.splits import read_split
from minipeft.data.tasks.task import get_task

sys.path.insert(0, str(ROOT / "docs"))
import ablation_tables

RESULTS = ROOT / "benchmarks" / "results" / "ablations.json"
SEEDS = (42, 1, 2)


def trials(model: str, seed: int, names: list[str]) -> Iterator[Trial]:
    """Yield the trainings of the named rows with one seed."""
    for row in ablation_tables.ROWS:
        if row.flags and row.name in names:
            yield Trial(row.part, row.name, model, row.all_flags(), seed, row.script)


def bag_of_words(data: str, rows: int) -> float:
    """Return the accuracy of logistic regression on the counts of words and of pairs of words."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    task = get_task("sst2")
    train, validation = read_split(task, "train", data, rows), read_split(task, task.validation, data)
    words = CountVectorizer(ngram_range=(1, 2), min_df=2)
    classifier = LogisticRegression(C=0.5, max_iter=2000)
    classifier.fit(words.fit_transform(train.texts), train.labels)
    return float(classifier.score(words.transform(validation.texts), validation.labels))


def run_bag_of_words(data: str, path: Path) -> None:
    """Add the row of the baseline, unless it is there."""
    name = ablation_tables.BAG_OF_WORDS
    if any(row["name"] == name for row in read_rows(path)):
        return
    start = time.perf_counter()
    accuracy = bag_of_words(data, ablation_tables.TRAIN_ROWS)
    row: dict[str, Any] = {"part": "baseline", "name": name, "model": "scikit-learn", "flags": "", "seed": 42}
    row |= {"last": {"epoch": 1, "value": accuracy}, "parameters": None, "train_seconds": time.perf_counter() - start}
    write_rows(path, describe_machine("cpu"), [row], IDENTITY)
    print(f"{name}: {accuracy:.4f}, {row['train_seconds']:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--data", help="folder with GLUE's sst2/")
    flag("--model", default="all-MiniLM-L6-v2", help="name or folder of a checkpoint")
    flag("--only", nargs="+", help="names of rows; the reference is always one of them")
    flag("--list", action="store_true", help="print the command of every row")
    flag("--page", action="store_true", help="write the page from the rows that are there")
    wanted = parser.parse_args()
    names = [row.name for row in ablation_tables.ROWS]
    if unknown := set(wanted.only or ()) - set(names):
        parser.error(f"--only: {sorted(unknown)[0]!r} is not a row. Take some of: {', '.join(names)}")
    if wanted.list:
        return print("\n".join(f"{row.name}: {row.command()}" for row in ablation_tables.ROWS))
    if not wanted.page:
        if wanted.data is None:
            parser.error("--data is missing: name the folder with GLUE's sst2/, or pass --page")
        chosen = [ablation_tables.REFERENCE, *(wanted.only or names)]
        if ablation_tables.BAG_OF_WORDS in chosen:
            run_bag_of_words(wanted.data, RESULTS)
        run_trials(trials(wanted.model, SEEDS[0], chosen), wanted.data, RESULTS)
        close = [name for name in ablation_tables.close_to_reference(read_rows(RESULTS)) if name in chosen]
        for seed in SEEDS[1:]:
            run_trials(trials(wanted.model, seed, [ablation_tables.REFERENCE, *close]), wanted.data, RESULTS)
    import tables

    tables.main()


if __name__ == "__main__":
    main()
