"""An `HttpBackend` is a model behind `bbt serve` that looks like any other."""

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from backends.http.client import Client, NotRegisteredError, ProjectionError, RowsId
from bbt.backend import Decoding, ModelInfo, Row, Traffic, check_anchor
from bbt.errors import BackendError, EndpointError
from bbt.spaces.soft import PromptSpace
from bbt.types import Latents, Prompts, RowScores, Scores

T = TypeVar("T")

ATTEMPTS = 3
"""How often rows and spaces that the server has forgotten are registered and tried."""


@dataclass
class Part:
    """Rows that were registered together."""

    body: dict[str, object]
    """What was sent: the rows and label words as JSON."""
    known: RowsId
    """What the server made of them."""


@dataclass
class Anchor:
    """A prompt that the server holds to score rows with."""

    prompt: Prompts
    """(1, T, H) the prompt."""
    id: str
    """The id under which the server holds it."""


@dataclass(frozen=True)
class HttpRows:
    """The rows of one split, in as many parts as the server's limits ask for."""

    route: ClassVar[str] = "rows"
    """The route at which they are registered."""
    scored_at: ClassVar[str] = "scores"
    """The route at which they are scored."""

    parts: list[Part]
    """The parts, in the rows' order."""
    n_prompt_tokens: int
    """The number of prompt tokens T."""
    of_row: tuple[int, ...]
    """The shape of the scores of one row under one candidate: (K,) for label words, () for a target."""
    anchor: Anchor | None = None
    """The prompt that the rows were encoded with (none: they have none)."""

    @property
    def n_examples(self) -> int:
        """The number of rows B."""
        return sum(part.known.n_examples for part in self.parts)

    @property
    def n_tokens(self) -> int:
        """The tokens of all rows, prompt tokens included."""
        return sum(part.known.n_tokens for part in self.parts)

    @property
    def n_truncated(self) -> int:
        """The number of rows whose text was cut."""
        return sum(part.known.n_truncated for part in self.parts)


class HttpPairs(HttpRows):
    """The rows of one split with their targets."""

    route, scored_at = "pairs", "likelihoods"

    @property
    def n_target_tokens(self) -> NDArray[np.int64]:
        """The number of tokens (B,) of each row's target."""
        return np.array([n for part in self.parts for n in part.known.n_target_tokens], dtype=np.int64)


class HttpContexts(HttpRows):
    """The rows of one split that are to be written on."""

    route, scored_at = "contexts", "texts"


@dataclass
class Held:
    """A prompt space that the server may hold."""

    space: PromptSpace
    """The space, p0 + A z."""
    id: str | None = None
    """The id under which the server holds it (none: the server draws another A, so that prompts must travel)."""


class HttpBackend:
    """The model that `bbt serve` serves at `url`; for several threads at once.

    Rows and the prompt space are sent once; a query is then z up and label scores down. What the server has lost by
    a restart is sent again.

    Args:
        model: the name of the model that the server must serve.
        url: the address of the server.
        api_key_env: see `Transport`.
        timeout: the longest silence in seconds; it must be longer than one population takes.
        retries: see `Transport`.
        verify: see `Transport`.
        join: whether the server may compute our requests together with those of others, which is faster for small
            ones; the last bits of the scores then depend on who else asks.

    Raises:
        EndpointError: no `bbt serve` there that lets us in.
        BackendError: it serves another model.
    """

    def __init__(
        self,
        model: str = "minilm-mlm",
        *,
        url: str = "http://127.0.0.1:8000",
        api_key_env: str | None = None,
        timeout: float = 300.0,
        retries: int = 8,
        verify: bool | str = True,
        join: bool = False,
    ) -> None:
        self._client = Client(url, api_key_env, timeout, retries, verify, join)
        self.info: ModelInfo = self._client.info
        """Facts about the model; device and precision are the server's."""
        if self.info.name != model:
            raise BackendError(f"{url} serves {self.info.name!r}, not {model!r}: set model.name to what it serves.")
        self._spaces: list[Held] = []
        self._registering = threading.Lock()

    @property
    def traffic(self) -> Traffic:
        """The traffic of all scoring calls."""
        return self._client.traffic

    def encode(self, rows: Sequence[Row], label_words: Sequence[str], anchor: Prompts | None = None) -> HttpRows:
        """Register the anchor and the rows, which the server tokenises; see `Backend.encode`."""
        if not rows:
            raise BackendError("there are no rows to encode.")
        n_prompt_tokens, known = _n_prompt_tokens(rows), None
        if anchor is not None and n_prompt_tokens:
            check_anchor(anchor, n_prompt_tokens, self.info.hidden_size)
            known = Anchor(anchor, self._client.register_prompt(anchor))
        parts = self._registered(rows, HttpRows.route, {"label_words": list(label_words)}, known)
        return HttpRows(parts, n_prompt_tokens, (len(label_words),), known)

    def encode_pairs(self, rows: Sequence[Row]) -> HttpPairs:
        """Register rows that end in their targets; see `TargetBackend.encode_pairs`."""
        return HttpPairs(self._registered(rows, HttpPairs.route, {}), _n_prompt_tokens(rows), ())

    def encode_contexts(self, rows: Sequence[Row], max_new_tokens: int) -> HttpContexts:
        """Register what is to be written on; see `GenerationBackend.encode_contexts`."""
        parts = self._registered(rows, HttpContexts.route, {"max_new_tokens": max_new_tokens})
        return HttpContexts(parts, _n_prompt_tokens(rows), ())

    def _registered(
        self, rows: Sequence[Row], route: str, facts: dict[str, Any], anchor: Anchor | None = None
    ) -> list[Part]:
        """Register rows at a route, in parts, each with the same `facts`."""
        if not rows:
            raise BackendError("there are no rows to encode.")
        takes, parts = self._client.takes, []
        step = takes.contexts_at_once(facts["max_new_tokens"]) if "max_new_tokens" in facts else takes.rows_at_once
        for part in _pieces(rows, step):
            body = {"rows": [[asdict(segment) for segment in row] for row in part], **facts}
            parts.append(Part(body, self._client.register_rows(route, body, anchor.id if anchor else None)))
        return parts

    def label_scores(self, prompts: Prompts, encoded: HttpRows) -> Scores:
        """The scores (n, B, K) of prompts (n, T, H), which travel themselves.

        Raises:
            BackendError: prompts of another shape.
            EndpointError: the server refuses, or cannot be reached in all attempts.
        """
        return self._prompt_scores(prompts, encoded)

    def target_log_likelihoods(self, prompts: Prompts, encoded: HttpPairs) -> RowScores:
        """The log-likelihoods (n, B) of the targets under prompts (n, T, H); see `label_scores`."""
        return self._prompt_scores(prompts, encoded)

    def generate(self, prompt: Prompts, encoded: HttpContexts, decoding: Decoding) -> list[str]:
        """What the model writes under one prompt (1, T, H); see `GenerationBackend.generate`.

        Raises:
            BackendError: not one prompt of the rows' length, or more new tokens than the rows have room for.
            EndpointError: as `label_scores`.
        """
        self._check(prompt, encoded)
        if len(prompt) != 1:
            raise BackendError(f"text is generated under one prompt; asked for {len(prompt)}.")
        held = Anchor(prompt, self._client.register_prompt(prompt, counted=True)) if encoded.n_prompt_tokens else None

        def write(part: Part) -> list[str]:
            return self._client.texts(part.known, held.id if held else None, decoding)

        def again(part: Part) -> None:
            if held is not None:
                held.id = self._client.register_prompt(held.prompt)
            part.known = self._client.register_rows(encoded.route, part.body)

        return [text for part in encoded.parts for text in self._asked(part, write, again)]

    def _check(self, prompts: Prompts, encoded: HttpRows) -> None:
        expected = (encoded.n_prompt_tokens, self.info.hidden_size)
        if prompts.ndim != 3 or prompts.shape[1:] != expected:
            raise BackendError(f"prompts have shape {prompts.shape}, expected (n, {expected[0]}, {expected[1]}).")

    def _prompt_scores(self, prompts: Prompts, encoded: HttpRows) -> Scores:
        """The scores (n, B, ...) of prompts (n, T, H), which travel themselves, if there are any."""
        self._check(prompts, encoded)
        if encoded.n_prompt_tokens:
            return self._scores(prompts, encoded, None)
        return self._scores(prompts[:1], encoded, None).repeat(len(prompts), axis=0)

    def latent_scores(self, latents: Latents, space: PromptSpace, encoded: HttpRows) -> Scores:
        """The scores (n, B, K) of latents (n, d), which travel in float32 as `PromptSpace.prompts` rounds them. Where
        the server cannot draw the same A, prompts travel."""
        held = self._held(space) if space.recipe is not None else None
        if held is not None and held.id is not None:
            try:
                return self._scores(latents, encoded, held)
            except ProjectionError as error:  # another server has since taken its place
                self._refused(held, error)
        return self._prompt_scores(space.prompts(latents), encoded)

    def latent_log_likelihoods(self, latents: Latents, space: PromptSpace, encoded: HttpPairs) -> RowScores:
        """The log-likelihoods (n, B) of the targets under latents (n, d); see `latent_scores`."""
        return self.latent_scores(latents, space, encoded)

    def embed_text(self, text: str) -> Prompts:
        """The word embeddings (1, T, H) of a text."""
        return self._client.embeddings({"text": text}, self.info.hidden_size)

    def embed_ids(self, token_ids: Sequence[int]) -> Prompts:
        """The word embeddings (1, T, H) of token ids. A server tells those of so many tokens only; each is asked for
        once."""
        different, places = np.unique(np.array(token_ids, dtype=np.int64), return_inverse=True)
        return self._client.embeddings({"ids": different.tolist()}, self.info.hidden_size)[:, places]

    def ordinary_ids(self) -> list[int]:
        """The ids of all tokens that are not special."""
        return [i for start, stop in self._client.token_ranges() for i in range(start, stop)]

    def _held(self, space: PromptSpace) -> Held:
        """The space as the server has it. It is registered when it is first seen, and as many are kept as the server
        keeps."""
        with self._registering:
            for held in self._spaces:
                if held.space is space:
                    return held
            held = Held(space)
            try:
                held.id = self._client.register_space(space)
            except ProjectionError as error:
                self._refused(held, error)
            self._spaces = [*self._spaces, held][-self._client.takes.kept_spaces :]
            return held

    def _refused(self, held: Held, error: ProjectionError) -> None:
        held.id = None
        warnings.warn(f"{self._client.url}: {error} Prompts are sent instead of z.", stacklevel=4)

    def _scores(self, arrays: Latents | Prompts, encoded: HttpRows, held: Held | None) -> Scores:
        """The scores (n, B, ...) of latents in a space or of prompts, asked for in requests that the server takes."""
        n = len(arrays)
        scores = np.empty((n, encoded.n_examples, *encoded.of_row), np.float32)
        row = 0
        for part in encoded.parts:
            rows = slice(row, row := row + part.known.n_examples)
            step = self._client.takes.candidates_at_once(arrays.shape[1:], part.known.n_examples)
            for start in range(0, n, step):
                scores[start : start + step, rows] = self._part(arrays[start : start + step], part, held, encoded)
        return scores

    def _part(self, arrays: Latents | Prompts, part: Part, held: Held | None, rows: HttpRows) -> Scores:
        """Send one request; what the server has forgotten is registered again.

        Raises:
            EndpointError: as `_asked`.
            ProjectionError: it cannot hold the space (any more).
        """

        def score(part: Part) -> Scores:
            space, anchor = held.id if held else None, rows.anchor.id if rows.anchor else None
            shape = (part.known.n_examples, *rows.of_row)
            return self._client.scores(rows.scored_at, arrays, part.known, shape, space, anchor)

        return self._asked(part, score, lambda part: self._register_again(part, held, rows))

    def _asked(self, part: Part, ask: Callable[[Part], T], again: Callable[[Part], None]) -> T:
        """The answer about a part, which is registered `again` where the server has forgotten it.

        Raises:
            EndpointError: it forgets at once, as others register more than it keeps.
        """
        for _ in range(ATTEMPTS):
            try:
                return ask(part)
            except NotRegisteredError:
                again(part)
        raise EndpointError(
            f"{self._client.url} forgets what is registered before it can be scored: more searches share its key than "
            "it keeps row sets and prompt spaces for. Raise its limits: bbt serve --limit kept=... --limit "
            "kept_spaces=..."
        )

    def _register_again(self, part: Part, held: Held | None, rows: HttpRows) -> None:
        if rows.anchor is not None:
            rows.anchor.id = self._client.register_prompt(rows.anchor.prompt)
        part.known = self._client.register_rows(rows.route, part.body)
        if held is not None:
            held.id = self._client.register_space(held.space)


def _n_prompt_tokens(rows: Sequence[Row]) -> int:
    """The number of prompt tokens T of each row."""
    return sum(segment.n_tokens for segment in rows[0]) if rows else 0


def _pieces(rows: Sequence[Row], step: int) -> Iterator[list[Row]]:
    """Yield rows, at most `step` at a time. Neighbours that differ in nothing but their targets stay together as far as
    they can, since they are cut alike."""
    piece: list[Row] = []
    for _, same in groupby(rows, key=lambda row: tuple(segment for segment in row if segment.kind != "target")):
        those = list(same)
        if piece and len(piece) + len(those) > step:
            yield piece
            piece = []
        piece += those
        while len(piece) > step:
            yield piece[:step]
            piece = piece[step:]
    if piece:
        yield piece
