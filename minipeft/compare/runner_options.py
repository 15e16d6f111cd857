"""The table of a runner's options: where several commands are executed, and how many at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minipeft.errors import MinipeftError, check_int
from minipeft.training.settings import checks
from minipeft.training.settings.setting import check_given, rows, setting

GROUP = "runner"


@dataclass(frozen=True)
class RunnerOptions:
    """The flags --runner, --jobs, …; None: not given."""

    runner: str = setting(
        "local", checks.choice("local", "ray"), GROUP, "local, or ray: on a Ray cluster that shares --output"
    )
    jobs: int | None = setting(
        None, check_int, GROUP, "at once [CPU: by cores and memory; --jobs-per-gpu on each GPU; ray: all]", metavar="N"
    )
    jobs_per_gpu: int = setting(1, check_int, GROUP, "at once on each GPU of this machine", metavar="N")
    ray_address: str | None = setting(
        None, checks.text, GROUP, "of a Ray cluster [RAY_ADDRESS, or a Ray on this machine]", metavar="ADDRESS"
    )
    cpus_per_run: float = setting(1.0, checks.above_zero, GROUP, "CPUs, and threads, of each on Ray", metavar="N")
    gpus_per_run: float | None = setting(
        None, checks.not_negative, GROUP, "GPUs of each on Ray, such as 0.5 [1 if the cluster has any]", metavar="N"
    )

    @classmethod
    def take_from(cls, flags: dict[str, Any]) -> RunnerOptions:
        """Remove these options from a command's flags, and return them checked; None is the default.

        Raises:
            MinipeftError: for values that do not fit together.
        """
        options = cls(**check_given(cls, {name: flags.pop(name, None) for name in rows(cls)}))
        for name in ("ray_address", "gpus_per_run"):
            if (value := getattr(options, name)) is not None and options.runner != "ray":
                flag = rows(cls)[name].flag
                raise MinipeftError(f"{flag} {value}: the runner is local. Add --runner ray, or leave it out.")
        return options
