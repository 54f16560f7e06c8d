"""An objective and a judge that ask about no prompt twice: a search over prompts of words often comes upon the same
words again."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from bbt.scoring.judge import Judge, Verdict
from bbt.scoring.objective import Objective
from bbt.spaces.soft import Space
from bbt.types import AnyPrompts, Latents, Losses, TokenIds

Value = TypeVar("Value")


class RememberingObjective(Objective):
    """The training loss of hard prompts. A prompt that was scored before is answered without a query."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._known: dict[bytes, float] = {}

    def losses(self, prompts: AnyPrompts) -> Losses:
        """The losses (n,) of hard prompts (n, T), of which only new ones are scored."""
        score = super().losses
        return np.array(answers(prompts, self._known, lambda new: score(new).tolist()))

    def latent_losses(self, latents: Latents, space: Space) -> Losses:
        """The losses (n,) of the hard prompts that latents (n, d) stand for in a space."""
        return self.losses(space.prompts(latents))

    def recall(self, latents: Latents, space: Space, losses: Losses) -> None:
        """Remember losses of latents that a resumed run has recorded."""
        self.remember(space.prompts(latents), losses)

    def remember(self, prompts: AnyPrompts, losses: Losses) -> None:
        """Answer these prompts with these losses from now on."""
        self._known.update(zip(_keys(prompts), losses.tolist(), strict=True))


class RememberingJudge(Judge):
    """A judge of hard prompts. A prompt that was judged before is answered without a query."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._known: dict[bytes, Verdict] = {}

    def verdicts(self, prompts: AnyPrompts) -> list[Verdict]:
        """The verdicts on n hard prompts (n, T), of which only new ones are scored."""
        return answers(prompts, self._known, super().verdicts)

    def latent_verdicts(self, latents: Latents, space: Space) -> list[Verdict]:
        """The verdicts on the hard prompts that latents (n, d) stand for in a space."""
        return self.verdicts(space.prompts(latents))

    def recall(self, latents: Latents, space: Space, verdicts: Sequence[Verdict]) -> None:
        """Remember verdicts on latents that a resumed run has recorded."""
        self.remember([prompt[None] for prompt in space.prompts(latents)], verdicts)

    def remember(self, prompts: Sequence[AnyPrompts], verdicts: Sequence[Verdict]) -> None:
        """Answer these prompts, each a population of one, with these verdicts from now on."""
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
