"""TensorBoard: event files that `tensorboard --logdir runs` shows."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bbt.drawing import png_bytes
from bbt.runs.trackers.base import Closing, Tracker

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary


class TensorBoard(Tracker):
    """A tracker that writes event files into `folder` (none: into the run's own folder, and for a run in memory into
    one of its title and time in `tensorboard/`)."""

    name = "tensorboard"

    def __init__(self, folder: Path | str | None = None) -> None:
        super().__init__()
        self.folder = folder

    def begin(self, title: str, config: dict[str, Any], folder: Path | None) -> None:
        """Open a file, and write the config into it."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        beside = Path("tensorboard") / f"{title}-{time.strftime('%Y%m%d-%H%M%S')}"
        self._writer = EventFileWriter(str(self.folder or folder or beside))
        again = SessionLog(status=SessionLog.START)  # a resumed run tells all again: what was told before is dropped
        self._writer.add_event(Event(wall_time=time.time(), step=0, session_log=again))
        self._add(text_pb("config", "".join(f"    {key}: {value}\n" for key, value in config.items())), 0)

    def log(self, figures: dict[str, float], step: int) -> None:
        """Write one point of each curve."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add(Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]), step)

    def end(self, closing: Closing | None) -> None:
        """Write the final figures, the table and the plot."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.text.summary_v2 import text_pb

        if closing:
            step = int(closing.figures["cost/train queries"])
            self.log(closing.figures, step)
            self._add(text_pb("result", closing.markdown), step)
            picture = Summary.Image(encoded_image_string=png_bytes(closing.plot), colorspace=4)
            self._add(Summary(value=[Summary.Value(tag="convergence", image=picture)]), step)
        self._writer.close()

    def _add(self, summary: "Summary", step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
