"""The command line: one call, one line out. Imports stay inside the commands, so that --help is quick."""

import errno
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from minipeft import errors
from minipeft.cli.flags import TRAIN_EXAMPLES, Parser, add_train_flags
from minipeft.errors import ErrorOnRankZero, Interrupted, MinipeftError, WorkerError, is_rank_zero
from minipeft.training.settings.setting import rows
from minipeft.version import __version__

OUTPUT_ERRORS = (errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EDQUOT, errno.EFBIG)
COLUMNS = ("text_column", "pair_column", "file_format")  # flags of --input


def main(arguments: Sequence[str] | None = None) -> int:
    """`minipeft COMMAND …` → the exit status: 0 done, 2 bad input, 130 or 143 interrupted after saving."""
    from minipeft.cli.command_line import command_line

    _escape_unencodable_output()
    parser = command_line()
    wanted = vars(parser.parse_args(arguments))
    if wanted["command"] is None:
        parser.print_help()
        return 0
    return run(wanted.pop("command"), wanted)


def main_train(arguments: Sequence[str] | None = None) -> int:
    """`train.py …`: the command `train` by itself."""
    _escape_unencodable_output()
    parser = Parser(
        prog="train.py",
        usage="%(prog)s [flags]",
        description="Fine-tune an encoder on a task.",
        epilog=TRAIN_EXAMPLES.format(prog="python train.py"),
        add_help=False,
    )
    add_train_flags(parser)
    parser.add_argument("--version", action="version", version=f"minipeft {__version__}")
    return run("train", vars(parser.parse_args(arguments)))


def _escape_unencodable_output() -> None:
    """Let a standard output of an encoding such as ascii or cp1252 escape what it cannot encode, as stderr does."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not in a notebook
            stream.reconfigure(errors="backslashreplace")


def run(name: str, wanted: dict[str, Any]) -> int:
    """Run a command; every error that input causes becomes one line and a status."""
    if wanted.get("quiet"):
        logging.getLogger("minipeft").setLevel(logging.ERROR)
    command = COMMANDS[name]
    names_flags, errors.names_flags = errors.names_flags, True
    try:
        if isinstance(command, str):
            answer = resolve_name(command)(**wanted)
            if isinstance(answer, (str, Path)):
                print(answer)
        else:
            command(wanted)
        if sys.stdout is not None:
            sys.stdout.flush()
    except MinipeftError as error:
        if is_rank_zero():
            print(f"minipeft: {error}", file=sys.stderr)
        elif isinstance(error, WorkerError):  # a main process that was killed leaves its progress bar on a line
            print(f"\nminipeft: {error}", file=sys.stderr)
        elif not isinstance(error, ErrorOnRankZero) and (_is_distributed() or os.environ["LOCAL_RANK"] == "0"):
            print(f"minipeft: rank {os.environ['RANK']}: {error}", file=sys.stderr)
        return 2
    except Interrupted as error:
        if is_rank_zero():
            print(f"minipeft: {error}", file=sys.stderr)
        return 128 + error.signal_number
    except KeyboardInterrupt:
        print("minipeft: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if error.filename is not None or error.errno not in OUTPUT_ERRORS:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would flush it once more
        if isinstance(error, BrokenPipeError):  # who reads standard output has enough, as `head` does
            return 128 + 13
        print(f"minipeft: standard output: cannot be written ({error.strerror}). Free space.", file=sys.stderr)
        return 2
    finally:
        errors.names_flags = names_flags
    return 0


def _is_distributed() -> bool:
    """Whether this process trains with others; before that, all raise the same errors, and one of each node prints."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and bool(distributed.is_initialized())


def _evaluate(wanted: dict[str, Any]) -> None:
    from dataclasses import replace

    from minipeft.inference.evaluation_files import (
        check_report_folder,
        describe_calibration,
        describe_report,
        write_report,
    )
    from minipeft.inference.evaluation_report import report_file, report_split
    from minipeft.inference.predict import load_run

    path, folder, as_json = wanted.pop("input", None), wanted.pop("report", None), wanted.pop("json", False)
    calibrate, threshold = wanted.pop("calibrate", False), wanted.pop("threshold", None)
    if path is None:
        _allow(wanted, "without --input", "split", "data")
    else:
        _allow(wanted, "with --input", *COLUMNS, "label_column")
    if folder is not None:
        check_report_folder(folder)
    place = wanted.pop("run")
    choose = threshold == "auto"
    run = load_run(place, wanted.pop("device"), None, "pair_column" in wanted, None if choose else threshold)
    if calibrate or choose:
        found = run.calibrate(Path(place), wanted.get("data"), calibrate, choose)
        print(describe_calibration(found, run.task.labels), file=sys.stderr)
        run = replace(run, task=replace(run.task, problem=run.task.problem.with_details(found)))
    as_table = sys.stdout.isatty() and not as_json
    if folder is None and not as_table:
        print(json.dumps(run.evaluate(**wanted) if path is None else run.evaluate_file(path, **wanted)))
        return
    report = report_split(run, **wanted) if path is None else report_file(run, path, **wanted)
    if folder is not None:
        files = write_report({"run": place, **report}, folder)
        print(f"{folder}: {', '.join(file.name for file in files)}", file=sys.stderr)
    print(describe_report(report) if as_table else json.dumps(report["metrics"]) + "\n", end="")


def _predict(wanted: dict[str, Any]) -> None:
    from minipeft.inference.predict import load_run

    device = wanted["device"]
    if "glue_test" in wanted:
        from minipeft.inference.glue_test import predict_glue_test

        _allow(wanted, "with --glue-test", "glue_test", "data")
        for path in predict_glue_test(load_run(wanted["run"], device), wanted["glue_test"], wanted.get("data")):
            print(path)
    elif "input" in wanted:
        from minipeft.compare.predict_folder import predict_folder
        from minipeft.compare.runners.runner_options import RunnerOptions
        from minipeft.inference.predict_file import predict_file

        output = wanted.get("output")
        in_folder = output is not None and not Path(output).suffix and Path(wanted["input"]).is_dir()
        runner = (*rows(RunnerOptions), "resume") if in_folder else ()
        _allow(wanted, "with --input", "input", "output", "echo", "threshold", *COLUMNS, *runner)
        options: dict[str, Any] = dict.fromkeys((*COLUMNS, "threshold")) | {"echo": ()} | wanted
        predict: Callable[..., None] = predict_folder if in_folder else predict_file
        predict(options.pop("run"), options.pop("input"), **options)
    elif "text" in wanted:
        _allow(wanted, "with --text", "text", "pair", "threshold")
        run = load_run(wanted["run"], device, pairs="pair" in wanted, threshold=wanted.get("threshold"))
        for row in run.predict(wanted["text"], wanted.get("pair")):
            print(json.dumps(row))
    else:
        raise MinipeftError("nothing to predict; give --text, or --input with a file")


def _allow(wanted: Mapping[str, Any], where: str, *names: str) -> None:
    """Raise where another flag than these is given, which has no meaning there."""
    for name in wanted:
        if name not in ("run", "device", *names):
            flag = "format" if name == "file_format" else name.replace("_", "-")
            raise MinipeftError(f"--{flag} has no meaning {where}. Leave it out.")


def _export(wanted: dict[str, Any]) -> None:
    from minipeft.inference.predict import load_run

    folder, onnx = wanted["folder"], wanted["format"] == "onnx"
    if wanted["int8"] and not onnx:
        raise MinipeftError("--int8 has no meaning without --format onnx. Leave it out.")
    run = load_run(wanted["run"], "cpu", "fp32")
    print(json.dumps(run.export_onnx(folder, wanted["int8"]) if onnx else run.export(folder), ensure_ascii=False))


def _pretrain(wanted: dict[str, Any]) -> None:
    from minipeft.pretraining.pretrain import pretrain
    from minipeft.pretraining.pretrain_settings import PretrainSettings

    print(json.dumps(pretrain(PretrainSettings(**wanted))))


# A command: its function, or the place of a function that takes its flags, and whose text or path is printed.
COMMANDS: dict[str, Callable[[dict[str, Any]], None] | str] = {
    "train": "minipeft.training.run:train",
    "compare": "minipeft.compare.compare:compare",
    "methods": "minipeft.cli.describe:describe_methods",
    "evaluate": _evaluate,
    "predict": _predict,
    "pretrain": _pretrain,
    "export": _export,
    "merge": _export,
    "push": "minipeft.hub.upload:push",
    "fetch": "minipeft.hub:fetch",
}
