"""One run in a process of its own: `python -m bbt.compare.worker` is told what to do by a JSON line on standard input.

The peak memory is then the run's own, and a crash takes no other run with it. Standard input stays open as long as the
parent lives: when it ends, the run stops too, and can be resumed. Progress goes to what was standard output when the
process began, a JSON line each; what the run itself prints, from Python or from C, goes to standard error, the log.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from bbt.compare.job import Job, run_cell
from bbt.errors import BbtError
from bbt.runs.observer import Observer, Progress


class Teller(Observer):
    """An observer that tells how much of its total a run has done, twice a second at most."""

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self._tell, self._total, self._told = tell, 0, 0.0

    def started(self, total: int, unit: str) -> None:
        """Remember the total."""
        self._total = total

    def progressed(self, progress: Progress) -> None:
        """Tell the share that is done."""
        if time.monotonic() - self._told > 0.5:
            self._told = time.monotonic()
            self._tell(progress.done, self._total)


def own_channel() -> TextIO:
    """Keep standard output as it is now for ourselves; from here on it is standard error to everybody else."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def end_with_parent() -> None:
    """Wait until standard input ends, then stop the run."""
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Make, resume or extend one run; an error for people is one line, with exit code 2."""
    job = Job(**json.loads(sys.stdin.readline()))
    threading.Thread(target=end_with_parent, daemon=True).start()
    channel = own_channel()

    def tell(done: int, total: int) -> None:
        channel.write(json.dumps({"done": done, "total": total}) + "\n")
        channel.flush()

    try:
        run_cell(job, Teller(tell))
    except BbtError as error:
        sys.stdout.flush()  # so that the error is the log's last line
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
