"""What a backend may offer beside label scores is offered by a crew of actors, too, if their own backend offers it: one
class for each capability.

All of them are shared out by candidates, but for what is asked about one prompt or none, which one actor answers. What
cannot leave its process, a model that is trained, is not offered.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bbt.backend import (
    Decoding,
    DeepBackend,
    DeviceBackend,
    FeatureBackend,
    Features,
    GenerationBackend,
    HardBackend,
    LikelihoodBackend,
    PlainBackend,
    PlainText,
    Row,
    TargetBackend,
)
from bbt.types import AnyPrompts, DeepPrompts, Prompts, RowScores, Scores, TokenIds


@dataclass(eq=False)
class RayRows:
    """The rows of one split; each actor encodes them when it first meets them."""

    asked: Any
    """What an actor is told of them (a `RowsAsked`)."""
    n_examples: int
    """The number of rows B."""
    n_tokens: int
    """The number of tokens of all rows together, prompt tokens included."""
    n_truncated: int
    """The number of rows whose text was cut to fit the model."""


@dataclass(eq=False)
class RayPairs(RayRows):
    """Rows that end in targets."""

    n_target_tokens: NDArray[np.int64]
    """(B,) the number of tokens of each row's target."""


class Asking(ABC):
    """What every offer is made of: questions to the crew."""

    @abstractmethod
    def _scores(self, method: str, arrays: AnyPrompts, rows: RayRows) -> Scores:
        """The scores (n, ...) of n candidates by the actors' method, in their order."""

    @abstractmethod
    def _any(self, method: str, *before: Any, rows: RayRows | None = None, after: tuple[Any, ...] = ()) -> Any:
        """What the actor that is free first makes of a call."""

    @abstractmethod
    def _texts(self, prompt: Prompts, rows: RayRows, decoding: Decoding) -> list[str]:
        """What the actor that is free first generates, counted as traffic."""

    @abstractmethod
    def _every(self, method: str) -> list[Any]:
        """What as many calls as there are actors come to."""

    @abstractmethod
    def _encoded(self, how: str, *arguments: Any) -> Any:
        """The rows that the actors' method `how` encodes."""


class Offer(Asking, ABC):
    """A capability of the actors' backend."""

    capability: ClassVar[type[Any]]
    """The protocol that a backend with the capability keeps."""


class Deep(Offer):
    """Prompts for every layer."""

    capability = DeepBackend

    def deep_label_scores(self, prompts: DeepPrompts, encoded: RayRows) -> Scores:
        """See `DeepBackend.deep_label_scores`; what candidates have in common below, each actor computes for itself."""
        return self._scores("deep_label_scores", prompts, encoded)

    def hidden_stds(self, prompts: DeepPrompts, encoded: RayRows) -> NDArray[np.float64]:
        """See `DeepBackend.hidden_stds`."""
        return np.asarray(self._any("hidden_stds", prompts, rows=encoded))


class Hard(Offer):
    """Prompts of words."""

    capability = HardBackend

    def hard_scores(self, token_ids: TokenIds, encoded: RayRows) -> Scores:
        """See `HardBackend.hard_scores`."""
        return self._scores("hard_scores", token_ids, encoded)

    def prompt_ids(self, text: str) -> list[int]:
        """See `HardBackend.prompt_ids`."""
        return list(self._any("prompt_ids", text))

    def prompt_text(self, token_ids: Sequence[int]) -> str:
        """See `HardBackend.prompt_text`."""
        return str(self._any("prompt_text", token_ids))


class Targets(Offer):
    """Likelihoods of texts of several tokens."""

    capability = TargetBackend

    def encode_pairs(self, rows: Sequence[Row]) -> RayPairs:
        """See `TargetBackend.encode_pairs`."""
        pairs: RayPairs = self._encoded("encode_pairs", list(rows))
        return pairs

    def target_log_likelihoods(self, prompts: Prompts, encoded: RayPairs) -> RowScores:
        """See `TargetBackend.target_log_likelihoods`."""
        return self._scores("target_log_likelihoods", prompts, encoded)


class Generation(Offer):
    """Generated text, by one actor for each prompt."""

    capability = GenerationBackend

    def encode_contexts(self, rows: Sequence[Row], max_new_tokens: int) -> RayRows:
        """See `GenerationBackend.encode_contexts`."""
        contexts: RayRows = self._encoded("encode_contexts", list(rows), max_new_tokens)
        return contexts

    def generate(self, prompt: Prompts, encoded: RayRows, decoding: Decoding) -> list[str]:
        """See `GenerationBackend.generate`."""
        return self._texts(prompt, encoded, decoding)


class Likelihoods(Offer):
    """Likelihoods of rows, token by token."""

    capability = LikelihoodBackend

    def token_log_likelihoods(self, encoded: RayRows) -> list[NDArray[np.float32]]:
        """See `LikelihoodBackend.token_log_likelihoods`."""
        return list(self._any("token_log_likelihoods", rows=encoded))


class HiddenStates(Offer):
    """Hidden states of rows."""

    capability = FeatureBackend

    def features(self, encoded: RayRows) -> list[Features]:
        """See `FeatureBackend.features`."""
        return list(self._any("features", rows=encoded))


class Plain(Offer):
    """How rows look without the backend."""

    capability = PlainBackend

    def plain_text(
        self, render: Callable[[str, str], Row], label_words: Sequence[str], targets: Sequence[str] = ()
    ) -> PlainText:
        """See `PlainBackend.plain_text`."""
        text: PlainText = self._any("plain_text", render, label_words, targets)
        return text


class Device(Offer):
    """A model in a memory of its own."""

    capability = DeviceBackend

    def peak_memory_mb(self) -> float | None:
        """The most MB of its device that an actor has held at a time; None where the models are in the processes'
        own memory."""
        found = [peak for peak in self._every("peak_memory_mb") if peak is not None]
        return max(found, default=None)


OFFERS: dict[str, type[Offer]] = {
    offer.__name__: offer for offer in (Deep, Hard, Targets, Generation, Likelihoods, HiddenStates, Plain, Device)
}
"""The capabilities, by name."""
