"""A run: settings → a folder with config.json, metrics.jsonl, adapter/, checkpoint/ and result.json."""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
import resource
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

from minipeft import __version__
from minipeft.adapter import reload_adapter
from minipeft.data.tasks import Task, choose_data, get_task, read_chunks
from minipeft.data.tokenizer import load_tokenizer
from minipeft.device import MAX_TOKENS, choose_device, choose_precision
from minipeft.errors import MinipeftError, check_seed, finite_number, whole_number
from minipeft.files import make_folder, read_json, write_json
from minipeft.hub import resolve_model
from minipeft.methods import apply, count_parameters, get_method, method_name
from minipeft.model.checkpoint import cast_frozen, load_pretrained
from minipeft.model.config import load_config
from minipeft.model.roberta import SequenceClassifier
from minipeft.training import recipes
from minipeft.training.loop import Progress, train_loop
from minipeft.training.metrics import encode_split
from minipeft.training.recipes import TrainSettings, recipe

logger = logging.getLogger("minipeft")
Number = TypeVar("Number", int, float)

LONGEST = 512  # tokens, where the model takes more
# What a resumed run may change: the data is compared by its whole path, "source".
FREE_TO_CHANGE = ("output", "resume", "quiet", "device", "compile", "data")


@dataclass(frozen=True)
class Result:
    """What a run leaves: `content` is result.json's, `model` holds the best epoch's adapter."""

    content: dict[str, Any]
    model: SequenceClassifier
    output: Path

    @property
    def best(self) -> float:
        """The best epoch's value of the task's metric."""
        return float(self.content["best"]["value"])


def train(**settings: Any) -> Result:
    """Fine-tune. The settings are train.py's flags (`TrainSettings`); method is a name or a config, LoRA(rank=2).

    Raises MinipeftError for bad input, before anything is written.
    """
    unknown = sorted(set(settings) - {f.name for f in dataclasses.fields(TrainSettings)})
    if unknown:
        raise MinipeftError(f"unknown setting {unknown[0]!r}; the settings are train.py's flags")
    given = settings.get("method")
    if given is not None and not isinstance(given, str):
        fields = dataclasses.asdict(given) if dataclasses.is_dataclass(given) else {}  # type: ignore[arg-type]
        if twice := sorted(set(fields) & set(settings)):
            raise MinipeftError(f"{twice[0]} is given twice, in {given!r} and as {settings[twice[0]]!r}; give it once")
        settings |= {"method": method_name(given), **fields}
    # What can be refused at once is refused here, before anything is fetched.
    wanted = _checked(TrainSettings(**settings))
    task = get_task(wanted.task)
    method, wanted = _method(wanted)
    device = choose_device(wanted.device)
    precision = choose_precision(wanted.precision, device)
    folder = _choose_folder(wanted)
    _check_folder(folder, wanted.resume)
    model_folder, model_in_words = resolve_model(wanted.model)
    source, data_in_words = choose_data(task, wanted.data)
    config = load_config(model_folder)
    defaults = recipe(task.name, wanted.method, config.hidden_size)
    unset: dict[str, Any] = {name: value for name, value in defaults.items() if getattr(wanted, name) is None}
    wanted = dataclasses.replace(
        wanted,
        **unset,
        model=_model_to_reload(wanted.model, model_folder),
        device=device,
        precision=precision,
        max_length=_max_length(wanted.max_length, config.max_length),
        max_tokens=wanted.max_tokens or MAX_TOKENS[device],
    )
    record = {
        name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(wanted).items()
    } | {"output": str(folder), "source": source}
    _check_same_settings(folder, record)

    torch.manual_seed(wanted.seed)
    tokenizer = load_tokenizer(model_folder)
    examples, validation = (
        encode_split(task, read_chunks(task, split, source, limit), tokenizer, _not_none(wanted.max_length), config)
        for split, limit in (("train", wanted.train_limit), (task.validation, wanted.eval_limit))
    )
    model = load_pretrained(model_folder, task.num_labels)
    model.config = model.config.with_labels(list(task.labels) or ["score"])
    cast_frozen(apply(model, method), torch.bfloat16 if wanted.precision == "bf16" else torch.float32).to(device)
    if wanted.compile:
        model.encoder.compile_layers()
    parameters = count_parameters(model)
    _banner(task, method, model_in_words, data_in_words, wanted, parameters.method, parameters.head)
    if tokenizer.truncated:
        logger.warning(
            "%d of %d examples were truncated to %d tokens",
            tokenizer.truncated,
            len(examples) + len(validation),
            wanted.max_length,
        )

    make_folder(folder)
    write_json(folder / "config.json", record)
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
        quiet=wanted.quiet,
    )
    reload_adapter(model.eval(), folder / "adapter")
    content = _result(wanted, task, model_in_words, data_in_words, done, dataclasses.asdict(parameters), len(examples))
    write_json(folder / "result.json", content)
    _curves(folder)
    if not wanted.quiet:
        best, last, metric = content["best"], content["last"], content["metric"]
        print(
            f"best {metric} {best['value']:.4f} (epoch {best['epoch']}), last {last['value']:.4f}; "
            f"{content['train_seconds']:.0f} s, {content['samples_per_second']:.1f} samples/s → {folder}"
        )
    return Result(content, model, folder)


def _model_to_reload(wanted: str, folder: Path) -> str:
    """What finds the same checkpoint again, from any current directory: a folder's whole path, or a name."""
    if wanted == "auto":
        return folder.name
    return str(folder.resolve()) if Path(wanted).expanduser().is_dir() else wanted


def _method(wanted: TrainSettings) -> tuple[Any, TrainSettings]:
    """The method's config, and the settings with its fields filled in; a field that it does not have is refused."""
    config = get_method(wanted.method)
    fields = {f.name for f in dataclasses.fields(config)}
    given = {name: getattr(wanted, name) for name in ("rank", "alpha", "dropout", "targets")}
    for name, value in given.items():
        if value is not None and name not in fields:
            raise MinipeftError(f"--{name} {value!r} has no meaning for {wanted.method}; leave it out")
    report = {"rank": recipes.RANK, "alpha": recipes.ALPHA, "dropout": recipes.DROPOUT}
    values = {name: given[name] if given[name] is not None else report.get(name) for name in given if name in fields}
    method = config(**{name: value for name, value in values.items() if value is not None})
    return method, dataclasses.replace(wanted, **{name: getattr(method, name) for name in values})


def _checked(wanted: TrainSettings) -> TrainSettings:
    """The settings with numbers of the right kind and names as text; what cannot be one is refused by its flag."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(TrainSettings):
        name, value, flag = field.name, getattr(wanted, field.name), f"--{field.name.replace('_', '-')}"
        if value is None:
            values[name] = field.default
        elif name in ("task", "method", "model", "data", "precision", "device", "output"):
            values[name] = str(value)
        elif name == "seed":
            values[name] = check_seed(value)
        elif name == "warmup_steps":
            values[name] = whole_number(flag, value, least=0)
        elif name in ("lr", "weight_decay"):
            values[name] = finite_number(flag, value, least=0.0)
        elif name in ("epochs", "batch_size", "grad_accum", "max_length", "max_tokens", "train_limit", "eval_limit"):
            values[name] = whole_number(flag, value)
    return dataclasses.replace(wanted, **values)


def _max_length(wanted: int | None, longest: int) -> int:
    if wanted is not None and wanted > longest:
        raise MinipeftError(
            f"--max-length {wanted} is beyond the model's position table; it takes up to {longest} tokens"
        )
    return wanted or min(LONGEST, longest)


def _choose_folder(wanted: TrainSettings) -> Path:
    """--output, or runs/<task>-<method>…; without --resume, a default name that is taken gets a number."""
    if wanted.output is not None:
        return Path(wanted.output)
    rank = f"-r{wanted.rank}" if wanted.rank is not None else ""
    first = Path("runs") / f"{wanted.task}-{wanted.method}{rank}-seed{wanted.seed}"
    names = [first, *(first.with_name(f"{first.name}-{number}") for number in range(2, 10_000))]
    free = next(number for number, name in enumerate(names) if not name.exists())
    return names[max(0, free - 1)] if wanted.resume else names[free]


def _check_folder(folder: Path, resume: bool) -> None:
    """Refuse to write over another run, or into a folder of something else."""
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise MinipeftError(f"{above} is no folder that can be written to; choose another --output")
    if (folder / "config.json").is_file():
        if not resume:
            raise MinipeftError(f"{folder} already holds a run; pass --resume to go on with it, or another --output")
    elif folder.is_dir() and any(folder.iterdir()):
        raise MinipeftError(f"{folder} is not empty and holds no run; choose another --output")


def _check_same_settings(folder: Path, record: dict[str, Any]) -> None:
    """Refuse to resume with settings that would change the run; one that has no checkpoint yet starts anew."""
    before = folder / "config.json"
    if before.is_file() and (folder / "checkpoint" / "state.pt").is_file():
        for name, value in read_json(before).items():
            if name not in FREE_TO_CHANGE and record.get(name) != value:
                raise MinipeftError(
                    f"{folder} was begun with {name} {value!r}, not {record.get(name)!r}; "
                    "resume with the same settings, or choose another --output"
                )


def _banner(
    task: Task, method: Any, model: str, data: str, wanted: TrainSettings, in_method: int, in_head: int
) -> None:
    if not wanted.quiet:
        print(
            f"task    {task.name}, {wanted.epochs} epochs at {wanted.lr:g}, "
            f"{wanted.batch_size} x {wanted.grad_accum} sequences a step, seed {wanted.seed}\n"
            f"method  {method!r}: {in_method:,} parameters, {in_head:,} in the head\n"
            f"model   {model}\n"
            f"data    {data}\n"
            f"device  {wanted.device}, {wanted.precision}",
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
    best = max(done.history, key=lambda row: row[metric])
    seconds = sum(row["seconds"] for row in done.history)
    packages = ("torch", "tokenizers", "datasets", "safetensors")
    return {
        "task": task.name,
        "method": wanted.method,
        "model": model,
        "data": data,
        "metric": metric,
        "best": {"epoch": best["epoch"], "value": best[metric]},
        "last": {"epoch": done.history[-1]["epoch"], "value": done.history[-1][metric]},
        "parameters": parameters,
        "train_seconds": seconds,
        "samples_per_second": len(done.history) * examples / seconds,
        "peak_memory_bytes": _peak_memory(wanted.device),
        "seed": wanted.seed,
        "versions": {
            "minipeft": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
    }


def _peak_memory(device: str) -> int:
    """Of the CUDA allocator, or of the whole process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


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
