"""The progress bar of a command, and what Ctrl-C does."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bbt.cli.common import complain
from bbt.runs.observer import Progress
from bbt.runs.progress import Bar


class InterruptibleBar(Bar):
    """A bar that knows its run's folder and hands Ctrl-C on."""

    def __init__(self) -> None:
        super().__init__()
        self.folder: Path | None = None
        self.interrupted = False

    def opened(self, folder: Path) -> None:
        """Say in which folder the run is kept."""
        self.folder = folder
        super().opened(folder)

    def interrupt(self, *_: object) -> None:
        """Take Ctrl-C, and remember it."""
        self.interrupted = True
        raise KeyboardInterrupt

    def progressed(self, progress: Progress) -> None:
        """Move the bar."""
        if self.interrupted:  # some libraries swallow it while they are imported
            raise KeyboardInterrupt
        super().progressed(progress)


@contextmanager
def progress_bar() -> Iterator[InterruptibleBar]:
    """A bar while a run lasts; Ctrl-C says how to go on."""
    observer = InterruptibleBar()
    before = signal.signal(signal.SIGINT, observer.interrupt)
    try:
        yield observer
    except KeyboardInterrupt:
        observer.close()
        if observer.folder and observer.folder.is_dir():
            complain(f"stopped; nothing is lost: bbt resume {observer.folder} goes on.")
        else:
            complain("stopped before the run began: there is nothing to resume.")
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, before)
        observer.close()
