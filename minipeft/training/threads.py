"""CPU threads of a run, no more than the cores that other processes leave free, and its memory.

OpenMP's threads wait for each other in busy loops. A thread that shares its core with another process therefore slows
down all of them: with one busy process on two cores, two threads train at a fifth of the speed, one thread at more than
half of it.
"""

import ctypes
import math
import os
import sys
import time
from pathlib import Path

from minipeft.errors import logger

SAMPLE_SECONDS = 0.1  # in which the machine's load is measured
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LOW_SHARE = 0.7  # CPU seconds per thread and second, below which a run is told that its threads wait


def count_cores() -> int:
    """Return the number of CPU cores that this process may use: its affinity, and its cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # another system, or version 1 of cgroups
        return cores


def choose_threads(threads: int | None) -> None:
    """Set torch's threads to --threads, or to the cores that are free; OMP_NUM_THREADS takes precedence over these."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        cores = count_cores()
        free = max(1, min(cores, round((os.cpu_count() or 1) - _cores_of_others(SAMPLE_SECONDS))))
        if free < min(cores, torch.get_num_threads()):
            torch.set_num_threads(free)
            logger.warning("%d of %d cores are free: as many threads. Pass --threads to use more.", free, cores)


def keep_memory() -> None:
    """Let glibc keep freed memory: every step allocates the same blocks again, and new ones cost page faults."""
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)  # other C libraries have none
        mallopt(M_MMAP_THRESHOLD, 1 << 25)  # the largest that malloc itself chooses in the course of a run
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def _cores_of_others(seconds: float) -> float:
    """Return how many cores the other processes of this machine use now."""
    before = _busy_seconds()
    if before is None:
        return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    own = time.process_time()
    time.sleep(seconds)
    return max(0.0, ((_busy_seconds() or before) - before - (time.process_time() - own)) / seconds)


def _busy_seconds() -> float | None:
    """Return the CPU seconds that all processes of this machine have used; None where the system does not say."""
    try:
        _, user, nice, system, _, _, *others = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        ticks_per_second = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):  # another system than Linux
        return None
    ticks = sum(map(int, (user, nice, system, *others[:3])))  # with interrupts and the time that a hypervisor takes
    return ticks / ticks_per_second


class CpuMonitor:
    """Warns where the threads of a run wait because other processes use their cores."""

    def __init__(self) -> None:
        self.warned = False
        self._start()

    def _start(self) -> None:
        self.start = time.perf_counter(), time.process_time(), _busy_seconds()

    def check(self) -> None:
        """Log one line if the threads have had less than 70 percent of their cores since the last check."""
        import torch

        start_time, start_own, start_busy = self.start
        self._start()
        elapsed, own = self.start[0] - start_time, self.start[1] - start_own
        threads = torch.get_num_threads()
        if self.warned or start_busy is None or self.start[2] is None or elapsed < 10 * SAMPLE_SECONDS:
            return
        others = (self.start[2] - start_busy - own) / elapsed
        share, free = own / (threads * elapsed), max(1, round((os.cpu_count() or 1) - others))
        if share < LOW_SHARE and free < threads:
            self.warned = True
            logger.warning(
                "the CPU is busy with other processes: %d threads had %.0f percent of their cores. Pass --threads %d.",
                threads,
                100 * share,
                free,
            )
