"""Settings → Job: everything that a run needs to know, complete before anything is computed."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipeft.adapters.adapter import read_initial_adapter
from minipeft.adapters.adapter_file import Adapter
from minipeft.data.tasks.task import Task
from minipeft.data.tokens.long_texts import LongTexts
from minipeft.device import check_cuda_graphs, choose_device, choose_max_tokens, choose_precision
from minipeft.errors import check_choice
from minipeft.files import read_json
from minipeft.hub.names import model_name
from minipeft.problems import PROBLEMS
from minipeft.training.distributed import Processes, join_processes
from minipeft.training.optimization.loss import LossSettings
from minipeft.training.optimization.schedule import Schedule
from minipeft.training.run_folder.checkpoint import held_of
from minipeft.training.run_folder.checkpoint_files import has_checkpoint
from minipeft.training.settings.choices import (
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
from minipeft.training.settings.recipes import recipe
from minipeft.training.settings.resume import check_same_settings, continue_settings
from minipeft.training.settings.train_settings import METHOD_FLAGS, TrainSettings, choose_method, non_default_options


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

    def check_same_settings(self) -> str:
        return check_same_settings(self.output, self.task, self.schedule, self.config)


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
    processes.on_rank_zero(job.check_same_settings)
    return job


def read_run(folder: Path) -> tuple[dict[str, Any], bool]:
    """Return the content of a run's config.json, empty for a new run, and whether the run has a checkpoint."""
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}, has_checkpoint(folder)


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
            "label_type": PROBLEMS[task.problem.name].label_type,
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
    }
    content = dataclasses.asdict(settings) | method_flags | custom | resolved
    return dict(json.loads(json.dumps(content)))


def _model_to_reload(wanted: str, folder: Path) -> str:
    """What finds the same checkpoint again, from every current directory: a folder's absolute path, or a name."""
    if wanted == "auto":
        return model_name(folder)
    return str(folder.resolve()) if Path(wanted).expanduser().is_dir() else wanted
