"""Settings → Job: everything that a run needs to know, complete before anything is computed."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipeft.adapters.adapter import read_initial_adapter
from minipeft.adapters.adapter_file import Adapter
from minipeft.data.splits import normalize_source, with_recorded_split
from minipeft.data.tasks import Task
from minipeft.data.windows import LongTexts
from minipeft.device import check_cuda_graphs, choose_device, choose_max_tokens, choose_precision
from minipeft.errors import MinipeftError, check_choice, short_repr
from minipeft.files import read_json
from minipeft.hub.hub import model_name
from minipeft.methods import METHODS
from minipeft.training.checkpoint import held_of, read_progress, state_file
from minipeft.training.choices import (
    ALL_ROWS,
    Checkpoint,
    DataSource,
    choose_max_length,
    choose_model,
    choose_output,
    choose_schedule,
    choose_source,
    find_task,
)
from minipeft.training.distributed import Processes, join_processes
from minipeft.training.loss import LossSettings
from minipeft.training.recipes import recipe
from minipeft.training.schedule import Schedule
from minipeft.training.settings import METHOD_FLAGS, TrainSettings, choose_method, non_default_options

# Settings that --resume may change. "data" is compared as "source".
FREE_TO_CHANGE = (
    *("output", "checkpoint_minutes", "group_timeout", "resume", "quiet", "data", "report_to"),
    *("device", "compile", "activation_checkpointing", "cuda_graphs"),
)
# Settings that a resumed run takes from its config.json where they are not given.
KEPT_BY_RESUME = (
    "epochs",
    "steps",
    "lr",
    "warmup_steps",
    "warmup_ratio",
    "max_length",
    "stride",
    "max_tokens",
    "select_by",
)


@dataclass(frozen=True)
class Job:
    """A run, complete: no field is left to be chosen.

    Attributes:
        long_texts: how texts over max_length are split into windows; None: they are truncated.
        initial_adapters: the adapter that the run is initialized from, if any.
        precision: "fp32" or "bf16", of the frozen weights and the activations.
        schedule: what the loop computes.
        loss: the weights and the smoothing of the training loss.
        holdout: the fraction of the training split that chooses the best epoch; 0 for none.
        train_limit, eval_limit: rows that are read; ALL_ROWS for all.
        config: the content of config.json.
        processes: those that train together.
    """

    data: DataSource
    model: Checkpoint
    method: Any
    initial_adapters: tuple[Adapter, ...]
    device: str
    precision: str
    schedule: Schedule
    loss: LossSettings
    batch_size: int
    max_length: int
    long_texts: LongTexts | None
    holdout: float
    train_limit: int
    eval_limit: int
    compile: bool
    activation_checkpointing: bool
    cuda_graphs: bool
    output: Path
    checkpoint_minutes: float
    resume: bool
    quiet: bool
    report_to: tuple[str, ...] | None
    config: dict[str, Any]
    processes: Processes

    @property
    def task(self) -> Task:
        return self.data.task


def resolve(settings: TrainSettings) -> Job:
    """Choose everything that the settings leave open.

    What can be refused without a download is refused before the first one. With several processes rank 0 chooses the
    folder and reads what it holds; the first process of each node finds the model and the data on its machine.

    Raises:
        MinipeftError: for settings that do not fit together, and for an output folder that cannot take this run.
    """
    if settings.init_adapter is None:
        method = choose_method(settings)
    device = choose_device(settings.device)
    if settings.cuda_graphs:
        check_cuda_graphs(device, settings.activation_checkpointing)
    check_choice("precision", settings.precision, ("auto", "fp32", "bf16"))
    held = None if settings.output is None else held_of(Path(settings.output))
    processes = join_processes(device, settings.resume, held, settings.group_timeout)
    task, custom = processes.once_per_node(lambda: find_task(settings))

    initial_adapters: tuple[Adapter, ...] = ()
    if settings.init_adapter is not None:  # the adapter has the method, and the model the adapter's shape
        start = Path(settings.init_adapter)
        adapter = processes.on_rank_zero(lambda: read_initial_adapter(start, choose_model(settings.model).config))
        initial_adapters = (adapter,)
        method = processes.on_rank_zero(lambda: choose_method(settings, adapter.method))
    output = processes.on_rank_zero(lambda: choose_output(settings, task, method))
    recorded, has_checkpoint = processes.on_rank_zero(lambda: read_run(output))
    if recorded:  # a run of an earlier version keeps its draw of examples
        task = with_recorded_split(task, recorded)
        custom = None if custom is None else dataclasses.replace(custom, task=task)
    if has_checkpoint:
        settings = continue_settings(settings, task, recorded)
    loss = LossSettings(settings.class_weights or "", settings.label_smoothing)
    loss.check(task)
    model = processes.once_per_node(lambda: choose_model(settings.model))
    data = processes.once_per_node(lambda: choose_source(settings, task, custom))
    precision = choose_precision(settings.precision, device)
    shape = model.config.hidden_size, model.config.model_type
    defaults = recipe(None if custom is not None else task.name, settings.method, *shape)
    max_tokens = settings.max_tokens or choose_max_tokens(device, precision, model.config.hidden_size)
    schedule = choose_schedule(settings, data, defaults, max_tokens)
    max_length = choose_max_length(settings.max_length, method, model.config.max_length)
    windows, stride = settings.long_text == "window", settings.stride
    job = Job(
        data=data,
        model=model,
        method=method,
        initial_adapters=initial_adapters,
        device=device,
        precision=precision,
        schedule=schedule,
        loss=loss,
        batch_size=settings.batch_size,
        max_length=max_length,
        long_texts=LongTexts(max_length // 4 if stride is None else stride, settings.window_pooling)
        if windows
        else None,
        holdout=settings.holdout or 0.0,
        train_limit=settings.train_limit or ALL_ROWS,
        eval_limit=settings.eval_limit or ALL_ROWS,
        compile=settings.compile,
        activation_checkpointing=settings.activation_checkpointing,
        cuda_graphs=settings.cuda_graphs,
        output=output,
        checkpoint_minutes=settings.checkpoint_minutes,
        resume=settings.resume,
        quiet=settings.quiet,
        report_to=settings.report_to,
        config={},
        processes=processes,
    )
    job = dataclasses.replace(job, config=config_of(job, settings))
    processes.on_rank_zero(lambda: check_same_settings(job))
    return job


def read_run(folder: Path) -> tuple[dict[str, Any], bool]:
    """Return the content of a run's config.json, empty for a new run, and whether the run has a checkpoint."""
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}, state_file(folder).is_file()


def continue_settings(settings: TrainSettings, task: Task, before: dict[str, Any]) -> TrainSettings:
    """Return the settings of a resumed run: what is not given is as in its config.json, `before`."""
    kept: dict[str, Any] = {name: before.get(name) for name in KEPT_BY_RESUME if getattr(settings, name) is None}
    for one, other in (("epochs", "steps"), ("steps", "epochs")):
        if getattr(settings, one) is not None:
            kept.pop(other, None)
    if kept.get("select_by") not in ("eval_loss", *task.metrics):
        kept.pop("select_by", None)  # the labels have changed, which is refused later by name
    if settings.precision == "auto":
        kept["precision"] = recorded_precision(before)
    return dataclasses.replace(settings, **kept)


def recorded_precision(config: dict[str, Any]) -> str:
    """Return the precision of a run from its config.json; a version that recorded none, or "auto", had fp32."""
    return "bf16" if config.get("precision") == "bf16" else "fp32"


def config_of(job: Job, settings: TrainSettings) -> dict[str, Any]:
    """Return the content of config.json: every setting, resolved, in the types that JSON has."""
    task, schedule = job.task, job.schedule
    method_flags = {name: getattr(job.method, name) for name in METHOD_FLAGS if hasattr(job.method, name)}
    custom = {}
    if task.is_custom:
        custom = {
            "text_column": task.columns[0],
            "pair_column": task.columns[1] if len(task.columns) == 2 else None,
            "label_column": task.label_column,
            "label_type": "multilabel" if task.multilabel else "numbers" if task.is_regression else "classes",
            "validation": str(files["validation"]) if "validation" in (files := dict(task.files)) else None,
        }
    resolved = {
        "task": task.name,
        "data": str(settings.data),
        "method_options": non_default_options(job.method),
        "model": _model_to_reload(settings.model, job.model.folder),
        "init_adapter": str(job.initial_adapters[0].folder.resolve()) if job.initial_adapters else None,
        "select_by": settings.select_by or task.metrics[0],
        "epochs": schedule.epochs,
        "steps": schedule.steps or None,
        "lr": schedule.lr,
        "warmup_steps": schedule.warmup_steps,
        "max_tokens": schedule.max_tokens,
        "max_length": job.max_length,
        "stride": job.long_texts.stride if job.long_texts else None,
        "device": job.device,
        "precision": job.precision,
        "output": str(job.output),
        "source": job.data.source,
        "labels": task.labels,
        "stratified": task.stratified,
    }
    content = dataclasses.asdict(settings) | method_flags | custom | resolved
    return dict(json.loads(json.dumps(content)))


def _model_to_reload(wanted: str, folder: Path) -> str:
    """What finds the same checkpoint again, from every current directory: a folder's absolute path, or a name."""
    if wanted == "auto":
        return model_name(folder)
    return str(folder.resolve()) if Path(wanted).expanduser().is_dir() else wanted


def check_same_settings(job: Job) -> str:
    """Raise where a resumed run would change; a run without a checkpoint starts from scratch.

    Returns:
        What the learning rate does, where the run had ended and now has more epochs or steps; else "".
    """
    folder = job.output
    if not state_file(folder).is_file():
        return ""
    # A run of an older version lacks the settings that were added since: it had their defaults.
    added = dataclasses.asdict(TrainSettings()) | {"select_by": job.task.metrics[0], "stratified": False}
    before = added | read_json(folder / "config.json")
    before["source"] = normalize_source(str(before.get("source")))
    before["precision"] = recorded_precision(before)
    extension = describe_extension(job, before)
    for name, value in before.items():
        now = job.config.get(name)
        if name not in FREE_TO_CHANGE and now != value and not (extension and name in ("epochs", "steps")):
            raise MinipeftError(
                f"{folder}: the run has {name} {short_repr(value)}, not {short_repr(now)}. "
                "Resume it with the same settings, or choose another --output."
            )
    return extension


def describe_extension(job: Job, before: dict[str, Any]) -> str:
    """Return what the learning rate does where a finished run continues with more epochs or steps; else "".

    A run with a constant learning rate continues as if it had had more epochs from the start. A linear decay starts
    again on the line of a run with more epochs.

    Raises:
        MinipeftError: for a run whose last steps depend on their total number in another way.
    """
    folder, schedule = job.output, job.schedule
    unit = "steps" if before["steps"] else "epochs"
    old, new = before[unit], job.config[unit]
    if not (isinstance(old, int) and isinstance(new, int) and new > old) or (unit == "epochs" and schedule.steps):
        return ""
    progress = read_progress(folder)
    if (progress["step"] if unit == "steps" else progress["epoch"]) < old:
        return ""  # it was interrupted, or stopped early
    reason = ""
    if METHODS[job.config["method"]].after_step is not None:
        reason = f"{job.config['method']} distributes its ranks over the run's steps"
    elif schedule.lr_schedule not in ("linear", "constant"):
        reason = f"the {schedule.lr_schedule} learning rate has reached 0"
    if reason:
        raise MinipeftError(
            f"{folder}: {reason}, so the run's {old} {unit} cannot become {new}. Start a new run with --{unit} {new} "
            f"and another --output, or with --init-adapter {folder}."
        )
    total_steps = new if unit == "steps" else new * progress["step"] // old
    rate = schedule.learning_rate(progress["step"], total_steps)
    does = f"starts again at {rate:g} and decays to 0" if schedule.lr_schedule == "linear" else f"stays {rate:g}"
    return f"{folder} continues from {old} to {new} {unit}: the {schedule.lr_schedule} learning rate {does}"
