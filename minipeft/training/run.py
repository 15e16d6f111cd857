"""A run: settings → a folder with config.json, metrics.jsonl, adapter/, checkpoint/ and result.json."""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

from minipeft import __version__
from minipeft.adapters.adapter import read_start, reload_adapter, start_from
from minipeft.data.splits import choose_data, drawn_as_recorded, normalize_source, read_chunks
from minipeft.data.tasks import Task
from minipeft.data.tokenizer import load_tokenizer
from minipeft.device import check_cuda_graphs, choose_device, choose_max_tokens, choose_precision, peak_memory
from minipeft.errors import MinipeftError, shown
from minipeft.files import PARTIAL, check_output, make_folder, read_json, write_json
from minipeft.hub.hub import model_name, resolve_model
from minipeft.methods import apply, count_parameters
from minipeft.model.checkpoint import cast_frozen, load_pretrained
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.families import load_config
from minipeft.training.distributed import join_workers
from minipeft.training.graphs import StepGraphs
from minipeft.training.loop import HOLDOUT, Progress, best_epoch, train_loop
from minipeft.training.metrics import encode_split, hold_out
from minipeft.training.recipes import TrainSettings, recipe
from minipeft.training.settings import choose_max_length, choose_method, choose_task, settings_of, short_warmup

logger = logging.getLogger("minipeft")
Number = TypeVar("Number", int, float)

# What a resumed run may change: the data is compared by its whole path, "source".
FREE_TO_CHANGE = (
    *("output", "checkpoint_minutes", "resume", "quiet", "data"),
    *("device", "compile", "activation_checkpointing", "cuda_graphs"),
)


@dataclass(frozen=True)
class Result:
    """What a run leaves.

    content   result.json's: task, method, model, data, metric, best and last (epoch and value), parameters (counts),
              train_seconds, samples_per_second, peak_memory_bytes, seed and versions
    model     the model with the best epoch's adapter, in evaluation mode
    output    the run's folder
    """

    content: dict[str, Any]
    model: SequenceClassifier
    output: Path

    @property
    def best(self) -> float:
        """The best epoch's value of the task's metric."""
        return float(self.content["best"]["value"])


def train(**settings: Any) -> Result:
    """Fine-tune, and leave a run's folder behind.

    settings   train.py's flags by name, `TrainSettings`: task="rte", epochs=3, …; method is a name or a config,
               LoRA(rank=2). What is left out is the recipe's.

    Raises MinipeftError for bad input before anything is written, and where a loss is not finite or nothing can be
    written any more; the last checkpoint is kept then.
    """
    # What can be refused at once is refused here, before anything is fetched.
    wanted = settings_of(settings)
    wanted, task, own = choose_task(wanted)
    found, start = None, None
    if wanted.init_adapter is not None:
        found = resolve_model(wanted.model)
        start = read_start(Path(wanted.init_adapter), load_config(found[0]))
    method, wanted = choose_method(wanted, None if start is None else start.method)
    device = choose_device(wanted.device)
    if wanted.cuda_graphs:
        check_cuda_graphs(device, wanted.activation_checkpointing)
    precision = choose_precision(wanted.precision, device)
    workers = join_workers(device, wanted.resume)
    if not workers.first:
        logger.setLevel(logging.ERROR)
    folder = workers.first_does(lambda: _choose_folder(wanted))
    if (folder / "config.json").is_file():  # a run of an earlier version keeps its draw of examples
        task = drawn_as_recorded(task, read_json(folder / "config.json"))
        own = None if own is None else dataclasses.replace(own, task=task)
    model_folder, model_in_words = found or resolve_model(wanted.model)
    source, data_in_words = (own.source, own.describe()) if own is not None else choose_data(task, wanted.data)
    config = load_config(model_folder)
    defaults = recipe(None if own is not None else task.name, wanted.method, config.hidden_size)
    if own is not None:
        defaults["warmup_steps"] = short_warmup(own.rows, wanted.epochs or defaults["epochs"], wanted)
    unset: dict[str, Any] = {name: value for name, value in defaults.items() if getattr(wanted, name) is None}
    wanted = dataclasses.replace(
        wanted,
        **unset,
        model=_model_to_reload(wanted.model, model_folder),
        init_adapter=None if start is None else str(start.folder.resolve()),
        device=device,
        precision=precision,
        max_length=choose_max_length(wanted.max_length, method, config.max_length),
        max_tokens=wanted.max_tokens or choose_max_tokens(device, precision),
    )
    resolved = {"output": str(folder), "source": source, "labels": task.labels, "stratified": task.stratified}
    record = json.loads(json.dumps(dataclasses.asdict(wanted) | resolved))
    workers.first_does(lambda: _check_same_settings(folder, record))

    torch.manual_seed(wanted.seed)
    tokenizer = load_tokenizer(model_folder)
    splits = {"train": "train", "validation": task.validation, **dict(task.also)}
    encoded = {}
    for name, split in splits.items():
        chunks = read_chunks(task, split, source, wanted.train_limit if name == "train" else wanted.eval_limit)
        encoded[name] = encode_split(task, chunks, tokenizer, _not_none(wanted.max_length), config)
    examples, validation = encoded.pop("train"), encoded.pop("validation")
    if wanted.holdout is not None:
        examples, encoded[HOLDOUT] = hold_out(examples, wanted.holdout, wanted.seed)
    model = load_pretrained(model_folder, task.num_labels)
    model.config = model.config.with_labels(list(task.labels) or ["score"])
    apply(model, method)
    began_with = None if start is None else start_from(model, start)
    cast_frozen(model, torch.bfloat16 if wanted.precision == "bf16" else torch.float32).to(device)
    model.encoder.activation_checkpointing = wanted.activation_checkpointing
    if wanted.compile:
        model.encoder.compile_layers()
    parameters = count_parameters(model)
    if workers.first:
        _banner(task, method, model_in_words, data_in_words, wanted, parameters.method, parameters.head, workers.size)
        for warning in () if own is None else own.warnings:
            logger.warning("%s", warning)
        if began_with is not None and not wanted.quiet:
            print(began_with, file=sys.stderr)
    if tokenizer.truncated:
        total = sum(map(len, (examples, validation, *encoded.values())))
        logger.warning("%d of %d examples were truncated to %d tokens", tokenizer.truncated, total, wanted.max_length)

    workers.first_does(lambda: _open_folder(folder, record, wanted.quiet))
    done = train_loop(
        model,
        examples,
        validation,
        folder,
        epochs=_not_none(wanted.epochs),
        lr=_not_none(wanted.lr),
        sequences_per_step=wanted.batch_size * wanted.grad_accum,
        warmup_steps=_not_none(wanted.warmup_steps),
        weight_decay=wanted.weight_decay,
        max_tokens=_not_none(wanted.max_tokens),
        seed=wanted.seed,
        device=device,
        checkpoint_minutes=wanted.checkpoint_minutes,
        beside=encoded,
        workers=workers,
        graphs=StepGraphs(model) if wanted.cuda_graphs else None,
        quiet=wanted.quiet,
    )
    reload_adapter(model.eval(), folder / "adapter")
    content = _result(wanted, task, model_in_words, data_in_words, done, dataclasses.asdict(parameters), len(examples))
    if wanted.holdout is not None:
        content["holdout"] |= {"part": wanted.holdout, "examples": len(encoded[HOLDOUT])}
    content = workers.first_does(lambda: _finish(folder, content))
    if workers.first and not wanted.quiet:
        best, last, metric = content["best"], content["last"], content["metric"]
        print(
            f"best {metric} {best['value']:.4f} (epoch {best['epoch']}), last {last['value']:.4f}; "
            f"{content['train_seconds']:.0f} s, {content['samples_per_second']:.1f} samples/s → {folder}"
        )
    return Result(content, model, folder)


def _model_to_reload(wanted: str, folder: Path) -> str:
    """What finds the same checkpoint again, from any current directory: a folder's whole path, or a name."""
    if wanted == "auto":
        return model_name(folder)
    return str(folder.resolve()) if Path(wanted).expanduser().is_dir() else wanted


def _choose_folder(wanted: TrainSettings) -> Path:
    """--output, or runs/<task>-<method>…; one that cannot take this run is refused."""
    folder = Path(wanted.output) if wanted.output is not None else _default_folder(wanted)
    check_output(folder, "config.json", "run", wanted.resume)
    return folder


def _default_folder(wanted: TrainSettings) -> Path:
    """Without --resume, a name that is taken gets a number."""
    rank = f"-r{wanted.rank}" if wanted.rank is not None else ""
    first = Path("runs") / f"{wanted.task}-{wanted.method}{rank}-seed{wanted.seed}"
    names = [first, *(first.with_name(f"{first.name}-{number}") for number in range(2, 10_000))]
    free = next(number for number, name in enumerate(names) if not name.exists())
    return names[max(0, free - 1)] if wanted.resume else names[free]


def _check_same_settings(folder: Path, record: dict[str, Any]) -> None:
    """Refuse to resume with settings that would change the run; one that has no checkpoint yet starts anew."""
    before = folder / "config.json"
    if before.is_file() and (folder / "checkpoint" / "state.pt").is_file():
        # A run of an earlier version lacks the settings that have come since: it had their defaults.
        begun = dataclasses.asdict(TrainSettings()) | {"stratified": False} | read_json(before)
        begun["source"] = normalize_source(begun["source"])
        for name, value in begun.items():
            if name not in FREE_TO_CHANGE and record.get(name) != value:
                raise MinipeftError(
                    f"{folder} was begun with {name} {shown(value)}, not {shown(record.get(name))}; "
                    "resume with the same settings, or choose another --output"
                )


def _open_folder(folder: Path, record: dict[str, Any], quiet: bool) -> None:
    """Make the folder a run's, without what a kill may have left of files, or an earlier run that starts anew."""
    make_folder(folder)
    for path in folder.rglob(PARTIAL):
        path.unlink()
    if not (folder / "checkpoint" / "state.pt").is_file():
        (folder / "result.json").unlink(missing_ok=True)
        if (folder / "config.json").is_file() and not quiet:
            print(f"{folder} has no checkpoint yet: the run starts anew", file=sys.stderr)
    write_json(folder / "config.json", record)


def _finish(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write result.json, which a run that was finished before keeps as it is, and curves.png."""
    path = folder / "result.json"
    if path.is_file():
        return read_json(path)
    write_json(path, content)
    _curves(folder)
    return content


def _banner(
    task: Task, method: Any, model: str, data: str, wanted: TrainSettings, in_method: int, in_head: int, processes: int
) -> None:
    if not wanted.quiet:
        print(
            f"task    {task.name}, {wanted.epochs} epochs at {wanted.lr:g}, "
            f"{wanted.batch_size} x {wanted.grad_accum} sequences a step, seed {wanted.seed}\n"
            f"method  {method!r}: {in_method:,} parameters, {in_head:,} in the head\n"
            f"model   {model}\n"
            f"data    {data}\n"
            f"device  {wanted.device}, {wanted.precision}" + (f", {processes} processes" if processes > 1 else ""),
            file=sys.stderr,
        )
    if "stand-in" in model + data:  # never silent, not even with --quiet
        print(
            "*** STAND-IN: this run shows that the machine works. Its figures say nothing about roberta-base or "
            f"{task.name}. ***",
            file=sys.stderr,
        )
    sys.stderr.flush()


def _result(
    wanted: TrainSettings, task: Task, model: str, data: str, done: Progress, parameters: dict[str, int], examples: int
) -> dict[str, Any]:
    metric = task.metrics[0]
    best, last = best_epoch(done.history, task), done.history[-1]
    reported = [*(name for name, _ in task.also), *([HOLDOUT] if wanted.holdout is not None else [])]
    seconds = sum(row["seconds"] for row in done.history)
    packages = ("torch", "tokenizers", "datasets", "safetensors")
    return {
        "task": task.name,
        "method": wanted.method,
        "model": model,
        "data": data,
        "metric": metric,
        "best": {"epoch": best["epoch"], "value": best[metric]},
        "last": {"epoch": last["epoch"], "value": last[metric]},
        **{name: {"best": best[f"{name}_{metric}"], "last": last[f"{name}_{metric}"]} for name in reported},
        "parameters": parameters,
        "train_seconds": seconds,
        "samples_per_second": len(done.history) * examples / seconds,
        "peak_memory_bytes": peak_memory(wanted.device),
        "seed": wanted.seed,
        "versions": {
            "minipeft": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
    }


def _curves(folder: Path) -> None:
    """curves.png, where the extra `plot` is installed."""
    try:
        from minipeft.training.curves import draw
    except ImportError:
        return
    draw(folder)


def _not_none(value: Number | None) -> Number:
    assert value is not None
    return value
