"""Predictions for a file of any size: a stream, divided among processes, that resumes after an interruption.

The rows are divided into chunks of a few thousand. The predictions of each chunk are written to a chunk file next to
the output, and in the end the chunk files are joined in order. Each file appears only when it is complete, and a
lease on the folder of the chunk files keeps other jobs out.
"""

import csv
import io
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from minipeft.data.tables.open_table import STANDARD_INPUT, list_files
from minipeft.data.tables.remote_tables.remote import local_copy
from minipeft.data.tasks.task import Split, Task
from minipeft.errors import Interrupted, MinipeftError, logger
from minipeft.files import (
    LEASE,
    check_ownership,
    read_json,
    sha256,
    user_path,
    write_atomically,
    write_json,
    write_text,
)
from minipeft.inference.predict import load_run
from minipeft.lease import Lease
from minipeft.problems import problem_row
from minipeft.problems.labels import NUMBER
from minipeft.progress_bar import disable_bar
from minipeft.staging import clear_folder
from minipeft.training.run_folder.signals import handle_signals
from minipeft.version import __version__

PLAN = "plan.json"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how texts begin that spreadsheets execute
LONGEST_WAIT = 600.0  # seconds until rank 0 has started
LONGEST_SILENCE = 60.0  # seconds without a heartbeat of another rank
POLL_SECONDS = 0.05


def predict_file(
    folder: str,
    path: str,
    output: str | None = None,
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    file_format: str | None = None,
    echo: Sequence[str] = (),
    device: str = "auto",
    threshold: float | str | None = None,
) -> None:
    """Predict every row of a file, a folder of files or standard input ("-"), in their order.

    Several processes (RANK and WORLD_SIZE, as torchrun sets them) divide the chunks among them; the result is the
    same for any number of processes. After an interruption the same command continues, unless run or input changed.

    `output` is a new file, one JSON object per line, or csv if it ends in .csv; None for standard output. Each
    prediction repeats the columns `echo` of the input, such as an id. `threshold` is that of `load_run`.

    Raises:
        MinipeftError: for bad input; `output` is not written.
        Interrupted: after a signal; `output` is not written.
    """
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1 and (output is None or path == STANDARD_INPUT):
        raise MinipeftError(f"{processes} processes cannot share standard input or output; give --input and --output")
    target = None if output is None else user_path(output)
    exists = target is not None and target.exists() and rank == 0  # another rank may start when rank 0 has finished
    if target is not None and (exists or not target.absolute().parent.is_dir()):
        reason = "is there already" if exists else f"has no folder {target.parent}"
        raise MinipeftError(f"{target} {reason}; choose another --output")
    for name in echo:
        if name in ("label", "labels", "probabilities", "score", "entities", "tags"):
            raise MinipeftError(f"--echo {name}: a prediction has a field {name} already; rename it to input_{name}")
    files = list_files(path, file_format)
    run = load_run(folder, device, pairs=pair_column is not None, threshold=threshold)
    if run.device == "cuda" and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        run.model.to(run.device)
    as_csv = target is not None and target.suffix.lower() == ".csv"
    if as_csv and problem_row(run.task.problem.name).per_token:
        raise MinipeftError(f"{target}: tags of words do not fit into csv. Choose an --output that ends in .jsonl.")
    columns: dict[str, Any] = {"text_column": text_column, "pair_column": pair_column, "file_format": file_format}
    rows = 0
    echoed: list[Sequence[Any]] = []  # of the present chunk
    if path != STANDARD_INPUT:  # an invalid row is reported now, not after hours
        for chunk in run.read_chunks(path, **columns, echo=echo, echoed=echoed):
            rows += len(chunk)
            echoed.clear()
    chunks = run.read_chunks(path, **columns, echo=echo, echoed=echoed)

    separator = getattr(run.task.problem, "separator", None)

    def lines(chunk: Split) -> str:
        predictions = zip(echoed, run.predict(chunk.texts, chunk.pairs), strict=True)
        if as_csv:
            return "".join(csv_line([*values, *csv_columns(row, separator).values()]) for values, row in predictions)
        rows = (dict(zip(echo, map(_json_value, values), strict=True)) | row for values, row in predictions)
        return "".join(json.dumps(row, default=str) + "\n" for row in rows)

    if target is None:
        for chunk in chunks:
            print(lines(chunk), end="", flush=True)
            echoed.clear()
        return
    parts = target.absolute().with_name(f".{target.name}.parts")
    plan = {**columns, "echo": list(echo), "threshold": threshold, "device": run.device}
    plan = _plan(user_path(folder), run.model.folder, files, plan)
    with (
        _raise_on_signals(target, parts if path == STANDARD_INPUT else None),
        _hold_parts(parts, target, plan, rank) as is_needed,
    ):
        names: list[Path] = []
        written = 0
        with tqdm(desc=str(target), total=rows or None, unit=" rows", disable=disable_bar(rank > 0)) as bar:
            for chunk in chunks if is_needed else ():
                part = parts / f"{len(names):09d}.jsonl"
                if len(names) % processes == rank and not part.exists():
                    write_text(part, lines(chunk))
                names.append(part)
                echoed.clear()
                written += len(chunk)
                bar.update(len(chunk))
        if rank == 0:
            for number, part in enumerate(names):
                _wait_for_part(part, number % processes)
            check_ownership(parts / PLAN)
            if target.exists() or _read_plan(parts) != plan:
                raise MinipeftError(f"{target}: another process has written it meanwhile. Choose another --output.")
            header = _csv_header(run.task, echo) if as_csv else ""
            write_atomically(target, lambda temporary: _concatenate_parts(names, temporary, header))
    if rank == 0:
        print(f"{target}: {written:,} prediction{'' if written == 1 else 's'}", file=sys.stderr)


def _plan(folder: Path, base: Path | None, files: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """Return what the chunk files depend on: they are used again only for the same run, files and settings."""
    patterns = ("config.json", "adapter_*", "adapter/adapter_*", "calibration.json", "adapter/calibration.json")
    run = [sha256(path) for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]
    known: list[Any] = []
    for path in [*files, *(map(str, sorted(base.iterdir())) if base is not None else [])]:
        if path == STANDARD_INPUT:
            known.append(time.time_ns())  # it cannot be read a second time
        else:
            local = Path(local_copy(path)).resolve()
            known.append([str(local), local.stat().st_size, local.stat().st_mtime_ns])
    plan = {"version": __version__, "run": run, "files": known, **settings}
    return json.loads(json.dumps(plan))  # as it is when it is read from the file


@contextmanager
def _hold_parts(parts: Path, target: Path, plan: dict[str, Any], rank: int) -> Iterator[bool]:
    """Hold the folder of the chunk files on rank 0, and on another rank a folder in it that shows that the rank lives.

    Chunk files of the same plan are kept, and those of another one are removed. The value is False on a rank without a
    chunk: rank 0 has finished before it started.
    """
    if rank > 0:
        start = time.monotonic()
        while target.exists() or _read_plan(parts) != plan:
            if target.exists():
                yield False
                return
            if time.monotonic() - start > LONGEST_WAIT:
                raise MinipeftError(f"{parts}: rank 0 has not started after {LONGEST_WAIT:g} s; start all together")
            time.sleep(POLL_SECONDS)
        with Lease(parts / f"rank-{rank}", target):
            yield True
        with suppress(OSError):  # not empty, unless rank 0 has finished meanwhile
            parts.rmdir()
        return
    try:
        with Lease(parts, target):
            if target.exists():
                raise MinipeftError(f"{target} is there already; choose another --output")
            if _read_plan(parts) == plan:
                logger.warning("%s: resuming, %d chunks are done", parts, sum(1 for _ in parts.glob("*.jsonl")))
            else:
                clear_folder(parts)
                write_json(parts / PLAN, plan)
            try:
                yield True
            finally:
                if target.exists() or not any(parts.glob("*.jsonl")):
                    with suppress(OSError):  # another rank may just have made its folder
                        clear_folder(parts)
    finally:
        with suppress(OSError):  # not empty: the same command continues
            parts.rmdir()


def _read_plan(parts: Path) -> dict[str, Any] | None:
    with suppress(MinipeftError):
        return read_json(parts / PLAN)
    return None


def _csv_header(task: Task, echo: Sequence[str]) -> str:
    """Return the header of predictions as csv: the echoed columns, and those of any prediction."""
    (row,) = task.problem.predictions(torch.zeros(1, task.num_labels), task.problem.outputs)
    return csv_line([*echo, *csv_columns(row)])


def csv_columns(row: dict[str, Any], separator: str | None = None) -> dict[str, Any]:
    """Return a prediction by column: a column for each probability, and a set of labels as one text."""
    plain = {name: value for name, value in row.items() if name != "probabilities"}
    if "labels" in plain:
        plain["labels"] = (separator or ";").join(row["labels"])
    return plain | {f"probability_{name}": value for name, value in row.get("probabilities", {}).items()}


def _json_value(value: Any) -> Any:
    """Return a value that JSON has a form of: null for NaN and infinity."""
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _json_value(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_line(fields: list[Any]) -> str:
    """Return a row of csv; a text that a spreadsheet would execute as a formula begins with an apostrophe."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(
        f"'{field}" if isinstance(field, str) and field.startswith(FORMULA) and not NUMBER.fullmatch(field) else field
        for field in fields
    )
    return line.getvalue().encode("utf-8", "replace").decode("utf-8")


def _concatenate_parts(parts: list[Path], target: Path, header: str) -> None:
    with open(target, "wb") as out:
        out.write(header.encode())
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, out)


def _wait_for_part(part: Path, rank: int) -> None:
    """Wait for a chunk file of another rank while that rank lives, as the lease of its folder shows."""
    lease = part.parent / f"rank-{rank}" / LEASE
    heartbeat, since = 0, time.monotonic()
    while not part.exists():
        with suppress(OSError):
            if (now := lease.stat().st_mtime_ns) != heartbeat:
                heartbeat, since = now, time.monotonic()
        if time.monotonic() - since > LONGEST_SILENCE:
            raise MinipeftError(
                f"{part}: rank {rank} has ended without these predictions. Run the same command again: it continues."
            )
        time.sleep(POLL_SECONDS)


@contextmanager
def _raise_on_signals(target: Path, remove: Path | None) -> Iterator[None]:
    """Raise Interrupted on a signal that ends a process; remove the folder `remove`, which cannot be resumed from."""
    remedy = "the same command continues with the chunks that are done" if remove is None else "run the command again"

    def stop(number: int, frame: Any) -> None:
        raise Interrupted(number, f"stopped, {target} is not written; {remedy}")

    try:
        with handle_signals(stop):
            yield
    finally:
        if remove is not None:
            shutil.rmtree(remove, ignore_errors=True)
