"""A scorer puts the rows of a split to the backend under prompts, and counts what that costs."""

from collections.abc import Callable, Sequence
from copy import copy
from typing import TypeVar

from bbt.backend import Backend, DeepBackend, Encoded, HardBackend, RemoteBackend, Traffic, require
from bbt.scoring.ledger import Ledger
from bbt.scoring.meter import Reading
from bbt.spaces.soft import LatentBackend, PromptSpace, Space
from bbt.tasks import Example, Task
from bbt.tasks.task import labels_of
from bbt.types import AnyPrompts, Labels, Latents, Prompts, Scores

SameScorer = TypeVar("SameScorer", bound="Scorer")


class Scorer:
    """The rows of one split, encoded once for each prompt length. Where they hold prompt tokens they are encoded with
    the `anchor` (1, T, H), as `Backend.encode` takes it."""

    def __init__(
        self,
        backend: Backend,
        task: Task,
        examples: Sequence[Example],
        ledger: Ledger,
        anchor: Prompts | None = None,
    ) -> None:
        self._backend, self._task, self._examples, self._ledger = backend, task, examples, ledger
        self._anchor = anchor
        self._encoded: dict[int, Encoded] = {}
        self._truncated: dict[int, int] = {}
        self.labels: Labels = labels_of(examples)

    def encoded(self, n_prompt_tokens: int) -> Encoded:
        """The rows with this many prompt tokens (0: the manual template)."""
        if n_prompt_tokens not in self._encoded:
            self._encoded[n_prompt_tokens] = self._encode(n_prompt_tokens)
            self._count_cut(self._encoded[n_prompt_tokens], n_prompt_tokens)
        return self._encoded[n_prompt_tokens]

    def _count_cut(self, encoded: Encoded, n_prompt_tokens: int) -> None:
        """Count the rows that were cut for this many prompt tokens, once."""
        if n_prompt_tokens not in self._truncated:
            self._truncated[n_prompt_tokens] = encoded.n_truncated
            self._ledger.truncated += encoded.n_truncated

    def _encode(self, n_prompt_tokens: int) -> Encoded:
        rows = self._task.rows(self._examples, n_prompt_tokens)
        return self._backend.encode(rows, self._task.scored_words, self._anchor if n_prompt_tokens else None)

    def anchored(self, anchor: Prompts) -> "Scorer":
        """A scorer of the same rows with this anchor; the rows that were cut are not counted again."""
        other = type(self)(self._backend, self._task, self._examples, self._ledger, anchor)
        other._truncated = self._truncated
        return other

    def counted_in(self: SameScorer, ledger: Ledger) -> SameScorer:
        """The same scorer, whose costs are counted in another ledger."""
        other = copy(self)
        other._ledger = ledger
        return other

    def scores(self, prompts: AnyPrompts) -> Scores:
        """The scores (n, B, K) of soft prompts (n, T, H), deep ones (n, L, T, H) or hard ones (n, T), counted in the
        ledger. A task of further words has scores (n, B, M).

        Raises:
            BackendError: deep or hard prompts on a backend that does not take them.
        """
        score: Callable[[AnyPrompts, Encoded], Scores]
        if prompts.ndim == 2:
            score = require(self._backend, HardBackend).hard_scores
        elif prompts.ndim == 4:
            score = require(self._backend, DeepBackend).deep_label_scores
        else:
            score = self._backend.label_scores
        encoded = self.encoded(prompts.shape[1] if prompts.ndim == 2 else prompts.shape[-2])
        return self._counted(prompts.nbytes, encoded, lambda: score(prompts, encoded))

    def latent_scores(self, latents: Latents, space: Space) -> Scores:
        """The scores (n, B, K) of the prompts that latents (n, d) stand for in a space, counted in the ledger. A
        backend that can hold the space is sent z instead of prompts."""
        backend = self._backend
        if not (isinstance(backend, LatentBackend) and isinstance(space, PromptSpace)):
            return self.scores(space.prompts(latents))
        encoded = self.encoded(space.n_prompt_tokens)
        return self._counted(
            len(latents) * space.p0.nbytes, encoded, lambda: backend.latent_scores(latents, space, encoded)
        )

    def _counted(self, bytes_up: int, encoded: Encoded, score: Callable[[], Scores]) -> Scores:
        """The scores (n, B, K), with what they cost in the ledger. Where the backend knows of no traffic, the prompts'
        `bytes_up` are counted; where it is not told what is billed, the rows' own tokens, and one for each score."""
        with self._ledger.meter.call(self._backend) as reading:
            scores = score()
        n, n_rows = scores.shape[:2]
        self._ledger.examples += n * n_rows
        own = Traffic(bytes_up, scores.nbytes)
        self._bill(reading, own, lambda: n * encoded.n_tokens, lambda: n * encoded.n_examples)
        return scores

    def _bill(
        self,
        reading: Reading,
        own: Traffic,
        tokens_up: Callable[[], int],
        tokens_down: Callable[[], int],
        written: bool = False,
    ) -> None:
        """Count in the ledger what a call has cost by its reading; where the backend knows of no traffic, the bytes of
        our `own` count; where it is not told what is billed for such calls, for scores or for texts that are `written`,
        `tokens_up` and `tokens_down`."""
        remote = self._backend if isinstance(self._backend, RemoteBackend) else None
        spent, known = (reading.traffic, remote.traffic) if remote else (own, Traffic())
        billed_up = known.written_up if written else known.tokens_up - known.written_up
        billed_down = known.written_down if written else known.tokens_down - known.written_down
        self._ledger.backend_seconds += reading.seconds
        self._ledger.bytes_up += spent.bytes_up
        self._ledger.bytes_down += spent.bytes_down
        # A reading may hold what calls of the other kind were billed in the meantime.
        self._ledger.tokens_up += spent.tokens_up + (0 if billed_up else tokens_up())
        self._ledger.tokens_down += spent.tokens_down + (0 if billed_down else tokens_down())
