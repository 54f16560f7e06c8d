"""A plan holds every index that the evaluation of one micro-batch needs, on the device.

Plans depend on the rows, the number of candidates and the token budget alone, and a search asks for the same ones
generation after generation: they are made once and kept beside the rows.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.local.batching import Layout, MicroBatch, by_candidate
from backends.local.device import on_device
from backends.local.encoding import prompt_id
from backends.local.unequal import Kernel, Lines, lines_of

KEPT_PLANS = 8
"""How many kinds of plans (numbers of candidates, budgets) are kept beside the rows of a split."""
KEPT_TOKENS = 2**21
"""Plans of one kind are kept up to so many tokens, of some 40 bytes each."""


@dataclass
class Plan:
    """A micro-batch of P tokens in S sequences, M of the tokens being prompts'."""

    batch: MicroBatch
    """The candidates and rows."""
    layout: Layout
    """Where the tokens lie."""
    ids: Tensor
    """(P,) token ids, and 0 where a prompt stands."""
    positions: Tensor
    """(P,) place of each token in its row."""
    read: Tensor
    """(S,) tokens whose last hidden states are wanted."""
    places: Tensor
    """(M,) tokens that are prompts'."""
    who: Tensor
    """(M,) whose prompt, counted from the batch's first candidate."""
    which: Tensor
    """(M,) token of the prompt."""
    candidates: Tensor
    """(S,) candidate of what is read, counted from the block's first."""
    rows: Tensor
    """(S,) row of what is read."""
    lines: Lines | None
    """Where the sequences begin, if a kernel for unequal lengths attends."""

    @cached_property
    def source(self) -> Tensor:
        """(P,) where each token stands in the rows laid end to end; deep prompts ask for it."""
        return on_device(self.layout.source, self.ids.device)


def planned(
    batch: MicroBatch,
    layout: Layout,
    tokens: NDArray[np.int64],
    device: torch.device,
    kernel: Kernel | None,
    n_prefix: int,
    read_on: Callable[[Layout], Layout],
) -> Plan:
    """Make the plan of a micro-batch of rows whose `tokens` lie end to end; `read_on` may read more than one token a
    sequence."""
    lines = None
    if kernel is not None:
        layout = by_candidate(layout)
        lines = lines_of(layout, batch.stop - batch.start, n_prefix, kernel, device)
    layout = read_on(layout)
    ids = tokens[layout.source]
    soft = np.flatnonzero(ids < 0)
    candidates, rows = layout.sequences
    return Plan(
        batch,
        layout,
        ids=on_device(np.maximum(ids, 0), device),
        positions=on_device(layout.positions, device),
        read=on_device(layout.read, device),
        places=on_device(soft, device),
        who=on_device(layout.candidates[soft], device),
        which=on_device(prompt_id(ids[soft]), device),
        candidates=on_device(candidates + batch.start, device),
        rows=on_device(rows, device),
        lines=lines,
    )


def kept(plans: dict[Hashable, list[Plan]], key: Hashable, make: Callable[[], Iterator[Plan]]) -> Iterator[Plan]:
    """Yield the plans of a kind, which are made where they are not kept; the oldest kind is dropped for a new one."""
    found = plans.get(key)
    if found is not None:
        yield from found
        return
    made: list[Plan] | None = []
    n_tokens = 0
    for plan in make():
        n_tokens += len(plan.ids)
        if n_tokens > KEPT_TOKENS:
            made = None
        if made is not None:
            made.append(plan)
        yield plan
    if made is not None:
        for oldest in list(plans)[: len(plans) + 1 - KEPT_PLANS]:
            plans.pop(oldest, None)
        plans[key] = made
