"""How a population times rows is cut into micro-batches."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MicroBatch:
    """Candidates [start, stop) times the rows named, rows of one length next to each other."""

    start: int
    stop: int
    rows: tuple[int, ...]

    @property
    def chosen(self) -> slice:
        """The candidates."""
        return slice(self.start, self.stop)


def micro_batches(
    lengths: Sequence[int], n_candidates: int, token_budget: int, one_length: bool = False
) -> list[MicroBatch]:
    """Cover every (candidate, row) once with batches of at most `token_budget` tokens (one sequence at least).

    Rows are stacked over the whole population, longest first; with `one_length` each batch has rows of one length
    only.
    """
    batches = []
    for rows in _row_groups(lengths, token_budget // n_candidates, one_length):
        step = max(1, token_budget // sum(lengths[row] for row in rows))
        for start in range(0, n_candidates, step):
            batches.append(MicroBatch(start, min(start + step, n_candidates), rows))
    return batches


def _row_groups(lengths: Sequence[int], limit: int, one_length: bool) -> list[tuple[int, ...]]:
    """Rows, longest first, in groups of at most `limit` tokens (one row at least)."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups:
            fits = sum(lengths[other] for other in groups[-1]) + lengths[row] <= limit
            if fits and (not one_length or lengths[row] == lengths[groups[-1][0]]):
                groups[-1].append(row)
                continue
        groups.append([row])
    return [tuple(group) for group in groups]
