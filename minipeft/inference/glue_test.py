"""Predictions for the test splits of GLUE in the format of its server: one tsv file per split."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from minipeft.data.tasks.splits import read_chunks
from minipeft.errors import MinipeftError
from minipeft.files import user_path, write_together
from minipeft.inference.predict import LoadedRun
from minipeft.lease import Lease

# task → (file, split) of each test split, with the file names that gluebenchmark.com expects
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
BY_NAME = ("mnli", "qnli", "rte")  # the server expects class names for these tasks, and class indices for the others
SCORES = {"stsb": 5.0}  # a task with scores, and the largest one that the server accepts


def predict_glue_test(run: LoadedRun, folder: str | Path, data: str | None = None) -> list[Path]:
    """Predict the test split of a run's task (both splits for MNLI) in the format of the GLUE server.

    The files are written when every row is predicted; `folder` may contain those of other tasks. `data` is as in
    `LoadedRun.source`.
    """
    folder = user_path(folder)
    if run.task.is_custom:
        raise MinipeftError(f"{run.task.name} is not a task of GLUE; use --input")
    files = [(folder / name, split) for name, split in FILES[run.task.name]]
    _check_new(folder, [path for path, _ in files])
    source = run.source(data)
    texts = {path: "index\tprediction\n" + "".join(_lines(run, split, source)) for path, split in files}
    with Lease(folder):
        _check_new(folder, list(texts))
        write_together({path: partial(Path.write_text, data=text, encoding="utf-8") for path, text in texts.items()})
    return list(texts)


def _check_new(folder: Path, files: list[Path]) -> None:
    """Raise MinipeftError where one of the files of a folder exists, or the folder is a file."""
    for path in files:
        if path.exists() or (folder.exists() and not folder.is_dir()):
            raise MinipeftError(f"{path if folder.is_dir() else folder} is there already; choose another folder")


def _lines(run: LoadedRun, split: str, source: str) -> Iterator[str]:
    index = 0
    for chunk in read_chunks(run.task, split, source, labelled=False):
        # By the task's names, which the model may write in another way.
        for row in run.task.problem.predictions(run.predict_logits(chunk.texts, chunk.pairs), run.task.problem.outputs):
            if largest := SCORES.get(run.task.name):
                prediction = f"{min(max(row['score'], 0.0), largest):.6f}"
            else:
                prediction = row["label"] if run.task.name in BY_NAME else str(run.task.labels.index(row["label"]))
            yield f"{index}\t{prediction}\n"
            index += 1
