"""Predictions for a file of any size: a stream, shared out among processes, that goes on where it was stopped.

The rows are cut into windows of a few thousand. Each window's lines go into a part of their own beside the output,
and the parts, whoever wrote them, are joined in order in the end. A part is whole or not there, and so is the output.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minipeft import __version__
from minipeft.data.rows import STANDARD_INPUT, files_of
from minipeft.data.tasks import Split
from minipeft.errors import Interrupted, MinipeftError
from minipeft.files import make_folder, read_json, write_atomically, write_json, write_text
from minipeft.inference.predict import load_run

logger = logging.getLogger("minipeft")
PLAN = "plan.json"
LONGEST_WAIT = 600.0  # seconds until the first process, which may have to load more, has begun


def predict_file(
    folder: str,
    path: str,
    output: str | None = None,
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    device: str = "auto",
) -> None:
    """Predict every row of a file, a folder of files or standard input ("-"), one JSON object a line, in their order.

    Without `output` the lines go to standard output. Several processes (RANK and WORLD_SIZE, as torchrun sets them)
    share the windows out; their result does not depend on how many they are.
    Raises MinipeftError for bad input, and Interrupted after a signal; `output` is then not there, and the same
    command goes on with the windows that are done, unless the run or the input has changed.
    """
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1 and (output is None or path == STANDARD_INPUT):
        raise MinipeftError(f"{processes} processes cannot share standard input or output; give --input and --output")
    target = None if output is None else Path(output)
    if target is not None and (target.exists() or not target.absolute().parent.is_dir()):
        reason = "is there already" if target.exists() else f"has no folder {target.parent}"
        raise MinipeftError(f"{target} {reason}; choose another --output")
    files = files_of(path)
    run = load_run(folder, device)
    if run.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        run.model.to(run.device)
    columns = (text_column, pair_column)
    rows = 0
    if path != STANDARD_INPUT:  # a bad row is refused now, not after hours
        rows = sum(len(window) for window in run.read_chunks(path, *columns))
    windows = run.read_chunks(path, *columns)

    def lines(window: Split) -> str:
        return "".join(json.dumps(row) + "\n" for row in run.predict(window.texts, window.pairs))

    if target is None:
        for window in windows:
            _print(lines(window))
        return
    parts = target.with_name(f".{target.name}.parts")
    plan = _plan(Path(folder), run.model.folder, files, {"columns": columns, "device": run.device})
    with _stopping(target, parts if path == STANDARD_INPUT else None):
        if rank == 0:
            _begin(parts, plan)
        else:
            _wait(lambda: _read_plan(parts) == plan, f"{parts}: the first process has not begun", LONGEST_WAIT)
        count = 0
        quiet = True if rank else None  # None: a bar is shown on a terminal only
        with tqdm(desc=str(target), total=rows or None, unit=" rows", disable=quiet) as bar:
            for count, window in enumerate(windows, 1):
                part = _part(parts, count - 1)
                if (count - 1) % processes == rank and not part.exists():
                    write_text(part, lines(window))
                bar.update(len(window))
        if rank == 0:
            names = [_part(parts, number) for number in range(count)]
            for name in names:
                _wait(name.exists, "")
            write_atomically(target, lambda beside: _join(names, beside))
            shutil.rmtree(parts)


def _plan(folder: Path, base: Path | None, files: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """What the parts are a function of: they are used again only for the same run, files and settings."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        with open(folder / "adapter" / name, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    known: list[Any] = []
    for path in [*map(Path, files), *(sorted(base.iterdir()) if base is not None else [])]:
        if str(path) == STANDARD_INPUT:
            known.append(time.time_ns())  # nobody can read it a second time
        else:
            status = path.stat()
            known.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    plan = {"version": __version__, "run": digest.hexdigest(), "files": known, **settings}
    return json.loads(json.dumps(plan))  # as it is when it is read again


def _begin(parts: Path, plan: dict[str, Any]) -> None:
    if _read_plan(parts) == plan:
        done = sum(1 for _ in parts.glob("*.jsonl"))
        logger.warning("%s: going on, %d windows are done", parts, done)
        return
    if parts.exists():
        shutil.rmtree(parts)
    make_folder(parts)
    write_json(parts / PLAN, plan)


def _read_plan(parts: Path) -> dict[str, Any] | None:
    try:
        return read_json(parts / PLAN)
    except MinipeftError:
        return None


def _part(parts: Path, number: int) -> Path:
    return parts / f"{number:09d}.jsonl"


def _join(parts: list[Path], target: Path) -> None:
    with open(target, "wb") as out:
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, out)


def _wait(done: Callable[[], bool], complaint: str, longest: float | None = None) -> None:
    """Look until `done`; when another process fails, whoever started them all (torchrun) ends this one too."""
    began = time.monotonic()
    while not done():
        if longest is not None and time.monotonic() - began > longest:
            raise MinipeftError(f"{complaint} after {longest:g} s; start all processes together")
        time.sleep(0.05)


def _print(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise MinipeftError(f"standard output: cannot be written ({error.strerror}); free space") from None


@contextmanager
def _stopping(target: Path, useless: Path | None) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into Interrupted, at any moment: what is half done is not there for a reader.

    `useless` is a folder that nothing can be gone on with; it is removed where the work ends early.
    """
    remedy = "the same command goes on with what is done" if useless is None else "run the same command again"

    def stop(number: int, frame: Any) -> None:
        raise Interrupted(number, f"stopped, {target} is not written; {remedy}")

    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread gets signals
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if useless is not None:
            shutil.rmtree(useless, ignore_errors=True)
