"""Objectives that score no prompt twice: a search over prompts of words comes upon the same words again and again."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from bbt.scoring.judge import Judge, Verdict
from bbt.scoring.objective import Objective
from bbt.spaces.soft import Space
from bbt.types import AnyPrompts, Latents, Losses, TokenIds

Value = TypeVar("Value")


class RememberingObjective(Objective):
    """Training loss of hard prompts; one that was scored before is answered without a query."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._known: dict[bytes, float] = {}

    def losses(self, prompts: AnyPrompts) -> Losses:
        """(n, T) -> (n,)."""
        score = super().losses
        return np.array(answers(prompts, self._known, lambda new: score(new).tolist()))

    def latent_losses(self, latents: Latents, space: Space) -> Losses:
        """(n, d) -> (n,)."""
        return self.losses(space.prompts(latents))

    def recall(self, latents: Latents, space: Space, losses: Losses) -> None:
        """Remember what a resumed run has recorded."""
        self.remember(space.prompts(latents), losses)

    def remember(self, prompts: AnyPrompts, losses: Losses) -> None:
        """Answer these prompts with these losses from now on."""
        self._known.update(zip(_keys(prompts), losses.tolist(), strict=True))


class RememberingJudge(Judge):
    """Judges hard prompts; one that was judged before is answered without a query."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._known: dict[bytes, Verdict] = {}

    def verdicts(self, prompts: AnyPrompts) -> list[Verdict]:
        """(n, T) -> n verdicts."""
        return answers(prompts, self._known, super().verdicts)

    def recall(self, prompts: Sequence[AnyPrompts], verdicts: Sequence[Verdict]) -> None:
        """Remember what a resumed run has recorded."""
        self._known.update((key, v) for one, v in zip(prompts, verdicts, strict=True) for key in _keys(one))


def answers(prompts: TokenIds, known: dict[bytes, Value], ask: Callable[[TokenIds], Sequence[Value]]) -> list[Value]:
    """A value for each prompt (n, T); `ask` is called once, with those that are new, and `known` grows by them."""
    keys = _keys(prompts)
    new = {key: i for i, key in enumerate(keys) if key not in known}
    if new:
        known.update(zip(new, ask(prompts[list(new.values())]), strict=True))
    return [known[key] for key in keys]


def _keys(prompts: TokenIds) -> list[bytes]:
    return [np.ascontiguousarray(prompt).tobytes() for prompt in prompts]
