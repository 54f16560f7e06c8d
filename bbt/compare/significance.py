"""Do two methods differ by more than their seeds? Paired tests over the seeds that both were run with say so.

The sign-flip test supposes nothing but that under no difference each seed's difference is as likely to be
negative as positive; with n seeds its p cannot fall below 2 / 2^n. The paired t-test supposes normal differences.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bbt.compare.comparison import Comparison
from bbt.compare.finished import factor
from bbt.compare.table import NOTHING, Table
from bbt.errors import ConfigError, unknown

LEVEL = 0.05
EXACT_SEEDS = 20
"""Up to so many seeds all sign flips are tried, 2^19 up to their sign; beyond, `DRAWS` of them."""
DRAWS = 2**16
"""Random sign flips where not all are tried: the standard error of a p of 0.05 is then below 0.001."""


@dataclass(frozen=True)
class Paired:
    """Two methods compared over the seeds that both were run with."""

    n: int
    """The number of those seeds."""
    difference: float
    """The mean over the seeds of one's figure less the other's."""
    higher: int
    """The number of seeds on which the difference is positive."""
    lower: int
    """The number of seeds on which it is negative."""
    p: float
    """The two-sided p of the sign-flip test."""
    p_t: float | None
    """The two-sided p of the paired t-test (none: the differences are all the same)."""

    @property
    def least_p(self) -> float:
        """The smallest p that so many seeds can give."""
        return float(2.0 / 2**self.n) if self.exact else 1.0 / (1 + DRAWS)

    @property
    def exact(self) -> bool:
        """Whether the sign-flip test has tried all flips."""
        return self.n <= EXACT_SEEDS


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Paired | None:
    """Compare two methods' figures, by seed, with two-sided tests; None where they share fewer than two seeds."""
    seeds = sorted(set(ours) & set(theirs))
    if len(seeds) < 2:
        return None
    differences = np.array([ours[seed] - theirs[seed] for seed in seeds])
    n, mean = len(seeds), float(differences.mean())
    higher, lower = int((differences > 0).sum()), int((differences < 0).sum())
    return Paired(n, mean, higher, lower, _sign_flip_p(differences), _t_p(differences))


def _sign_flip_p(differences: NDArray[np.float64]) -> float:
    """The share of sign flips whose sum is as far from zero as the differences' own; sums that differ by rounding
    alone are the same. A sampled share counts the differences themselves among the draws (Phipson and Smyth 2010)."""
    own = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    if len(differences) <= EXACT_SEEDS:
        sums = differences[:1]  # the flipped sign gives the same distances
        for difference in differences[1:]:
            sums = np.concatenate([sums + difference, sums - difference])
        return float(np.mean(np.abs(sums) >= own))
    rng, as_far = np.random.default_rng(0), 1
    for _ in range(64):
        signs = rng.choice([-1.0, 1.0], (DRAWS // 64, len(differences)))
        as_far += int((np.abs(signs @ differences) >= own).sum())
    return as_far / (1 + DRAWS)


def _t_p(differences: NDArray[np.float64]) -> float | None:
    from scipy.stats import ttest_1samp

    return None if np.ptp(differences) == 0 else float(ttest_1samp(differences, 0.0).pvalue)


def in_words(name: str, other: str, test: Paired | None, times: int = 100) -> str:
    """The sentence on what can be said of `name` against `other`; a difference is multiplied by `times` to be in
    points."""
    if test is None:
        return f"{name} and {other} share fewer than two seeds: nothing can be tested."
    if test.higher == test.lower == 0:
        return f"{name} and {other} have the same figure on each of {test.n} seeds."
    side = "above" if test.difference > 0 else "below"
    t = "" if test.p_t is None else f" A paired t-test, which supposes normal differences, gives p = {test.p_t:.2g}."
    return (
        f"{name} is {abs(times * test.difference):.2f} points {side} {other} on the mean of {test.n} seeds (higher on "
        f"{test.higher}, lower on {test.lower}). {_kind(test)} sign-flip test: p = {test.p:.2g}; {_verdict(test)}.{t}"
    )


def _kind(test: Paired) -> str:
    return "Exact" if test.exact else f"Sampled ({DRAWS:,} draws)"


def _verdict(test: Paired) -> str:
    if test.least_p > LEVEL:
        return (
            f"{test.n} seeds cannot give less than {test.least_p:.2g}, so that this test can show nothing at the "
            f"{100 * LEVEL:.0f} % level (6 seeds can)"
        )
    shown = "a difference is" if test.p <= LEVEL else "no difference is"
    return f"{shown} shown at the {100 * LEVEL:.0f} % level"


def pair_in_words(comparison: Comparison, method: str, other: str) -> list[str]:
    """A sentence for each test set and budget that both methods have.

    Raises:
        ConfigError: a method that is not in the plan.
    """
    for name in (method, other):
        if name not in comparison.plan.methods:
            raise ConfigError(unknown("method of the plan", name, comparison.plan.methods))
    return [
        f"{test} {metric}: "
        + in_words(a, b, paired(comparison.scores(a, column), comparison.scores(b, column)), factor(metric))
        for a, b in comparison.pairs(method, other)
        for column in comparison.columns
        for test, metric in [column]
    ]


def paired_tables(comparison: Comparison) -> list[Table]:
    """The tables of every method against each of the plan's `against`, on every test set."""
    references = comparison.plan.against or tuple(comparison.plan.methods)[:1]
    return [table for reference in references for table in _paired_table(comparison, reference)]


def _paired_table(comparison: Comparison, reference: str) -> Iterator[Table]:
    """Yield the table against one method, if anything can be tested; no row and no column is without a figure."""
    others = [method for method in comparison.plan.methods if method != reference]
    pairs = [pair for method in others for pair in comparison.pairs(method, reference)]
    cells = {pair: [_cell(comparison, *pair, column) for column in comparison.columns] for pair in pairs}
    rows = {f"{a} - {b}": row for (a, b), row in cells.items() if any(cell != NOTHING for cell in row)}
    if rows:
        kept = [i for i in range(len(comparison.columns)) if any(row[i] != NOTHING for row in rows.values())]
        head = ("difference", *(" ".join(comparison.columns[i]) for i in kept))
        body = tuple((name, *(row[i] for i in kept)) for name, row in rows.items())
        yield Table(f"Against {reference}, paired over seeds (points)", head, body, NOTES)


def _cell(comparison: Comparison, a: str, b: str, column: tuple[str, str]) -> str:
    test = paired(comparison.scores(a, column), comparison.scores(b, column))
    if test is None:
        return NOTHING
    sampled = "" if test.exact else ", sampled"
    return f"{factor(column[1]) * test.difference:+.2f} (p = {test.p:.2g}, n = {test.n}{sampled})"


NOTES = (
    "p of the two-sided sign-flip test over the n shared seeds, not corrected for the number of comparisons: of "
    f"twenty true nothings one is expected below 0.05. It is exact up to {EXACT_SEEDS} seeds; beyond, {DRAWS:,} flips "
    "are drawn, and the cell says sampled.",
    "The smallest p that n seeds can give is 2 / 2^n: 0.25 for 3, 0.062 for 5, 0.031 for 6. Fewer than 6 seeds cannot "
    "show a difference at the 5 % level by this test; `bbt compare PLAN --pair A B` says more of any two methods.",
)
