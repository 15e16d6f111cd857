"""What a resumed run may change, and what it takes from its config.json."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from minipeft.data.tasks.task import Task
from minipeft.errors import MinipeftError, short_repr
from minipeft.files import read_json
from minipeft.methods import METHODS
from minipeft.training.optimization.schedule import Schedule
from minipeft.training.run_folder.checkpoint import read_progress
from minipeft.training.run_folder.checkpoint_files import has_checkpoint
from minipeft.training.settings.train_settings import TrainSettings

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


def check_same_settings(folder: Path, task: Task, schedule: Schedule, config: dict[str, Any]) -> str:
    """Raise where a resumed run would change; a run without a checkpoint starts from scratch.

    Args:
        folder: the run's folder, which may hold a run.
        task: the run's task.
        schedule: what the loop is about to compute.
        config: the content of the run's new config.json.

    Returns:
        What the learning rate does, where the run had ended and now has more epochs or steps; else "".
    """
    if not has_checkpoint(folder):
        return ""
    # A run of an older version lacks the settings that were added since: it had their defaults.
    added = dataclasses.asdict(TrainSettings()) | {"select_by": task.metrics[0]}
    before = added | read_json(folder / "config.json")
    before["precision"] = recorded_precision(before)
    extension = describe_extension(folder, schedule, config, before)
    for name, value in before.items():
        now = config.get(name)
        if name not in FREE_TO_CHANGE and now != value and not (extension and name in ("epochs", "steps")):
            raise MinipeftError(
                f"{folder}: the run has {name} {short_repr(value)}, not {short_repr(now)}. "
                "Resume it with the same settings, or choose another --output."
            )
    return extension


def describe_extension(folder: Path, schedule: Schedule, config: dict[str, Any], before: dict[str, Any]) -> str:
    """Return what the learning rate does where a finished run continues with more epochs or steps; else "".

    A run with a constant learning rate continues as if it had had more epochs from the start. A linear decay starts
    again on the line of a run with more epochs.

    Raises:
        MinipeftError: for a run whose last steps depend on their total number in another way.
    """
    unit = "steps" if before["steps"] else "epochs"
    old, new = before[unit], config[unit]
    if not (isinstance(old, int) and isinstance(new, int) and new > old) or (unit == "epochs" and schedule.steps):
        return ""
    progress = read_progress(folder)
    if (progress["step"] if unit == "steps" else progress["epoch"]) < old:
        return ""  # it was interrupted, or stopped early
    reason = ""
    if METHODS[config["method"]].after_step is not None:
        reason = f"{config['method']} distributes its ranks over the run's steps"
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
