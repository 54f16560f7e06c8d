"""Weights & Biases: a run at wandb.ai or at a server of one's own, or with WANDB_MODE=offline in a folder."""

from pathlib import Path
from typing import Any

from bbt.runs.trackers.base import Closing, Tracker


class WandB(Tracker):
    """A tracker that makes a run in `project`; `options` are those of `wandb.init`: entity, group, tags, mode, dir."""

    name = "wandb"

    def __init__(self, project: str = "bbt", **options: Any) -> None:
        super().__init__()
        self.options = {"project": project, **options}

    def begin(self, title: str, config: dict[str, Any], folder: Path | None) -> None:
        """Make the run, and say which axis each curve has."""
        import wandb

        quiet = wandb.Settings(console="off")  # it would take over the progress bar
        beside = {"name": title, "config": config, "reinit": "create_new", "settings": quiet}
        self._run = wandb.init(**{**beside, **self.options})
        for group, axis in (("train/*", "done"), ("dev/*", "cost/train queries"), ("cost/*", "cost/train queries")):
            self._run.define_metric(group, step_metric=axis)

    def log(self, figures: dict[str, float], step: int) -> None:
        """Hand on one point of each curve."""
        self._run.log({"done": step, **figures} if "train/loss" in figures else figures)

    def end(self, closing: Closing | None) -> None:
        """Hand on the final figures, the table and the plot, and finish the run."""
        import wandb

        if closing:
            head, *rows = closing.table
            table = wandb.Table(columns=list(head), data=[list(row) for row in rows])
            self._run.log({"result": table, "convergence": wandb.Image(closing.plot, caption=closing.selected)})
            self._run.summary.update(closing.figures)
        self._run.finish(exit_code=0 if closing else 1)
