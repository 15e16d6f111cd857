"""The commands that print more than one path: evaluate, predict, export, merge and pretrain."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from minipeft.errors import MinipeftError, flag_of
from minipeft.inference.predict import load_run
from minipeft.training.settings.setting import rows

COLUMNS = ("text_column", "pair_column", "file_format")  # flags of --input


def evaluate(**wanted: Any) -> None:
    """Print the metrics of a run on a split or a file, and write its report."""
    from minipeft.inference.evaluation_files import (
        check_report_folder,
        describe_calibration,
        describe_report,
        write_report,
    )
    from minipeft.inference.evaluation_report import report_file, report_split

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
    report = report_split(run, **wanted) if path is None else report_file(run, path, **wanted)
    if folder is not None:
        files = write_report({"run": place, **report}, folder)
        print(f"{folder}: {', '.join(file.name for file in files)}", file=sys.stderr)
    as_table = sys.stdout.isatty() and not as_json
    print(describe_report(report) if as_table else json.dumps(report["metrics"]) + "\n", end="")


def predict(**wanted: Any) -> None:
    """Print or write the predictions for texts, a file, a folder of files, or GLUE's test split."""
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
        write_predictions: Callable[..., None] = predict_folder if in_folder else predict_file
        write_predictions(options.pop("run"), options.pop("input"), **options)
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
            raise MinipeftError(f"{flag_of(name)} has no meaning {where}. Leave it out.")


def export(**wanted: Any) -> None:
    """Write a run's model as a checkpoint, merged, or as an ONNX program."""
    folder, onnx = wanted["folder"], wanted["format"] == "onnx"
    if wanted["int8"] and not onnx:
        raise MinipeftError("--int8 has no meaning without --format onnx. Leave it out.")
    run = load_run(wanted["run"], "cpu", "fp32")
    print(json.dumps(run.export_onnx(folder, wanted["int8"]) if onnx else run.export(folder), ensure_ascii=False))


def pretrain(**wanted: Any) -> None:
    """Pretrain a masked language model."""
    from minipeft.pretraining.pretrain import pretrain
    from minipeft.pretraining.pretrain_settings import PretrainSettings

    print(json.dumps(pretrain(PretrainSettings(**wanted))))
