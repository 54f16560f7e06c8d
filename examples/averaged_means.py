"""Whether the mean of a search's last means does better than the last one: on finished runs of CMA-ES, replayed from
their logs without a query of the search.

    python examples/averaged_means.py runs/small-budgets/trec/black-box-seed*
"""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from bbt.build import make_experiment
from bbt.config import read_run_config
from bbt.experiment.classifiers import calibrated
from bbt.experiment.many_words import read_out, read_words
from bbt.methods import load_method
from bbt.methods.prompt_search import SoftSearch
from bbt.open_models import open_model
from bbt.runs.log import EventLog
from bbt.scoring.ledger import Ledger
from bbt.scoring.losses import predicted
from bbt.tasks.task import labels_of

SHARES = {"last": 0.0, "last quarter": 0.25, "last half": 0.5}
"""Which of the generations' means are averaged, by name: this share of them at the end, and at least one."""


class Remembering:
    """An optimizer, and the means (d,) that it has had after each generation."""

    def __init__(self, optimizer):
        self.optimizer, self.means = optimizer, []

    def __getattr__(self, name):
        return getattr(self.optimizer, name)

    def tell(self, latents, losses):
        """Tell the optimizer, and keep the mean that it comes to."""
        self.optimizer.tell(latents, losses)
        self.means.append(self.optimizer.mean.copy())


def compared(folder):
    """Name -> training loss, dev loss and test metric at an average of a run's means."""
    config = read_run_config(folder)
    with tempfile.TemporaryDirectory() as copy:
        backend = open_model(config.model).backend
        e = make_experiment(config, backend, EventLog(Path(shutil.copy(folder / "events.jsonl", copy))))
        method = load_method(config)
        read_words(e, method.n_words)
        search = SoftSearch(e, method)
        tuner = search.tuner
        tuner.optimizer = optimizer = Remembering(tuner.optimizer)
        tuner.run()
        means = np.array(optimizer.means)
        points = np.array([means[-max(1, round(share * len(means))) :].mean(axis=0) for share in SHARES.values()])
        losses = tuner.objective.latent_losses(points, tuner.space)
        verdicts = tuner.judge.latent_verdicts(points, tuner.space)
        found = {}
        for name, prompt, loss, verdict in zip(SHARES, tuner.space.prompts(points), losses, verdicts, strict=True):
            classifier, biases = read_out(e, e.soft_prompt(prompt, None), (search.train, search.dev))
            scores = calibrated(classifier, biases or verdict.biases).scores(e.split.test, Ledger())
            metric = e.task.evaluate(labels_of(e.split.test), predicted(scores))[e.task.metrics[0]]
            found[name] = (float(loss), verdict.loss, 100 * metric)
        return found


def main(folders):
    """Print a line for each run, and the differences from the last mean over all of them."""
    rows = []
    for folder in map(Path, folders):
        rows.append(compared(folder))
        figures = (f"{name}: {a:.3f} {b:.3f} {c:.1f}" for name, (a, b, c) in rows[-1].items())
        print(f"{folder.parent.name}/{folder.name}", *figures, sep="   ", flush=True)
    last = np.array([row["last"] for row in rows])
    for name in list(SHARES)[1:]:
        difference = np.array([row[name] for row in rows]) - last
        spread = difference.std(axis=0, ddof=1) if len(rows) > 1 else np.zeros(3)
        figures = (f"{m:+.3f} ± {s:.3f}" for m, s in zip(difference.mean(axis=0), spread, strict=True))
        print(f"{name} less the last, {len(rows)} runs: training loss, dev loss, test metric:", *figures, sep="   ")


if __name__ == "__main__":
    main(sys.argv[1:])
