"""A progress bar for `bbt run` and `bbt resume`."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bbt.cli.common import complain
from bbt.runs.observer import Observer, Progress


class Bar(Observer):
    """A bar on a terminal; elsewhere nothing is drawn."""

    def __init__(self) -> None:
        from tqdm import tqdm

        self.bar = tqdm(disable=None, file=sys.stderr, dynamic_ncols=True)
        self.folder: Path | None = None
        self.interrupted = False

    def opened(self, folder: Path) -> None:
        """Say in which folder the run is kept."""
        self.folder = folder
        if not self.bar.disable:
            self.bar.write(f"run folder: {folder}", file=sys.stderr)

    def started(self, total: int, unit: str) -> None:
        """Set the bar's length."""
        self.bar.total, self.bar.unit = total, unit

    def interrupt(self, *_: object) -> None:
        """Take Ctrl-C, and remember it."""
        self.interrupted = True
        raise KeyboardInterrupt

    def progressed(self, progress: Progress) -> None:
        """Move the bar."""
        if self.interrupted:  # some libraries swallow it while they are imported
            raise KeyboardInterrupt
        best = "-" if progress.best_metric is None else f"{100 * progress.best_metric:.1f}"
        self.bar.set_postfix_str(f"train loss {progress.train_loss:.3f}, best dev {best}", refresh=False)
        self.bar.update(progress.done - self.bar.n)


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """A bar while a run lasts; Ctrl-C says how to go on."""
    observer = Bar()
    before = signal.signal(signal.SIGINT, observer.interrupt)
    try:
        yield observer
    except KeyboardInterrupt:
        observer.bar.close()
        if observer.folder and observer.folder.is_dir():
            complain(f"stopped; nothing is lost: bbt resume {observer.folder} goes on.")
        else:
            complain("stopped before the run began: there is nothing to resume.")
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, before)
        observer.bar.close()
