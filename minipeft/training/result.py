"""What `minipeft.train` returns: the figures of a run, and its model, which predicts."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minipeft.data.tokens.examples import Examples
from minipeft.data.tokens.tokenizer import load_tokenizer
from minipeft.device import peak_memory
from minipeft.files import FORMAT, read_json_lines
from minipeft.methods import count_parameters
from minipeft.model.classifier import SequenceClassifier
from minipeft.training.progress import HOLDOUT, Progress, best_epoch
from minipeft.training.settings.job import Job
from minipeft.version import __version__

if TYPE_CHECKING:
    from minipeft.inference.predictor import Predictor


@dataclass(frozen=True, repr=False)
class Result:
    """What a run leaves.

    Attributes:
        content: result.json's: task, method, model, data, examples (counts), metric, best and last (epoch and value),
            parameters (counts), train_seconds, samples_per_second, peak_memory_bytes, seed and versions.
        model: the model with the best epoch's adapter, in evaluation mode.
        output: the run's folder.
        job: the settings, complete, and what was found for them.
    """

    content: dict[str, Any]
    model: SequenceClassifier
    output: Path
    job: Job

    def __repr__(self) -> str:
        content, best = self.content, self.content["best"]
        return (
            f"Result(task={content['task']!r}, method={content['method']!r}, "
            f"{content['metric']}={best['value']:.4f}, epoch={best['epoch']}, output={str(self.output)!r})"
        )

    @property
    def best(self) -> float:
        """The best epoch's value of the task's metric."""
        return float(self.content["best"]["value"])

    @property
    def last(self) -> float:
        """The last epoch's value of the task's metric."""
        return float(self.content["last"]["value"])

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl: one for each evaluation."""
        return read_json_lines(self.output / "metrics.jsonl")

    @property
    def metrics(self) -> dict[str, float]:
        """The validation loss and metrics of the best epoch, by name."""
        best = next(row for row in self.history if row["epoch"] == self.content["best"]["epoch"])
        return {name: best[name] for name in ("eval_loss", *self.job.task.metrics)}

    @cached_property
    def predictor(self) -> Predictor:
        """The model with its tokenizer, behind `predict` and `predict_proba`."""
        from minipeft.inference.predictor import Predictor  # inference builds on training; only a result points back

        job = self.job
        task = dataclasses.replace(job.task, problem=job.task.problem.with_details(self.content))
        return Predictor(self.model, load_tokenizer(job.model.folder), task, job.config, job.settings.device)

    def predict(self, texts: Iterable[str], pairs: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """Return the class name and all probabilities of each text, or its score for regression, with six digits.

        Args:
            texts: the texts, or the first texts of pairs.
            pairs: the second texts, for tasks on pairs.
        """
        return self.predictor.predict(texts, pairs)

    def predict_proba(self, texts: Iterable[str], pairs: Iterable[str] | None = None) -> np.ndarray[Any, Any]:
        """Return the probabilities of `texts` (and `pairs`), (num_texts, num_labels), as a NumPy array."""
        return self.predictor.predict_proba(texts, pairs)


def result_content(job: Job, examples: Examples, model: SequenceClassifier, progress: Progress) -> dict[str, Any]:
    """Return the content of result.json."""
    task, settings, history = job.task, job.settings, progress.history
    metric, best, last = task.metrics[0], best_epoch(history, job.schedule.select_by), history[-1]
    seconds = sum(row["seconds"] for row in history)
    content = {
        "format": FORMAT,
        "task": task.name,
        "method": settings.method,
        "model": job.model.description,
        "data": job.data.description,
        "examples": {"training": len(examples.train), "validation": len(examples.validation)},
        "precision": settings.precision,
        "metric": metric,
        "best": {"epoch": best["epoch"], "value": best[metric]},
        "last": {"epoch": last["epoch"], "value": last[metric]},
        **{
            name: {"best": best[f"{name}_{metric}"], "last": last[f"{name}_{metric}"]}
            for name in (*(name for name, _ in task.also), *([HOLDOUT] if settings.holdout else []))
        },
        "parameters": dataclasses.asdict(count_parameters(model)),
        "train_seconds": seconds,  # without evaluations and checkpoints; so is the next
        "samples_per_second": sum(row["samples_per_second"] * row["seconds"] for row in history) / seconds,
        "peak_memory_bytes": peak_memory(settings.device),
        "seed": settings.seed,
        "versions": {  # what can change a figure from one machine to another
            "minipeft": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "tokenizers", "datasets", "safetensors")},
        },
    }
    content |= task.problem.with_details(best).figures()
    for name in task.metrics[1:]:
        if name in ("macro_f1", settings.select_by):
            content[name] = {"best": best[name], "last": last[name]}
    if settings.holdout:
        content[HOLDOUT] |= {"part": settings.holdout, "examples": len(examples.others[HOLDOUT])}
    return content
