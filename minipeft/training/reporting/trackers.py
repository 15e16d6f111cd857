"""A run's metrics for experiment trackers: TensorBoard, Weights & Biases, MLflow. Each has `add` and `close`.

TensorBoard's records are written here, not by torch.utils.tensorboard, whose thread would end with a traceback on a
full disk.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from minipeft.errors import first_line, logger
from minipeft.files import check_ownership, make_folder

OWNERSHIP_SECONDS = 1.0  # between two checks of the folder's lease, each of which opens a file


class TensorBoard:
    """Metrics by step, as an event file in RUN/tensorboard: `tensorboard --logdir RUN/tensorboard`."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Open no file yet; TensorBoard discards what an interrupted run wrote for `first_step` and later steps."""
        self.path = folder / "tensorboard" / f"events.out.tfevents.{time.time_ns()}"
        self.first_step = first_step
        self.file: Any = None

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        events = []
        if self.file is None:
            make_folder(self.path.parent)
            self.file = open(self.path, "ab")  # noqa: SIM115 (open until the run ends)
            events += [Event(file_version="brain.Event:2")]
            events += [Event(step=self.first_step, session_log=SessionLog(status=SessionLog.START))]
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        events += [Event(step=step, summary=Summary(value=values))]
        for event in events:
            event.wall_time = time.time()
            RecordWriter(self.file).write(event.SerializeToString())
        self.file.flush()

    def close(self, finished: bool) -> None:
        if self.file is not None:
            self.file.close()


# The class of each tracker, imported when it is used.
TRACKERS = {
    "tensorboard": f"{__name__}:TensorBoard",
    "wandb": "minipeft.training.reporting.tracker_services:WandB",
    "mlflow": "minipeft.training.reporting.tracker_services:MLflow",
}


class Events:
    """The trackers of a run, as a context manager: those that --report-to names; without it, TensorBoard.

    The first error of a tracker is logged. That tracker then gets no more of the run, and the training continues.
    """

    def __init__(self, folder: Path, names: Sequence[str] | None, first_step: int, wanted: bool = True) -> None:
        """Start nothing yet; with `wanted` False, as on every rank but 0, nothing is reported."""
        if names is None:
            names = ("tensorboard",) if is_installed("tensorboard") else ()
        self.folder, self.first_step, self.names = folder, first_step, names if wanted else ()
        self.trackers: dict[str, Any] = {}
        self.checked_at = -math.inf

    def __enter__(self) -> Events:
        for name in self.names:
            with self._first_error_logged(name):
                self.trackers[name] = resolve_name(TRACKERS[name])(self.folder, self.first_step)
        return self

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report metrics by name.

        Raises:
            MinipeftError: if another process has taken over the run's folder.
        """
        if self.trackers and time.monotonic() - self.checked_at >= OWNERSHIP_SECONDS:
            check_ownership(self.folder / "tensorboard")
            self.checked_at = time.monotonic()
        for name, tracker in list(self.trackers.items()):
            with self._first_error_logged(name):
                tracker.add(step, metrics)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        for name, tracker in list(self.trackers.items()):
            with self._first_error_logged(name):
                tracker.close(finished=kind is None)

    @contextmanager
    def _first_error_logged(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a tracker lets through the errors of every layer below it
            self.trackers.pop(name, None)
            reason = first_line(error)
            logger.warning("%s: cannot report to %s (%s); it gets no more of this run", self.folder, name, reason)


def is_installed(name: str) -> bool:
    """Whether a package can be imported; it is not imported here."""
    try:
        return find_spec(name) is not None
    except ValueError:  # a module without a spec
        return False
