"""Settings → Job: everything that a run needs to know, complete before anything is computed."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipeft.data.tasks.task import Task
from minipeft.device import choose_device, choose_max_tokens, choose_precision, warn_of_slow_bf16
from minipeft.errors import public_settings, under_torchrun
from minipeft.files import read_json, user_path
from minipeft.hub.names import model_name
from minipeft.methods import changed_options
from minipeft.model.families import family_of
from minipeft.problems import PROBLEMS
from minipeft.training.distributed import SINGLE_PROCESS, Processes
from minipeft.training.optimization.loss import LossSettings
from minipeft.training.optimization.schedule import Schedule
from minipeft.training.run_folder.checkpoint_files import has_checkpoint
from minipeft.training.settings import choices
from minipeft.training.settings.recipes import recipe
from minipeft.training.settings.train_settings import METHOD_FLAGS, TrainSettings

if TYPE_CHECKING:
    from minipeft.adapters.adapter_file import Adapter
    from minipeft.data.tasks.custom import CustomData


@dataclass(frozen=True)
class Job:
    """A run, complete: no setting is left to be chosen."""

    settings: TrainSettings  # with every choice made; None only where a setting has no effect
    data: choices.DataSource
    model: choices.Checkpoint
    method: Any  # its config
    initial_adapter: Adapter | None  # that the run is initialized from
    schedule: Schedule
    max_length: int
    output: Path
    processes: Processes

    @property
    def task(self) -> Task:
        return self.data.task

    @property
    def loss(self) -> LossSettings:
        """The weights and the smoothing of the training loss."""
        return LossSettings(self.settings.class_weights or "", self.settings.label_smoothing)

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json: every setting, complete, in the types that JSON has, and the task's labels."""
        settings = dataclasses.asdict(self.settings) | {"source": self.data.source, "labels": self.task.labels}
        return dict(json.loads(json.dumps(public_settings(settings))))

    def check_same_settings(self) -> str:
        """Raise where a resumed run would change; return what the learning rate does where it is extended, or ""."""
        if not has_checkpoint(self.output):  # it starts from scratch
            return ""
        from minipeft.training.settings.resume import check_same_settings

        return check_same_settings(self.output, self.schedule, self.config)


def resolve(given: Mapping[str, Any]) -> Job:
    """Choose everything that the settings leave open.

    What can be refused without a download is refused before the first one. With several processes rank 0 chooses the
    folder and reads what it holds; the first process of each node finds the model and the data on its machine.

    Args:
        given: the settings that are given, from `read_settings`.

    Raises:
        MinipeftError: for settings that do not fit together, and for an output folder that cannot take this run.
    """
    settings = TrainSettings(**given)
    device = choose_device(settings.device)
    if settings.cuda_graphs == "on":
        from minipeft.training.optimization.cuda_graphs import check_cuda_graphs

        check_cuda_graphs(device, settings.activation_checkpointing)
    if settings.resume and settings.output and settings.checkpoint_copy and os.environ.get("LOCAL_RANK", "0") == "0":
        from minipeft.training.run_folder.checkpoint_copy import fetch_checkpoint

        fetch_checkpoint(Path(settings.output), settings.checkpoint_copy)
    processes = SINGLE_PROCESS
    if under_torchrun():
        from minipeft.training.process_group import join_processes
        from minipeft.training.run_folder.checkpoint_reader import held_of

        held = None if settings.output is None else held_of(Path(settings.output))
        processes = join_processes(device, settings.resume, held, settings.group_timeout)

    def continued(folder: Path) -> TrainSettings:
        from minipeft.training.settings.resume import continue_settings, recorded_settings

        return continue_settings(given, folder, processes.on_rank_zero(lambda: recorded_settings(folder, given)))

    if settings.resume and settings.output is not None:
        settings = continued(Path(settings.output))
    settings, task, custom, method, adapter = _find(settings, processes)
    output = processes.on_rank_zero(lambda: choices.choose_output(settings, task, method))
    if settings.resume and settings.output is None:  # the name of the folder follows from the task and the method
        settings, task, custom, method, adapter = _find(continued(output), processes)

    model = processes.once_per_node(lambda: choices.choose_model(settings.model))
    data = processes.once_per_node(lambda: choices.choose_source(settings, task, custom))
    precision = choose_precision(settings.precision, device)
    hidden_size, model_type = model.config.hidden_size, model.config.model_type
    defaults = recipe(None if custom else task.name, settings.method, hidden_size, model_type)
    warn_of_slow_bf16(precision, device)
    saved_per_token = family_of(model.config).saved_per_token * hidden_size * model.config.num_hidden_layers
    fits = choose_max_tokens(device, precision, hidden_size, saved_per_token)  # on the device of this process
    max_tokens = settings.max_tokens or -processes.all_reduce_max(-fits)
    schedule = choices.choose_schedule(settings, data, defaults, max_tokens)
    max_length = choices.choose_max_length(settings.max_length, method, model.config.max_length)
    cuda_graphs = "off"
    if settings.cuda_graphs != "off":
        from minipeft.training.optimization.cuda_graphs import choose_cuda_graphs

        cuda_graphs = choose_cuda_graphs(settings, device, precision, model.config)
    complete = dataclasses.replace(
        settings,
        **_settings_of_task(settings, data.task),
        **{name: getattr(method, name) for name in METHOD_FLAGS if hasattr(method, name)},
        method_options={name: value for name, value in changed_options(method).items() if name not in METHOD_FLAGS},
        model=_model_to_reload(settings.model, model.folder),
        init_adapter=str(adapter.folder.resolve()) if adapter else None,
        epochs=schedule.epochs,
        steps=schedule.steps or None,
        lr=schedule.lr,
        warmup_steps=schedule.warmup_steps,
        max_tokens=max_tokens,
        max_length=max_length,
        stride=max_length // 4 if settings.long_text == "window" and settings.stride is None else settings.stride,
        device=device,
        precision=precision,
        cuda_graphs=cuda_graphs,
        output=str(output),
    )
    job = Job(complete, data, model, method, adapter, schedule, max_length, output, processes)
    processes.on_rank_zero(job.check_same_settings)
    return job


def _find(
    settings: TrainSettings, processes: Processes
) -> tuple[TrainSettings, Task, CustomData | None, Any, Adapter | None]:
    """Return the settings with --select-by, the task, and the method with the adapter that it is initialized from."""

    def method_of(adapter: Adapter | None) -> Any:
        choices.check_windows(settings)
        return choices.choose_method(settings, adapter and adapter.method)

    adapter = None
    if settings.init_adapter is None:
        method = processes.on_rank_zero(lambda: method_of(None))
    task, custom = processes.once_per_node(lambda: choices.find_task(settings))
    if settings.init_adapter is not None:
        from minipeft.adapters.adapter import read_initial_adapter

        folder = user_path(settings.init_adapter)
        if settings.model == "auto" and (folder / "config.json").is_file():
            recorded = processes.once_per_node(lambda: str(read_json(folder / "config.json").get("model", "auto")))
            settings = dataclasses.replace(settings, model=recorded)  # an adapter fits its own base model only
        adapter = processes.on_rank_zero(
            lambda: read_initial_adapter(folder, choices.choose_model(settings.model).config)
        )
        method = processes.on_rank_zero(lambda: method_of(adapter))
    loss = LossSettings(settings.class_weights or "", settings.label_smoothing)
    processes.on_rank_zero(lambda: loss.check(task))
    select_by = processes.once_per_node(lambda: choices.choose_select_by(settings, task))
    task = processes.on_rank_zero(lambda: task.with_metric(select_by))
    return dataclasses.replace(settings, select_by=select_by), task, custom, method, adapter


def _settings_of_task(settings: TrainSettings, task: Task) -> dict[str, Any]:
    """Return the settings that describe the task and its data, complete."""
    content = {"task": task.name, "data": str(settings.data)}
    if not task.is_custom:
        return content
    files = dict(task.files)
    return content | {
        "text_column": task.columns[0],
        "pair_column": task.columns[1] if len(task.columns) == 2 else None,
        "label_column": task.label_column,
        "label_type": PROBLEMS[task.problem.name].label_type,
        "validation": str(files["validation"]) if "validation" in files else None,
    }


def _model_to_reload(wanted: str, folder: Path) -> str:
    """Return what finds the same checkpoint again, from every current directory: an absolute path, or a name."""
    if wanted == "auto":
        return model_name(folder)
    return str(folder.resolve()) if Path(wanted).is_dir() else wanted
