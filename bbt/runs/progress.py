"""A progress bar that watches a run."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bbt.runs.observer import Observer, Observers, Progress


class Bar(Observer):
    """An observer that draws a bar on a terminal and in a notebook, and nothing elsewhere."""

    def __init__(self) -> None:
        from tqdm import tqdm

        # In a notebook standard error is no terminal, and shows a bar all the same.
        self.bar = tqdm(disable=False if _in_notebook() else None, file=sys.stderr, dynamic_ncols=True)

    def opened(self, folder: Path) -> None:
        """Say in which folder the run is kept."""
        if not self.bar.disable:
            self.bar.write(f"run folder: {folder}", file=sys.stderr)

    def started(self, total: int, unit: str) -> None:
        """Set the bar's length."""
        self.bar.total, self.bar.unit = total, unit

    def progressed(self, progress: Progress) -> None:
        """Move the bar."""
        best = "-" if progress.best_metric is None else f"{100 * progress.best_metric:.1f}"
        self.bar.set_postfix_str(f"train loss {progress.train_loss:.3f}, best dev {best}", refresh=False)
        self.bar.update(progress.done - self.bar.n)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()


def _in_notebook() -> bool:
    """Whether this code runs in a notebook's kernel; that ipykernel is imported says nothing, other packages do so."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


@contextmanager
def shown_progress(show: bool, observer: Observer | None = None) -> Iterator[Observer | None]:
    """An observer with a bar beside it where one is to be shown."""
    if not show:
        yield observer
        return
    bar = Bar()
    try:
        yield Observers([bar, *([observer] if observer else [])])
    finally:
        bar.close()
