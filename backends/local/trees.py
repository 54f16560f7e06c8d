"""A tree is one sequence for a context and its targets, so that what they share is computed once.

The context comes first, then each target's tokens but its last. A target's tokens have the positions that follow the
context's, and see the context and their own target alone. What is read is the end of the sequence: the context's last
token, after which every target begins, and all tokens behind it.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.local.batching import Group, Index, Layout, MicroBatch
from backends.local.device import on_device
from backends.local.encoding import TokenPair, TokenRow
from backends.local.plans import Plan
from backends.local.unequal import Kernel, Lines, lines_of


@dataclass(frozen=True)
class TreeGroup(Group):
    """Trees of one length N."""

    n_read: int
    """The number of tokens at the end of each tree that are read."""
    mask: Tensor | None
    """(b, N, N) what is added to the attention of each tree's tokens: minus infinity where one does not see another
    (none: each sees itself and all that stands left of it)."""


@dataclass(frozen=True)
class TreeLayout(Layout):
    """Where the tokens of a micro-batch of trees lie, and where the M tokens of their targets are scored; `sequences`
    are those of these tokens: (M,) candidate and (M,) pair."""

    states: Index
    """(M,) which of the states that are read each target token comes next after."""
    targets: Index
    """(M,) the target tokens' ids."""

    @property
    def is_of_chains(self) -> bool:
        """Whether no tree needs a mask: each token sees all that stands left of it."""
        return all(isinstance(group, TreeGroup) and group.mask is None for group in self.groups)


def by_candidate(layout: TreeLayout) -> TreeLayout:
    """The same trees, candidate after candidate instead of length after length, as a kernel for unequal lengths takes
    them. `groups` then no longer says in which order they lie."""
    tokens = np.argsort(layout.candidates, kind="stable")
    reads = np.argsort(layout.candidates[layout.read], kind="stable")
    return replace(
        layout,
        source=layout.source[tokens],
        candidates=layout.candidates[tokens],
        positions=layout.positions[tokens],
        read=_moved_to(tokens)[layout.read[reads]],
        states=_moved_to(reads)[layout.states],
    )


def lines_of_trees(layout: TreeLayout, n_candidates: int, n_prefix: int, kernel: Kernel, device: torch.device) -> Lines:
    """Make the lines of a layout that lies candidate after candidate, the end of each sequence being read."""
    lines = lines_of(layout, n_candidates, n_prefix, kernel, device)
    begins = np.searchsorted(layout.read, lines.tokens.cpu().numpy())
    n_each = len(layout.read) // n_candidates
    of_candidates = np.arange(n_candidates + 1) * n_each
    return replace(
        lines,
        reads=on_device(begins.astype(np.int32), device),
        longest_read=int(np.diff(begins).max()),
        of_candidates=(lines.of_candidates[0], on_device(of_candidates.astype(np.int32), device)),
        n_each=(lines.n_each[0], n_each),
    )


def _moved_to(order: Index) -> Index:
    """Where each item is found after they have been put in an order."""
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places


class Tree:
    """A context with targets; `which` are the places of these pairs in their split."""

    def __init__(self, context: TokenRow, targets: Sequence[tuple[int, ...]], which: Sequence[int]) -> None:
        self.ids, self.read = list(context.ids), context.read
        self.positions = list(range(len(context.ids)))
        self.branches = [0] * len(context.ids)
        """(N,) 0 for a token of the context, k for one of target k."""
        self.scored: list[tuple[int, int, int]] = []
        """(M,) for each target token, the place that it comes next after, its id, and the place of its pair."""
        for number, (target, pair) in enumerate(zip(targets, which, strict=True), 1):
            after = [self.read, *range(len(self.ids), len(self.ids) + len(target) - 1)]
            self.scored += [(place, token, pair) for place, token in zip(after, target, strict=True)]
            self.ids += target[:-1]
            self.positions += range(len(context.ids), len(context.ids) + len(target) - 1)
            self.branches += [number] * (len(target) - 1)

    @property
    def is_chain(self) -> bool:
        """Whether each token sees all that stands left of it: one target at most has tokens of its own here."""
        return len({*self.branches}) <= 2

    def seen(self, skip: int) -> NDArray[np.bool_]:
        """Tell which tokens (N, N) each token sees, the first `skip` left out."""
        branches, places = np.array(self.branches[skip:]), np.arange(skip, len(self.branches))
        own = (branches[None] == 0) | (branches[None] == branches[:, None])
        return np.asarray(own & (places[None] <= places[:, None]))


class Forest:
    """The trees of one split, end to end (`LaidRows`).

    Where `longest` is not 0, pairs of one context stand in one tree, or in several of at most so many tokens, and what
    all contexts have in common at the left is left out of the trees, to be computed once a candidate.
    """

    anchor: Tensor | None = None
    """The anchor, of which pairs have none."""

    def __init__(self, pairs: Sequence[TokenPair], longest: int) -> None:
        self.n_pairs, self._shares = len(pairs), longest > 0
        self.trees = list(_grown(pairs, longest))
        self.lengths = [len(tree.ids) for tree in self.trees]
        self.reads = [tree.read for tree in self.trees]
        self.tokens: NDArray[np.int64] = np.concatenate([np.array(tree.ids, np.int64) for tree in self.trees])
        self.starts = np.cumsum([0, *self.lengths])
        self.plans: dict[Hashable, list[Plan]] = {}

    @cached_property
    def n_prefix(self) -> int:
        """The number of tokens at the left that are the same in every tree. Each tree keeps what is read of it."""
        if not self._shares:
            return 0
        shortest, first = min(self.reads), self.trees[0].ids
        return next((i for i in range(shortest) if any(tree.ids[i] != first[i] for tree in self.trees)), shortest)

    def laid_out(self, batch: MicroBatch, device: torch.device) -> TreeLayout:
        """Lay out a micro-batch of trees without what is common to all of them."""
        n, skip = batch.stop - batch.start, self.n_prefix
        groups: list[TreeGroup] = []
        columns: list[tuple[Index, ...]] = []
        scored: list[tuple[Index, ...]] = []
        reads: list[Index] = []
        n_tokens = n_states = 0
        for length, same in groupby(batch.rows, key=lambda row: self.lengths[row] - skip):
            rows = list(same)
            trees = [self.trees[row] for row in rows]
            n_read = skip + length - min(tree.read for tree in trees)
            shape = (n, len(rows), length)
            groups.append(TreeGroup(*shape, n_read, _mask(trees, skip, device)))
            source = self.starts[rows][:, None] + np.arange(skip, skip + length)
            positions = np.array([tree.positions[skip:] for tree in trees])
            columns.append(_spread(shape, source, np.arange(n)[:, None, None], positions))
            ends = np.arange(n_tokens, n_tokens + n * len(rows) * length).reshape(-1, length)[:, length - n_read :]
            reads.append(ends.ravel())
            row, place, token, pair = np.array(
                [(i, *item) for i, tree in enumerate(trees) for item in tree.scored], np.int64
            ).T
            candidates = np.arange(n)[:, None]
            states = n_states + (candidates * len(rows) + row) * n_read + place - (skip + length - n_read)
            scored.append(_spread((n, len(row)), candidates, pair, states, token))
            n_tokens, n_states = n_tokens + n * len(rows) * length, n_states + n * len(rows) * n_read
        source, who, positions = map(np.concatenate, zip(*columns, strict=True))
        candidates, pair, states, token = map(np.concatenate, zip(*scored, strict=True))
        read = np.concatenate(reads)
        return TreeLayout(tuple(groups), source, who, positions, read, (candidates, pair), states, token)


def _grown(pairs: Sequence[TokenPair], longest: int) -> Iterator[Tree]:
    """Make the trees of pairs; see `Forest`."""
    of_context: dict[tuple[int, ...], list[int]] = {}
    for i, pair in enumerate(pairs):
        of_context.setdefault(pair.context.ids if longest else (i,), []).append(i)
    for which in of_context.values():
        context, some, room = pairs[which[0]].context, list[int](), 0
        for i in which:
            n_own = len(pairs[i].target) - 1
            if some and n_own > room:
                yield Tree(context, [pairs[j].target for j in some], some)
                some = []
            room = (room if some else longest - len(context.ids)) - n_own
            some.append(i)
        yield Tree(context, [pairs[j].target for j in some], some)


def _mask(trees: Sequence[Tree], skip: int, device: torch.device) -> Tensor | None:
    """Make the mask of trees of one length; see `TreeGroup.mask`."""
    if all(tree.is_chain for tree in trees):
        return None
    seen = torch.from_numpy(np.stack([tree.seen(skip) for tree in trees])).to(device)
    return torch.zeros(seen.shape, device=device).masked_fill_(~seen, float("-inf"))


def _spread(shape: tuple[int, ...], *arrays: NDArray[Any]) -> tuple[Index, ...]:
    """Broadcast arrays to a shape, and flatten them."""
    return tuple(np.broadcast_to(array, shape).ravel() for array in arrays)
