"""A run's figures for TensorBoard, where it is installed: `tensorboard --logdir RUN/tensorboard`.

The records are written here one by one: torch.utils.tensorboard writes them in a thread of its own, in which a full
disk ends in a traceback that nobody can catch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from minipeft.errors import MinipeftError
from minipeft.files import make_folder

logger = logging.getLogger("minipeft")


class Events:
    """Figures by step, as an event file in `folder`, which the first figure makes.

    first_step    the first that is written; TensorBoard forgets what an interrupted run wrote of it and of later ones
    wanted        False writes nothing, and so does a machine without TensorBoard

    A file that cannot be written is said once and ends the events, not the run.
    """

    def __init__(self, folder: Path, first_step: int, wanted: bool = True) -> None:
        self.path = folder / f"events.out.tfevents.{time.time_ns()}"
        self.first_step, self.wanted = first_step, wanted

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Write figures by name."""
        if not self.wanted:
            return
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            self.wanted = False
            return
        events = []
        if not self.path.exists():
            events += [Event(file_version="brain.Event:2")]
            events += [Event(step=self.first_step, session_log=SessionLog(status=SessionLog.START))]
        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        events += [Event(step=step, summary=Summary(value=values))]
        try:
            make_folder(self.path.parent)
            with open(self.path, "ab") as file:
                for event in events:
                    event.wall_time = time.time()
                    RecordWriter(file).write(event.SerializeToString())
        except (OSError, MinipeftError) as error:
            logger.warning("%s: cannot be written (%s); TensorBoard gets no more of this run", self.path, error)
            self.wanted = False
