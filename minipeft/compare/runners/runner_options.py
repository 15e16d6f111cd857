"""The table of a runner's options: where several commands are executed, and how many at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from minipeft.errors import MinipeftError
from minipeft.training.settings import checks
from minipeft.training.settings.setting import check_given, rows, setting

RUNNER = partial(setting, group="runner")


@dataclass(frozen=True)
class RunnerOptions:
    """The flags --runner, --jobs, …; None: not given."""

    runner: str = RUNNER(
        "local", "local, or ray: on a Ray cluster that shares --output", check=checks.choice("local", "ray")
    )
    jobs: int | None = RUNNER(None, "at once [CPU: by cores and memory; --jobs-per-gpu on each GPU; ray: all]")
    jobs_per_gpu: int = RUNNER(1, "at once on each GPU of this machine")
    ray_address: str | None = RUNNER(None, "of a Ray cluster [RAY_ADDRESS, or a Ray on this machine]", "ADDRESS")
    cpus_per_run: float = RUNNER(1.0, "CPUs, and threads, of each on Ray", check=checks.above_zero)
    gpus_per_run: float | None = RUNNER(None, "GPUs of each on Ray, such as 0.5 [1 if the cluster has any]")

    @classmethod
    def take_from(cls, flags: dict[str, Any]) -> RunnerOptions:
        """Remove these options from a command's flags, and return them checked; None is the default."""
        options = cls(**check_given(cls, {name: flags.pop(name, None) for name in rows(cls)}))
        for name in ("ray_address", "gpus_per_run"):
            if (value := getattr(options, name)) is not None and options.runner != "ray":
                flag = rows(cls)[name].flag
                raise MinipeftError(f"{flag} {value}: the runner is local. Add --runner ray, or leave it out.")
        return options
