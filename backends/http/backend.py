"""An `HttpBackend` is a model behind `bbt serve` that looks like any other."""

import threading
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from backends.http.client import Client, NotRegisteredError, ProjectionError, RowsId
from bbt.backend import ModelInfo, Row, Traffic, check_anchor
from bbt.errors import BackendError, EndpointError
from bbt.spaces.soft import PromptSpace
from bbt.types import Latents, Prompts, Scores

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
    """The rows of one split, in as many parts as the server's limit on rows asks for."""

    parts: list[Part]
    """The parts, in the rows' order."""
    n_prompt_tokens: int
    """The number of prompt tokens T."""
    n_labels: int
    """The number of label words K."""
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
        n_prompt_tokens, known = sum(segment.n_tokens for segment in rows[0]), None
        if anchor is not None and n_prompt_tokens:
            check_anchor(anchor, n_prompt_tokens, self.info.hidden_size)
            known = Anchor(anchor, self._client.register_prompt(anchor))
        parts, step = [], self._client.takes.rows_at_once
        for part in (rows[i : i + step] for i in range(0, len(rows), step)):
            body = {"rows": [[asdict(segment) for segment in row] for row in part], "label_words": list(label_words)}
            parts.append(Part(body, self._client.register_rows(body, known.id if known else None)))
        return HttpRows(parts, n_prompt_tokens, len(label_words), known)

    def label_scores(self, prompts: Prompts, encoded: HttpRows) -> Scores:
        """The scores (n, B, K) of prompts (n, T, H), which travel themselves.

        Raises:
            BackendError: prompts of another shape.
            EndpointError: the server refuses, or cannot be reached in all attempts.
        """
        expected = (encoded.n_prompt_tokens, self.info.hidden_size)
        if prompts.ndim != 3 or prompts.shape[1:] != expected:
            raise BackendError(f"prompts have shape {prompts.shape}, expected (n, {expected[0]}, {expected[1]}).")
        if expected[0]:
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
        return self.label_scores(space.prompts(latents), encoded)

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
        """The scores of latents in a space or of prompts, asked for in requests that the server takes."""
        n = len(arrays)
        scores = np.empty((n, encoded.n_examples, encoded.n_labels), np.float32)
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
            EndpointError: it forgets at once, as others register more than it keeps.
            ProjectionError: it cannot hold the space (any more).
        """
        for _ in range(ATTEMPTS):
            space, anchor = held.id if held else None, rows.anchor.id if rows.anchor else None
            try:
                return self._client.scores(arrays, part.known, rows.n_labels, space, anchor)
            except NotRegisteredError:
                self._register_again(part, held, rows)
        raise EndpointError(
            f"{self._client.url} forgets what is registered before it can be scored: more searches share its key than "
            "it keeps row sets and prompt spaces for. Raise its limits: bbt serve --limit kept=... --limit "
            "kept_spaces=..."
        )

    def _register_again(self, part: Part, held: Held | None, rows: HttpRows) -> None:
        if rows.anchor is not None:
            rows.anchor.id = self._client.register_prompt(rows.anchor.prompt)
        part.known = self._client.register_rows(part.body)
        if held is not None:
            held.id = self._client.register_space(held.space)
