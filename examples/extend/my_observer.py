"""An observer: writes the training loss after each generation into `curve.csv` in the run's folder."""

from pathlib import Path

from bbt.runs.observer import Observer, Progress


class Curve(Observer):
    folder: Path | None = None

    def opened(self, folder: Path) -> None:
        self.folder = folder

    def progressed(self, progress: Progress) -> None:
        if self.folder:  # `bbt.tune` has none
            with (self.folder / "curve.csv").open("a") as file:
                file.write(f"{progress.done},{progress.train_loss:.6f}\n")
