"""A run: settings → job → examples → model → loop → result, in a folder with config.json, adapter/ and result.json."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import platform
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minipeft import __version__
from minipeft.adapters.adapter import initialize_from_adapter, reload_adapter
from minipeft.adapters.adapter_file import read_adapter
from minipeft.data.tasks.splits import read_chunks
from minipeft.data.tokens.examples import Examples, encode_split, hold_out
from minipeft.data.tokens.tokenizer import load_tokenizer
from minipeft.device import peak_memory
from minipeft.files import PARTIAL, check_output, read_json, write_json, write_text
from minipeft.inference.predictor import Predictor
from minipeft.methods import apply, count_parameters
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.pretrained import cast_frozen, load_for_training
from minipeft.training.loop import RunFolder, train_loop
from minipeft.training.optimization.cuda_graphs import StepGraphs
from minipeft.training.progress import HOLDOUT, Progress, best_epoch
from minipeft.training.reporting.banner import print_banner, print_result
from minipeft.training.reporting.model_card import CARD, make_card
from minipeft.training.run_folder.checkpoint_files import has_checkpoint
from minipeft.training.run_folder.lease import Lease
from minipeft.training.settings.job import Job, resolve
from minipeft.training.settings.train_settings import TrainSettings, keywords_of, read_settings

logger = logging.getLogger("minipeft")
# Settings that name a place, which may be another one on each machine; fingerprints compare what is there.
PLACES = ("model", "data", "source", "output", "init_adapter", "validation")


@dataclass(frozen=True, repr=False)
class Result:
    """What a run leaves.

    Attributes:
        content: result.json's: task, method, model, data, metric, best and last (epoch and value), parameters (counts),
            train_seconds, samples_per_second, peak_memory_bytes, seed and versions.
        model: the model with the best epoch's adapter, in evaluation mode.
        output: the run's folder.
        predictor: the model with its tokenizer, behind `predict` and `predict_proba`.
    """

    content: dict[str, Any]
    model: SequenceClassifier
    output: Path
    predictor: Predictor

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


@keywords_of(TrainSettings)
def train(**settings: Any) -> Result:
    """Fine-tune a pretrained encoder and write the run's folder.

    Args:
        settings: train.py's flags by name: task="rte", epochs=3, …; method is a name or a config, such as
            LoRA(rank=2). data (and validation) may be rows in memory: a list of dicts, a dict of columns, a pandas
            DataFrame, a datasets.Dataset or a DatasetDict. What is not given, or None, is the recipe's.

    Returns:
        The result, with the best epoch's model.

    Raises:
        MinipeftError: for bad input, before anything is written; and where a loss is not finite or a file cannot be
            written, with the last checkpoint kept.
    """
    job = resolve(read_settings(settings))
    with hold_folder(job):
        examples = load_examples(job)
        model = build_model(job)
        folder = open_run(job, examples, model)
        loss = job.loss.make_loss(examples.train.split.labels, job.task.problem, job.device)
        graphs = StepGraphs(model, loss=loss) if job.cuda_graphs else None
        with job.processes.errors_printed_once():
            progress = train_loop(model, examples, job.schedule, folder, job.processes, graphs, loss)
        return write_result(job, examples, model, progress)


@contextmanager
def hold_folder(job: Job) -> Iterator[None]:
    """Take the lease of the run's folder on rank 0."""
    with ExitStack() as stack:

        def take_lease() -> None:
            stack.enter_context(Lease(job.output))
            check_output(job.output, "config.json", "run", job.resume)  # again, now that nobody else can change it
            job.check_same_settings()

        job.processes.on_rank_zero(take_lease)
        yield


def load_examples(job: Job) -> Examples:
    """Read and tokenize the training, validation and further splits."""
    task, tokenizer = job.task, load_tokenizer(job.model.folder)
    encoded = {}
    for name, split in {"train": "train", "validation": task.validation, **dict(task.also)}.items():
        chunks = read_chunks(task, split, job.data.source, job.train_limit if name == "train" else job.eval_limit)
        encoded[name] = encode_split(task, chunks, tokenizer, job.max_length, job.model.config, job.long_texts)
    train, validation = encoded.pop("train"), encoded.pop("validation")
    if job.holdout:
        train, encoded[HOLDOUT] = hold_out(train, job.holdout, job.schedule.seed)
    return Examples(train, validation, encoded, tokenizer.truncated)


def build_model(job: Job) -> SequenceClassifier:
    """Load the pretrained weights, install the method, and move the model to the job's device."""
    torch.manual_seed(job.schedule.seed)
    model = load_for_training(job.model.folder, job.task.problem.outputs, job.task.problem.name)
    apply(model, job.method)
    for adapter in job.initial_adapters:
        taken = initialize_from_adapter(model, adapter)
        if job.processes.is_main_process and not job.quiet:
            print(taken, file=sys.stderr)
    cast_frozen(model, torch.bfloat16 if job.precision == "bf16" else torch.float32).to(job.device)
    model.encoder.activation_checkpointing = job.activation_checkpointing
    if job.compile:
        model.encoder.compile_layers()
    return model


def open_run(job: Job, examples: Examples, model: SequenceClassifier) -> RunFolder:
    """Check that all processes agree, print the banner, and write config.json."""
    processes = job.processes
    if processes.size > 1:
        weights = hashlib.sha256()
        for parameter in model.parameters():
            weights.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        settings = {name: value for name, value in job.config.items() if name not in PLACES}
        processes.check_same(
            {
                "the training examples": examples.train.fingerprint,
                "the validation examples": examples.validation.fingerprint,
                "the model's weights": weights.hexdigest(),
                **{f"the settings (--{name.replace('_', '-')})": repr(value) for name, value in settings.items()},
            }
        )
    if processes.is_main_process:
        print_banner(job, examples, model)
    if examples.truncated and processes.is_main_process:
        total = sum(map(len, (examples.train, examples.validation, *examples.others.values())))
        logger.warning("%d of %d examples were truncated to %d tokens", examples.truncated, total, job.max_length)
    processes.on_rank_zero(lambda: _write_config(job))
    return RunFolder(job.output, job.checkpoint_minutes, job.quiet, job.report_to)


def _write_config(job: Job) -> None:
    """Make the folder a run's, without the temporary files of a killed run, or the result of a run that is extended."""
    folder, extension = job.output, job.check_same_settings()
    for path in folder.rglob(PARTIAL):
        with suppress(OSError):  # a folder: of another process that is trying to take the lease
            path.unlink()
    if not has_checkpoint(folder):
        (folder / "result.json").unlink(missing_ok=True)
        if (folder / "config.json").is_file() and not job.quiet:
            print(f"{folder} has no checkpoint yet: the run starts from scratch", file=sys.stderr)
    if extension:
        (folder / "result.json").unlink(missing_ok=True)
        if not job.quiet:
            print(extension, file=sys.stderr)
    write_json(folder / "config.json", job.config)


def write_result(job: Job, examples: Examples, model: SequenceClassifier, progress: Progress) -> Result:
    """Load the best epoch's adapter into the model, and write result.json and curves.png.

    A run that was finished before keeps its result.json.
    """
    folder = job.output
    reload_adapter(model.eval(), job.processes.on_rank_zero(lambda: read_adapter(folder / "adapter", model.config)))
    content = result_content(job, examples, model, progress)

    def write() -> dict[str, Any]:
        if (folder / "result.json").is_file():
            if not job.quiet:
                print(f"{folder}: the run is already finished", file=sys.stderr)
            return read_json(folder / "result.json")
        write_text(folder / "adapter" / CARD, make_card(job, content))
        write_json(folder / "result.json", content)
        _draw_curves(folder)
        return content

    content = job.processes.on_rank_zero(write)
    if job.processes.is_main_process and not job.quiet:
        print_result(content, folder)
    predictor = Predictor(model, load_tokenizer(job.model.folder), job.task, job.config, job.device)
    return Result(content, model, folder, predictor)


def result_content(job: Job, examples: Examples, model: SequenceClassifier, progress: Progress) -> dict[str, Any]:
    """Return the content of result.json."""
    task, history = job.task, progress.history
    metric, best, last = task.metrics[0], best_epoch(history, job.schedule.select_by), history[-1]
    seconds = sum(row["seconds"] for row in history)
    content = {
        "task": task.name,
        "method": job.config["method"],
        "model": job.model.description,
        "data": job.data.description,
        "precision": job.precision,
        "metric": metric,
        "best": {"epoch": best["epoch"], "value": best[metric]},
        "last": {"epoch": last["epoch"], "value": last[metric]},
        **{
            name: {"best": best[f"{name}_{metric}"], "last": last[f"{name}_{metric}"]}
            for name in (*(name for name, _ in task.also), *([HOLDOUT] if job.holdout else []))
        },
        "parameters": dataclasses.asdict(count_parameters(model)),
        "train_seconds": seconds,
        "samples_per_second": sum(row["samples_per_second"] * row["seconds"] for row in history) / seconds,
        "peak_memory_bytes": peak_memory(job.device),
        "seed": job.schedule.seed,
        "versions": {
            "minipeft": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "tokenizers", "datasets", "safetensors")},
        },
    }
    content |= {name: best[name] for name in task.problem.tuned}
    if "macro_f1" in task.metrics:
        content["macro_f1"] = {"best": best["macro_f1"], "last": last["macro_f1"]}
    if job.holdout:
        content[HOLDOUT] |= {"part": job.holdout, "examples": len(examples.others[HOLDOUT])}
    return content


def _draw_curves(folder: Path) -> None:
    """Draw curves.png, where the extra `plot` is installed."""
    try:
        from minipeft.training.reporting.curves import draw
    except ImportError:
        return
    draw(folder)
