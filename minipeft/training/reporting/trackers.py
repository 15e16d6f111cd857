"""A run's metrics for experiment trackers: TensorBoard, Weights & Biases, MLflow. Each has `add` and `close`.

TensorBoard's records are written here one by one: torch.utils.tensorboard writes them in a thread of its own, in which
a full disk ends in a traceback that nobody can catch.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minipeft.errors import MinipeftError, check_choice, first_line
from minipeft.files import check_ownership, make_folder, read_json, write_json

logger = logging.getLogger("minipeft")

PROJECT = "minipeft"  # of Weights & Biases and of MLflow, where their own variables name no other
RUN_IDS = "trackers.json"  # in the run's folder: the trackers' names of the run, for --resume
BUFFERED_SECONDS = 5.0  # MLflow's metrics are sent together


class TensorBoard:
    """Metrics by step, as an event file in RUN/tensorboard: `tensorboard --logdir RUN/tensorboard`."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """`first_step`: TensorBoard forgets what an interrupted run wrote of it and of later ones."""
        self.path = folder / "tensorboard" / f"events.out.tfevents.{time.time_ns()}"
        self.first_step = first_step

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        events = []
        if not self.path.exists():
            events += [Event(file_version="brain.Event:2")]
            events += [Event(step=self.first_step, session_log=SessionLog(status=SessionLog.START))]
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        events += [Event(step=step, summary=Summary(value=values))]
        make_folder(self.path.parent)
        with open(self.path, "ab") as file:
            for event in events:
                event.wall_time = time.time()
                RecordWriter(file).write(event.SerializeToString())

    def close(self, finished: bool) -> None:
        pass


class WandB:
    """Metrics in a run of Weights & Biases; WANDB_PROJECT, WANDB_MODE and its other variables are as there."""

    def __init__(self, folder: Path, first_step: int) -> None:
        import wandb

        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=_run_id(folder, "wandb"),
            resume="allow",
            dir=str(folder),
            config=_config(folder),
            settings=wandb.Settings(console="off"),
        )
        _keep_run_id(folder, "wandb", self.run.id)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class MLflow:
    """Metrics in a run of MLflow, where MLFLOW_TRACKING_URI says; the experiment is MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, folder: Path, first_step: int) -> None:
        import mlflow
        from mlflow.entities import Metric, Param

        self.client: Any = mlflow.MlflowClient()
        self.metric, self.buffer, self.sent = Metric, list[Any](), time.monotonic()
        self.run_id = _run_id(folder, "mlflow") or ""
        if self.run_id:
            self.client.update_run(self.run_id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name)
        self.run_id = self.client.create_run(experiment_id, run_name=folder.name).info.run_id
        _keep_run_id(folder, "mlflow", self.run_id)
        params = [Param(name, str(value)[:500]) for name, value in _config(folder).items()]
        for start in range(0, len(params), 100):  # MLflow's limit
            self.client.log_batch(self.run_id, params=params[start : start + 100])

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self.buffer += [self.metric(name, float(value), now, step) for name, value in metrics.items()]
        if time.monotonic() - self.sent > BUFFERED_SECONDS or len(self.buffer) > 900:  # its limit is 1,000
            self._send()

    def _send(self) -> None:
        metrics, self.buffer, self.sent = self.buffer, [], time.monotonic()
        self.client.log_batch(self.run_id, metrics=metrics)

    def close(self, finished: bool) -> None:
        self._send()
        self.client.set_terminated(self.run_id, status="FINISHED" if finished else "KILLED")


TRACKERS: dict[str, type[TensorBoard] | type[WandB] | type[MLflow]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


class Events:
    """The trackers of a run, as a context: those that --report-to names, TensorBoard where it names none.

    A tracker that fails is reported once and gets no more of the run; the training continues.
    """

    def __init__(self, folder: Path, names: Sequence[str] | None, first_step: int, wanted: bool = True) -> None:
        """Start nothing yet; with `wanted` False, as on every rank but 0, nothing is reported."""
        if names is None:
            names = ("tensorboard",) if _is_installed("tensorboard") else ()
        self.folder, self.first_step = folder, first_step
        self.names = [name for name in names if name in TRACKERS] if wanted else []
        self.trackers: dict[str, Any] = {}

    def __enter__(self) -> Events:
        for name in self.names:
            try:
                self.trackers[name] = TRACKERS[name](self.folder, self.first_step)
            except Exception as error:  # a tracker lets through the errors of every layer below it
                self._give_up(name, error)
        return self

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report metrics by name.

        Raises:
            MinipeftError: if another process has taken over the run's folder.
        """
        if self.trackers:
            check_ownership(self.folder / "tensorboard")
        for name, tracker in list(self.trackers.items()):
            try:
                tracker.add(step, metrics)
            except Exception as error:
                self._give_up(name, error)

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                tracker.close(finished=kind is None)
            except Exception as failure:
                self._give_up(name, failure)

    def _give_up(self, name: str, error: Exception) -> None:
        self.trackers.pop(name, None)
        logger.warning(
            "%s: cannot report to %s (%s); it gets no more of this run", self.folder, name, first_line(error)
        )


def check_trackers(flag: str, value: Any) -> tuple[str, ...]:
    """Return the names of trackers; () for "none".

    Raises:
        MinipeftError: for an unknown name, and for a tracker that is not installed.
    """
    names = (value,) if isinstance(value, str) else tuple(value)
    for name in names:
        check_choice(flag, name, (*TRACKERS, "none"))
        if name != "none" and not _is_installed(name):
            raise MinipeftError(f"{flag} {name}: it is not installed. Run pip install {name}, or leave it out.")
    if "none" in names and len(names) > 1:
        raise MinipeftError(f"{flag} none has no meaning together with {names[names[0] == 'none']}. Leave one out.")
    return tuple(name for name in dict.fromkeys(names) if name != "none")


def _is_installed(name: str) -> bool:
    """Whether a package can be imported; it is not imported here."""
    try:
        return find_spec(name) is not None
    except ValueError:  # a module without a spec
        return False


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}


def _run_id(folder: Path, name: str) -> str | None:
    """Return a tracker's name of the run, where it has started before."""
    path = folder / RUN_IDS
    run_id = read_json(path).get(name) if path.is_file() else None
    return run_id if isinstance(run_id, str) else None


def _keep_run_id(folder: Path, name: str, run_id: str) -> None:
    path = folder / RUN_IDS
    make_folder(folder)
    write_json(path, (read_json(path) if path.is_file() else {}) | {name: run_id})
