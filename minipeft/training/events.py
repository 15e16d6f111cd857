"""A run's figures for TensorBoard, where it is installed: `tensorboard --logdir RUN/tensorboard`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

logger = logging.getLogger("minipeft")


class Events:
    """Figures by step, as event files in `folder`, which the first figure makes.

    first_step    the first that is written; TensorBoard forgets what an interrupted run wrote of it and of later ones
    wanted        False writes nothing, and so does a machine without TensorBoard

    A file that cannot be written is said once and ends the events, not the run.
    """

    def __init__(self, folder: Path, first_step: int, wanted: bool = True) -> None:
        self.folder, self.first_step, self.wanted = folder, first_step, wanted
        self.writer: Any = None

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Write figures by name."""
        if self.wanted:
            self._attempt(lambda: self._add(step, figures))

    def flush(self) -> None:
        """Have what was added in the file."""
        if self.writer is not None:
            self._attempt(self.writer.flush)

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.writer is not None:
            self._attempt(self.writer.close)

    def _add(self, step: int, figures: Mapping[str, float]) -> None:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder), purge_step=self.first_step)
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def _attempt(self, write: Any) -> None:
        try:
            write()
        except ImportError:
            self.wanted = False
        except OSError as error:
            logger.warning("%s: cannot be written (%s); no more events for TensorBoard", self.folder, error.strerror)
            self.wanted, self.writer = False, None
