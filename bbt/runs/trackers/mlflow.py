"""MLflow: a run at the tracking server that MLFLOW_TRACKING_URI names, or in a file or database."""

import time
from pathlib import Path
from typing import Any

from bbt.runs.trackers.base import Closing, Tracker


class MLflow(Tracker):
    """A tracker that makes a run in `experiment`, at `uri` (none: where MLflow's own settings say)."""

    name = "mlflow"

    def __init__(self, experiment: str = "bbt", uri: str | None = None) -> None:
        super().__init__()
        self.experiment, self.uri = experiment, uri

    def begin(self, title: str, config: dict[str, Any], folder: Path | None) -> None:
        """Make the run, with the config as its parameters."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(self.uri)
        known = self._client.get_experiment_by_name(self.experiment)
        place = known.experiment_id if known else self._client.create_experiment(self.experiment)
        self._id = self._client.create_run(place, run_name=title).info.run_id
        values = [Param(key, str(value)[:500]) for key, value in config.items()]  # older servers take no more
        for first in range(0, len(values), 100):  # a batch holds no more
            self._client.log_batch(self._id, params=values[first : first + 100])

    def log(self, figures: dict[str, float], step: int) -> None:
        """Hand on one point of each curve."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._id, [Metric(name, value, now, step) for name, value in figures.items()])

    def end(self, closing: Closing | None) -> None:
        """Hand on the final figures, the table and the plot, and close the run."""
        if closing:
            self.log(closing.figures, int(closing.figures["cost/train queries"]))
            self._client.log_text(self._id, closing.markdown, "result.md")
            self._client.log_figure(self._id, closing.plot, "convergence.png")
        self._client.set_terminated(self._id, "FINISHED" if closing else "FAILED")
