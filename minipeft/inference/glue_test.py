"""Predictions for GLUE's test splits, as its server takes them: one file a split, a header and a line a row."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from minipeft.data.splits import read_chunks
from minipeft.errors import MinipeftError
from minipeft.files import make_folder, write_together
from minipeft.inference.predict import LoadedRun

# task → (file, split) of each of its test splits, under the names that gluebenchmark.com asks for
FILES = {
    "cola": (("CoLA.tsv", "test"),),
    "sst2": (("SST-2.tsv", "test"),),
    "mrpc": (("MRPC.tsv", "test"),),
    "stsb": (("STS-B.tsv", "test"),),
    "qqp": (("QQP.tsv", "test"),),
    "mnli": (("MNLI-m.tsv", "test_matched"), ("MNLI-mm.tsv", "test_mismatched")),
    "qnli": (("QNLI.tsv", "test"),),
    "rte": (("RTE.tsv", "test"),),
    "wnli": (("WNLI.tsv", "test"),),
}
BY_NAME = ("mnli", "qnli", "rte")  # whose classes the server takes by their names; the others by their numbers
LARGEST_SCORE = 5.0  # of STS-B, which the server asks for; the smallest is 0


def predict_glue_test(run: LoadedRun, folder: str | Path, data: str | None = None) -> list[Path]:
    """Predict the test split of a run's task (MNLI: both) into `folder`, where other tasks' files may be already.

    Nothing is written unless every row is predicted; a file that is there is refused.
    """
    folder = Path(folder)
    if run.task.is_custom:
        raise MinipeftError(f"{run.task.name} is none of GLUE's tasks, and has no test split of it; use --input")
    files = [(folder / name, split) for name, split in FILES[run.task.name]]
    for path, _ in files:
        if path.exists() or (folder.exists() and not folder.is_dir()):
            raise MinipeftError(f"{path if folder.is_dir() else folder} is there already; choose another folder")
    source = run.source(data)
    texts = {path: "index\tprediction\n" + "".join(_lines(run, split, source)) for path, split in files}
    make_folder(folder)
    write_together({path: partial(_write, text) for path, text in texts.items()})
    return list(texts)


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _lines(run: LoadedRun, split: str, source: str) -> Iterator[str]:
    index = 0
    for chunk in read_chunks(run.task, split, source, labelled=False):
        for row in run.predict(chunk.texts, chunk.pairs):
            if run.task.is_regression:
                prediction = f"{min(max(row['score'], 0.0), LARGEST_SCORE):.6f}"
            else:
                prediction = row["label"] if run.task.name in BY_NAME else str(run.task.numbers[row["label"]])
            yield f"{index}\t{prediction}\n"
            index += 1
