"""What a run with --fold predicts for the rows of its fold, a JSON object for each."""

import json

from minipeft.data.tables.remote_tables.hub_rows import open_split
from minipeft.data.tokens.examples import Encoded
from minipeft.files import write_text
from minipeft.model.classifier import SequenceClassifier
from minipeft.problems import problem_row
from minipeft.problems.problem import Problem
from minipeft.training.evaluate import predict_logits
from minipeft.training.settings.job import Job

PREDICTIONS = "fold_predictions.jsonl"


def write_fold_predictions(job: Job, model: SequenceClassifier, validation: Encoded, problem: Problem) -> None:
    """Write the number of each row in the training file, from 1, its label, and what `predict` returns for its text.

    Tags of words are left out.
    """
    task = job.task
    drawn_rows = task.validation_rows
    assert drawn_rows is not None
    if problem_row(problem.name).per_token:
        return
    predictions = problem.predictions(
        predict_logits(model, validation, job.schedule.max_tokens, job.processes), problem.outputs
    )

    def write() -> None:
        labelled = open_split(dict(task.files)["train"]).read_labelled([task.label_column])
        rows = enumerate(zip(drawn_rows.tolist(), labelled, strict=True), 1)
        chosen = ((number, label) for number, (drawn, (_, (label,))) in rows if drawn)
        lines = (
            json.dumps({"row": number, "target": label, **prediction}, default=str) + "\n"
            for (number, label), prediction in zip(chosen, predictions, strict=False)  # --eval-limit ends it
        )
        write_text(job.output / PREDICTIONS, "".join(lines))

    job.processes.on_rank_zero(write)
