"""How a population times rows is cut into micro-batches: no padding where it can be had for free."""

from collections.abc import Sequence
from dataclasses import dataclass

PADDED_TOKENS = 1024
"""Rows of different lengths share a batch, padded, only while it has fewer tokens than this: below it the cost
of a forward pass is in starting it."""


@dataclass(frozen=True)
class MicroBatch:
    """Candidates [start, stop) times the rows named, all padded to `length` tokens."""

    start: int
    stop: int
    rows: tuple[int, ...]
    length: int


def micro_batches(lengths: Sequence[int], n_candidates: int, token_budget: int) -> list[MicroBatch]:
    """Cover every (candidate, row) once with batches of at most `token_budget` tokens (one sequence at least).

    Rows of one length are stacked over the whole population, so that large batches need no padding at all.
    """
    batches = []
    for rows in _row_groups(lengths, n_candidates, token_budget):
        length = max(lengths[row] for row in rows)
        step = max(1, token_budget // (length * len(rows)))
        for start in range(0, n_candidates, step):
            batches.append(MicroBatch(start, min(start + step, n_candidates), rows, length))
    return batches


def _row_groups(lengths: Sequence[int], n_candidates: int, token_budget: int) -> list[tuple[int, ...]]:
    """Rows, longest first, cut where the length changes (unless the batch is small) or the budget is full."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups:
            longest = lengths[groups[-1][0]]
            tokens = longest * (len(groups[-1]) + 1)
            same = lengths[row] == longest or tokens * n_candidates <= PADDED_TOKENS
            if same and tokens <= token_budget:
                groups[-1].append(row)
                continue
        groups.append([row])
    return [tuple(group) for group in groups]
