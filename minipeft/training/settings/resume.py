"""What a resumed run may change, and what it takes from its config.json: the rule of each row of the table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minipeft.data.tables.memory import PLACE
from minipeft.data.tasks.custom import is_custom
from minipeft.errors import MinipeftError, short_repr
from minipeft.files import read_json
from minipeft.methods import METHODS
from minipeft.training.optimization.schedule import Schedule
from minipeft.training.run_folder.checkpoint_files import has_checkpoint
from minipeft.training.run_folder.checkpoint_reader import read_progress
from minipeft.training.settings.setting import rows
from minipeft.training.settings.train_settings import EXCLUSIVE, TrainSettings

ROWS = rows(TrainSettings)
FREE_TO_CHANGE = tuple(name for name, row in ROWS.items() if row.on_resume in ("may change", "of the call"))
# Since format 1 began.
ADDED_SETTINGS = ("drop_duplicates", "file_format", "fold", "group_column", "train_layers", "weight_column")
# Settings that others depend on: they are compared before anything is read.
ANCHORS = ("task", "method", "data", "text_column", "pair_column", "label_column", "label_type")


def read_run(folder: Path) -> dict[str, Any]:
    """Return the content of a run's config.json, empty for a new run.

    Settings that the version which wrote it did not have are at their defaults.
    """
    path = folder / "config.json"
    config = read_json(path, {})
    config = config and {name: ROWS[name].default for name in ADDED_SETTINGS} | config
    if config and (missing := [name for name in (*ROWS, "source", "labels") if name not in config]):
        raise MinipeftError(
            f"{path}: the setting {missing[0]} is missing. Another version wrote it: choose another --output."
        )
    return config


def recorded_settings(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json that a run continues with these settings; empty where the run starts from scratch."""
    recorded = read_run(folder)
    for name in ANCHORS if recorded else ():
        if given.get(name, "auto") == "auto":
            continue
        if name == "data":
            file_format = given.get("file_format", recorded["file_format"])
            differs = is_custom(recorded["task"], given["data"], file_format) != (recorded["text_column"] is not None)
        else:
            differs = given[name] != recorded[name]
        if differs and has_checkpoint(folder):
            raise _other_setting(folder, name, recorded[name], given[name])
        if differs:
            return {}
    return recorded


def _other_setting(folder: Path, name: str, recorded: Any, wanted: Any) -> MinipeftError:
    return MinipeftError(
        f"{folder}: the run has {name} {short_repr(recorded)}, not {short_repr(wanted)}. "
        "Resume it with the same settings, or choose another --output."
    )


def continue_settings(given: Mapping[str, Any], folder: Path, recorded: Mapping[str, Any]) -> TrainSettings:
    """Return the settings of a run that is resumed: what is not given, or "auto", is as in its config.json.

    Raises:
        MinipeftError: for a value in config.json of the wrong type, and for a run without its rows or file.
    """
    if not recorded:
        return TrainSettings(**given)
    given = {name: value for name, value in given.items() if not (isinstance(value, str) and value == "auto")}
    left_out = {other for pair in EXCLUSIVE for one, other in (pair, pair[::-1]) if one in given}
    kept = {
        name: row.check(f"{folder / 'config.json'}: {name}", recorded[name])
        for name, row in ROWS.items()
        if row.on_resume != "of the call" and name not in left_out and recorded[name] is not None
    }
    if "data" in given and Path(kept.get("validation", "")).is_relative_to(recorded["source"]):
        del kept["validation"]  # a file in the folder of the data has moved with them, and is found there
    if "data" not in given:
        kept["data"] = recorded["source"]  # the same from every current directory
        if kept["data"] == PLACE:
            raise MinipeftError(f"{folder}: the run was trained on {PLACE}. Pass them as data to resume it.")
        # Files have an absolute path; addresses and data sets of the hub have not.
        if recorded["text_column"] is not None and Path(kept["data"]).is_absolute() and not Path(kept["data"]).exists():
            raise MinipeftError(f"{folder}: the run's data {kept['data']} is missing. Pass where it is now as --data.")
    return TrainSettings(**(kept | given))


def check_same_settings(folder: Path, schedule: Schedule, config: Mapping[str, Any]) -> str:
    """Raise where a resumed run would change with its new config.json; return what `describe_extension` does."""
    recorded = read_run(folder)
    extension = describe_extension(folder, schedule, config, recorded)
    free = (*FREE_TO_CHANGE, *(("epochs", "steps") if extension else ()))
    for name in (*ROWS, "labels"):
        if name not in free and config[name] != recorded[name]:
            raise _other_setting(folder, name, recorded[name], config[name])
    return extension


def describe_extension(folder: Path, schedule: Schedule, config: Mapping[str, Any], recorded: Mapping[str, Any]) -> str:
    """Return what the learning rate does where a finished run continues with more epochs or steps; else "".

    A run with a constant learning rate continues as if it had had more epochs from the start. A linear decay starts
    again on the line of a run with more epochs.

    Raises:
        MinipeftError: for a run whose last steps depend on their total number in another way.
    """
    unit = "steps" if recorded["steps"] else "epochs"
    old, new = recorded[unit], config[unit]
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
