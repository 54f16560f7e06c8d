"""A population times rows is cut into micro-batches here, and the tokens of each are laid out.

A micro-batch is one row of tokens: sequences end to end, those of one length next to each other, no padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


@dataclass(frozen=True)
class MicroBatch:
    """A block of candidates times rows; rows of one length stand next to each other."""

    start: int
    """The block's first candidate."""
    stop: int
    """The candidate after its last."""
    rows: tuple[int, ...]
    """The rows, by number."""

    @property
    def chosen(self) -> slice:
        """The candidates as a slice of the population."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Group:
    """Sequences of one length: the rows of candidate 0, then those of candidate 1, and so on."""

    n_candidates: int
    """The number of candidates."""
    n_rows: int
    """The number of rows of each candidate."""
    length: int
    """The tokens N of each sequence."""

    @property
    def n_tokens(self) -> int:
        """The tokens of all the sequences."""
        return self.n_candidates * self.n_rows * self.length


@dataclass(frozen=True)
class Layout:
    """Where the P tokens of a micro-batch's S sequences come from, and what is read of them."""

    groups: tuple[Group, ...]
    """The sequences by length, in the order in which they lie."""
    source: Index
    """(P,) where each token stands in the rows laid end to end."""
    candidates: Index
    """(P,) candidate of each token, counted from the batch's first."""
    positions: Index
    """(P,) place of each token in its row."""
    read: Index
    """(S,) token from whose hidden state each sequence is scored; with several a sequence (`reading_on`) one after the
    other."""
    sequences: tuple[Index, Index]
    """(S,) candidate, counted from the batch's first, and (S,) row of each token that is read."""


def micro_batches(
    lengths: Sequence[int], n_candidates: int, token_budget: int, one_length: bool = False, padded: bool = False
) -> list[MicroBatch]:
    """Cover every (candidate, row) once with batches of at most `token_budget` tokens (one sequence at least).

    Rows are stacked over the whole population, longest first; with `one_length` each batch has rows of one length
    only. With `padded` every row counts as many tokens as the longest beside it.
    """
    batches = []
    for rows in _row_groups(lengths, token_budget // n_candidates, one_length, padded):
        n_tokens = lengths[rows[0]] * len(rows) if padded else sum(lengths[row] for row in rows)
        step = max(1, token_budget // n_tokens)
        for start in range(0, n_candidates, step):
            batches.append(MicroBatch(start, min(start + step, n_candidates), rows))
    return batches


def _row_groups(lengths: Sequence[int], limit: int, one_length: bool, padded: bool) -> list[tuple[int, ...]]:
    """The rows, longest first, in groups of at most `limit` tokens (one row at least)."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups:
            longest, beside = lengths[groups[-1][0]], groups[-1]
            n_tokens = longest * (len(beside) + 1) if padded else sum(lengths[i] for i in beside) + lengths[row]
            if n_tokens <= limit and (not one_length or lengths[row] == longest):
                groups[-1].append(row)
                continue
        groups.append([row])
    return [tuple(group) for group in groups]


def laid_out(batch: MicroBatch, starts: Index, lengths: Sequence[int], reads: Sequence[int], skip: int = 0) -> Layout:
    """Lay out a micro-batch whose rows begin at `starts` in the rows laid end to end; the first `skip` tokens of each
    are left out."""
    n = batch.stop - batch.start
    groups, sources, candidates, positions, read, who, which = [], [], [], [], [], [], []
    n_tokens = 0
    for length, same in groupby(batch.rows, key=lambda row: lengths[row] - skip):
        rows = np.array(list(same))
        place = np.arange(skip, skip + length)
        shape = (n, len(rows), length)
        sources.append(np.broadcast_to(starts[rows][:, None] + place, shape).ravel())
        positions.append(np.broadcast_to(place, shape).ravel())
        candidates.append(np.broadcast_to(np.arange(n)[:, None, None], shape).ravel())
        first = n_tokens + length * np.arange(n * len(rows)).reshape(shape[:2])
        read.append((first + np.array([reads[row] - skip for row in rows])).ravel())
        who.append(np.repeat(np.arange(n), len(rows)))
        which.append(np.tile(rows, n))
        groups.append(Group(*shape))
        n_tokens += groups[-1].n_tokens
    cat = np.concatenate
    return Layout(tuple(groups), cat(sources), cat(candidates), cat(positions), cat(read), (cat(who), cat(which)))


def by_candidate(layout: Layout) -> Layout:
    """The same sequences, candidate after candidate instead of length after length. `groups` then no longer says in
    which order they lie."""
    tokens = np.argsort(layout.candidates, kind="stable")
    order = np.argsort(layout.sequences[0], kind="stable")
    moved_to = np.empty_like(tokens)
    moved_to[tokens] = np.arange(len(tokens))
    return replace(
        layout,
        source=layout.source[tokens],
        candidates=layout.candidates[tokens],
        positions=layout.positions[tokens],
        read=moved_to[layout.read[order]],
        sequences=(layout.sequences[0][order], layout.sequences[1][order]),
    )


def reading_on(layout: Layout, counts: Sequence[int]) -> Layout:
    """The same tokens; of each row so many are read, from the one that was read on."""
    candidates, rows = layout.sequences
    times = np.asarray(counts)[rows]
    further = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
    sequences = np.repeat(candidates, times), np.repeat(rows, times)
    return replace(layout, read=np.repeat(layout.read, times) + further, sequences=sequences)
