"""One run in a process of its own: `python -m bbt.compare.worker`, told what to do by a JSON line on standard input.

The peak memory is then the run's own, and a crash takes no other run with it. Standard input stays open as long as the
parent lives: when it ends, the run stops too, and can be resumed. Progress goes to standard output, a JSON line each.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

from bbt import api
from bbt.config import make_config
from bbt.errors import BbtError
from bbt.runs.observer import Observer, Progress


class Lines(Observer):
    """Tells the parent how far the run is, twice a second at most."""

    def __init__(self) -> None:
        self.total, self.told = 0, 0.0

    def started(self, total: int, unit: str) -> None:
        """Keep the length."""
        self.total = total

    def progressed(self, progress: Progress) -> None:
        """Tell the share that is done."""
        if time.monotonic() - self.told > 0.5:
            self.told = time.monotonic()
            print(json.dumps({"done": progress.done, "total": self.total}), flush=True)


def end_with_parent() -> None:
    """Wait for standard input to end."""
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Run, resume or extend one run; an error for people is one line, exit code 2."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()
    folder, observer = Path(job["folder"]), Lines()
    try:
        if (folder / "config.yaml").is_file():
            api.resume(folder, job["budget"], observer)
        else:
            _clear(folder)
            api.run(make_config(job["config"]), folder.parent, observer)
    except BbtError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)


def _clear(folder: Path) -> None:
    """Remove what a run leaves that is killed before its config is written."""
    if folder.is_dir():
        (folder / "config.yaml.partial").unlink(missing_ok=True)
        folder.rmdir()


if __name__ == "__main__":
    main()
