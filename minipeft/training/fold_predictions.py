"""What a run with --fold predicts for the rows of its fold, a JSON object for each."""

import json
from typing import Any

import numpy as np

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
    drawn_rows = job.task.validation_rows
    assert drawn_rows is not None
    if problem_row(problem.name).per_token:
        return
    predictions = problem.predictions(
        predict_logits(model, validation, job.schedule.max_tokens, job.processes), problem.outputs
    )

    def label_of(target: Any) -> Any:
        return [problem.labels[index] for index in sorted(problem.count([target]))] if problem.labels else target

    def write() -> None:
        numbers = (np.flatnonzero(drawn_rows) + 1).tolist()  # more than predictions with --eval-limit
        lines = (
            json.dumps({"row": number, "target": label_of(target), **prediction}) + "\n"
            for number, target, prediction in zip(numbers, validation.split.labels, predictions, strict=False)
        )
        write_text(job.output / PREDICTIONS, "".join(lines))

    job.processes.on_rank_zero(write)
