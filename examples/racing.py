"""What racing would save: candidates are scored on a part of the rows, and only those that look best there on the
others.

CMA-ES learns from the order of the better half of a generation. This asks of finished runs whose logs hold label scores
(`optimizer.name: kernel-surrogate`) how many of that half a race would have kept, and how many rows it would have
saved.

    python examples/racing.py runs/scores/trec/surrogate-seed*
"""

import sys
from pathlib import Path

import numpy as np

from bbt.config import read_run_config
from bbt.runs.log import EventLog, decode_scores
from bbt.scoring.calibration import class_biases
from bbt.scoring.losses import cross_entropy
from bbt.tasks.configured import make_split, make_task
from bbt.tasks.task import labels_of

FIRST = (0.25, 0.5)
"""The shares of the rows that are scored for all candidates."""
KEPT = (1 / 2, 2 / 3, 3 / 4)
"""The shares of the candidates that are scored on the other rows too."""
DRAWS = 20
"""How often the first rows are drawn, as many of each class."""


def losses(scores, labels):
    """The losses (n,) of scores (n, B, K) with class biases fitted to the same rows."""
    return cross_entropy(scores + class_biases("fitted", scores, labels)[:, None, :], labels)


def generations(folder):
    """Yield the label scores (n, B, K) of each generation of a run, and the rows' labels (B,)."""
    config = read_run_config(folder)
    labels = labels_of(make_split(config.data, make_task(config.task, "masked"), config.seed).train)
    for event in EventLog(folder / "events.jsonl").of("generation"):
        yield decode_scores(event["scores"], len(event["losses"]), len(labels)).astype(np.float64), labels


def kept(scores, labels, first, rng):
    """The share of the better half that is among the best by the `first` rows alone, for each of `KEPT`."""
    n = len(scores)
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    rows = np.concatenate([rng.permutation(of)[: max(1, round(first * len(of)))] for of in classes])
    better = set(np.argsort(losses(scores, labels))[: n // 2])
    raced = np.argsort(losses(scores[:, rows], labels[rows]))
    return [len(better & set(raced[: round(share * n)])) / len(better) for share in KEPT]


def main(folders):
    """Print a line for each race."""
    rng = np.random.default_rng(0)
    seen = [generation for folder in folders for generation in generations(Path(folder))]
    print(f"{len(seen)} generations of {len(folders)} runs, {DRAWS} draws each")
    for first in FIRST:
        found = np.mean([kept(*generation, first, rng) for generation in seen for _ in range(DRAWS)], axis=0)
        for share, of in zip(KEPT, found, strict=True):
            saved = (1 - first) * (1 - share)
            print(f"first {first:.0%} of the rows, then {share:.0%} of the candidates:", end=" ")
            print(f"{saved:.1%} of the rows saved, {of:.1%} of the better half kept")


if __name__ == "__main__":
    main(sys.argv[1:])
