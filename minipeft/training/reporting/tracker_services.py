"""Trackers on a server: Weights & Biases and MLflow. Each has `add` and `close`, as TensorBoard in trackers.py has."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minipeft.files import make_folder, read_json, write_json

PROJECT = "minipeft"  # in Weights & Biases and in MLflow, unless their environment variables name another
CONFIG, RUN_IDS = "config.json", "trackers.json"  # in the run's folder: the trackers' names of the run, for --resume
BUFFERED_SECONDS = 5.0  # between two requests to MLflow


class WandB:
    """Metrics in a run of Weights & Biases, which reads WANDB_PROJECT, WANDB_MODE and its other variables."""

    def __init__(self, folder: Path, first_step: int) -> None:
        import wandb

        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=_run_id(folder, "wandb"),
            resume="allow",
            dir=str(folder),
            config=read_json(folder / CONFIG, {}),
            settings=wandb.Settings(console="off"),
        )
        _keep_run_id(folder, "wandb", self.run.id)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class MLflow:
    """Metrics in a run of MLflow on MLFLOW_TRACKING_URI, in the experiment MLFLOW_EXPERIMENT_NAME."""

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
        params = [Param(name, str(value)[:500]) for name, value in read_json(folder / CONFIG, {}).items()]
        for start in range(0, len(params), 100):  # MLflow's limit
            self.client.log_batch(self.run_id, params=params[start : start + 100])

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        timestamp = int(1000 * time.time())  # milliseconds
        self.buffer += [self.metric(name, float(value), timestamp, step) for name, value in metrics.items()]
        if time.monotonic() - self.sent > BUFFERED_SECONDS or len(self.buffer) > 900:  # MLflow's limit is 1,000
            self._send()

    def _send(self) -> None:
        metrics, self.buffer, self.sent = self.buffer, [], time.monotonic()
        self.client.log_batch(self.run_id, metrics=metrics)

    def close(self, finished: bool) -> None:
        self._send()
        self.client.set_terminated(self.run_id, status="FINISHED" if finished else "KILLED")


def _run_id(folder: Path, name: str) -> str | None:
    """Return a tracker's name of the run, where it has started before."""
    run_id = read_json(folder / RUN_IDS, {}).get(name)
    return run_id if isinstance(run_id, str) else None


def _keep_run_id(folder: Path, name: str, run_id: str) -> None:
    make_folder(folder)
    write_json(folder / RUN_IDS, read_json(folder / RUN_IDS, {}) | {name: run_id})
