"""One run in a process of its own: `python -m bbt.compare.worker`, told what to do by a JSON line on standard input.

The peak memory is then the run's own, and a crash takes no other run with it. Standard input stays open as long as the
parent lives: when it ends, the run stops too, and can be resumed. Progress goes to what was standard output when the
process began, a JSON line each; what the run itself prints, from Python or from C, goes to standard error, the log.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

from bbt import api
from bbt.config import make_config
from bbt.errors import BbtError
from bbt.runs.observer import Observer, Progress


class Lines(Observer):
    """Tells the parent how far the run is, twice a second at most."""

    def __init__(self, channel: TextIO) -> None:
        self.channel, self.total, self.told = channel, 0, 0.0

    def started(self, total: int, unit: str) -> None:
        """Keep the length."""
        self.total = total

    def progressed(self, progress: Progress) -> None:
        """Tell the share that is done."""
        if time.monotonic() - self.told > 0.5:
            self.told = time.monotonic()
            self.channel.write(json.dumps({"done": progress.done, "total": self.total}) + "\n")
            self.channel.flush()


def own_channel() -> TextIO:
    """Standard output as it is now; from here on that is standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def end_with_parent() -> None:
    """Wait for standard input to end."""
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Run, resume or extend one run; an error for people is one line, exit code 2."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()
    folder, observer = Path(job["folder"]), Lines(own_channel())
    try:
        if (folder / "config.yaml").is_file():
            api.resume(folder, job["budget"], observer)
        else:
            _clear(folder)
            api.run(make_config(job["config"]), folder.parent, observer)
    except BbtError as error:
        sys.stdout.flush()  # so that the error is the log's last line
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        sys.exit(2)


def _clear(folder: Path) -> None:
    """Remove what a run leaves that is killed before its config is written."""
    if folder.is_dir():
        (folder / "config.yaml.partial").unlink(missing_ok=True)
        folder.rmdir()


if __name__ == "__main__":
    main()
