"""Predictions for a folder of files: one file of predictions for each, by a runner.

FOLDER/plan.json             the run and the flags
FOLDER/<file>.jsonl          the predictions of <file>; FOLDER/logs/<file>.txt is what its command has said
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

from minipeft.adapters.save import WEIGHTS
from minipeft.compare.runners.local_runner import Command, format_flags
from minipeft.compare.runners.runner import execute, make_runner
from minipeft.compare.runners.runner_options import RunnerOptions
from minipeft.device import choose_device
from minipeft.errors import MinipeftError, format_names
from minipeft.files import FORMAT, check_output, read_json, sha256, user_path, write_json
from minipeft.lease import Lease


def predict_folder(run: str, path: str, output: str, *, device: str, resume: bool = False, **flags: Any) -> None:
    """Predict every file of a folder into a folder of its own, each by a command `minipeft predict`.

    A file of predictions is complete or absent; with `resume` only the missing ones are predicted. `flags` are the
    fields of RunnerOptions; and `predict_file`'s text_column, pair_column, file_format, threshold and echo.

    Raises:
        MinipeftError: for bad input, before anything is written; and at the end when a file has failed.
        Interrupted: after SIGINT or SIGTERM, with the finished files kept.
    """
    options, folder = RunnerOptions.take_from(flags), user_path(output)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise MinipeftError(f"--output {output}: torchrun shares one file of predictions. Use --runner or name a file.")
    files = sorted(entry for entry in user_path(path).iterdir() if entry.is_file() and not entry.name.startswith("."))
    if not files:
        raise MinipeftError(f"{path}: the folder has no files. Name one with files to predict.")
    check_output(folder, "plan.json", "folder of predictions", resume)
    run_folder = user_path(run).absolute()
    if not (adapter := run_folder / "adapter" / WEIGHTS).is_file():
        raise MinipeftError(f"{adapter} is missing. Name the folder of a run.")
    plan = {"format": FORMAT, "run": str(run_folder), "adapter": sha256(adapter), **flags}
    plan["echo"] = list(plan["echo"])
    if (folder / "plan.json").is_file() and read_json(folder / "plan.json") != plan:
        raise MinipeftError(f"{folder} was predicted with another run or other flags. Choose another --output.")
    chosen = choose_device(device) if options.runner == "local" else device
    commands = [_command(plan, file, folder / f"{file.name}.jsonl", device) for file in files]
    waiting = [command for command in commands if not command.output.exists()]

    with Lease(folder):
        check_output(folder, "plan.json", "folder of predictions", resume)
        write_json(folder / "plan.json", plan)
        runner = partial(make_runner, folder, options, chosen, len(waiting))
        failed = execute(waiting, len(files), "file", runner, False)
    print(f"{folder}: predictions of {len(files) - len(failed)} of {len(files)} files")
    if failed:
        reasons = [f"{name} ({reason})" for name, reason in failed.items()]
        raise MinipeftError(
            f"{len(failed)} of {len(files)} files failed: {format_names(reasons)}. --resume tries them again."
        )


def _command(plan: dict[str, Any], file: Path, target: Path, device: str) -> Command:
    flags = {"input": file.absolute(), "output": target.absolute(), "device": device}
    flags |= {name: plan[name] for name in ("file_format", "text_column", "pair_column", "threshold")}
    flags["echo"] = plan["echo"] or None
    return Command(file.name, ["predict", plan["run"], *format_flags(flags)], target)
