"""A client makes the requests of `bbt serve`'s version 1, and understands its answers."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from requests import Response

from backends.transport import AnswerError, Transport, read_json
from backends.wire import MEDIA_TYPE, WireError, pack, unpack
from bbt import errors
from bbt.backend import Decoding, ModelInfo, Traffic
from bbt.errors import BbtError, EndpointError, LabelWordError
from bbt.spaces.soft import PromptSpace
from bbt.types import Prompts

T = TypeVar("T")

WRITTEN_AT_ONCE = 128
"""The most rows that one request has written on, so that no answer takes long."""

TOLD = (400, 403, 404, 409, 422)
"""States whose body names the fault."""


class NotRegisteredError(EndpointError):
    """The server does not know an id any more: it was restarted, or had to make room."""


class ProjectionError(Exception):
    """The server cannot hold the prompt space."""


@dataclass(frozen=True)
class Takes:
    """The most that one request to the server may have; see `backends.serve.limits`."""

    body_bytes: int
    """Bytes of a request's body."""
    rows: int
    """Rows of one registration."""
    candidates: int
    """Candidates n of one request."""
    sequences: int
    """Rows times candidates of one request."""
    new_tokens: int
    """Rows times new tokens of one request for texts."""
    kept_spaces: int
    """Prompt spaces that a key has registered; the least used goes first."""

    @property
    def rows_at_once(self) -> int:
        """The rows of a registration, few enough to be scored under at least one candidate."""
        return min(self.rows, self.sequences)

    def contexts_at_once(self, max_new_tokens: int) -> int:
        """The rows of a registration that are written on by one request."""
        return max(1, min(self.rows, WRITTEN_AT_ONCE, self.new_tokens // max_new_tokens))

    def candidates_at_once(self, candidate: tuple[int, ...], n_rows: int) -> int:
        """The number of candidates of this shape that one request may hold on so many rows."""
        bytes_a_candidate = max(1, 4 * math.prod(candidate))
        by_bytes, by_sequences = (self.body_bytes - 4) // bytes_a_candidate, self.sequences // n_rows
        return max(1, min(self.candidates, by_bytes, by_sequences))


@dataclass(frozen=True)
class RowsId:
    """A row set as the server knows it."""

    id: str
    """The id under which the server holds it."""
    n_examples: int
    """The number of rows B."""
    n_tokens: int
    """Tokens of all rows, prompt tokens included."""
    n_truncated: int
    """Rows whose text was cut."""
    n_target_tokens: tuple[int, ...] = ()
    """Tokens of each row's target, where rows have one."""


class Client:
    """The client of a `bbt serve` at `url`; the options are `HttpBackend`'s. `info` has facts about its model, `takes`
    its limits.

    Raises:
        EndpointError: this is no `bbt serve`, or one of another version.
    """

    def __init__(
        self, url: str, api_key_env: str | None, timeout: float, retries: int, verify: bool | str, join: bool
    ) -> None:
        self._transport = Transport(url, api_key_env=api_key_env, timeout=timeout, retries=retries, verify=verify)
        self._join = join
        self.url = url
        model = self._ask("GET", "/v1/model", read_json)
        try:
            self.info = ModelInfo(**model["info"])
            self.takes = Takes(**{field.name: int(model["limits"][field.name]) for field in fields(Takes)})
        except (TypeError, KeyError, ValueError) as error:
            raise EndpointError(f"{self.url}: not the `bbt serve` of this version: {error}.") from error

    @property
    def traffic(self) -> Traffic:
        """The traffic of all scoring calls."""
        return self._transport.traffic

    def token_ranges(self) -> list[list[int]]:
        """The ids of tokens that are not special, as half-open ranges."""
        ranges: list[list[int]] = self._ask("GET", "/v1/tokens", read_json)["ranges"]
        return ranges

    def embeddings(self, words: dict[str, Any], hidden_size: int) -> Prompts:
        """The word embeddings (1, T, H) of a `text` or of `ids`."""
        read = lambda response: unpack(response.content, hidden_size)[None]  # noqa: E731
        return self._ask("POST", "/v1/embeddings", read, json=words)

    def register_rows(self, route: str, body: dict[str, Any], anchor: str | None = None) -> RowsId:
        """Register rows at `rows`, `pairs` or `contexts`. Rows may be scored with an `anchor`; the server refuses where
        the model can have none."""
        path = f"/v1/{route}" + (f"?anchor={anchor}" if anchor else "")
        found = self._ask("POST", path, read_json, json=body)
        return RowsId(**{**found, "n_target_tokens": tuple(found.get("n_target_tokens", ()))})

    def register_prompt(self, prompt: Prompts, counted: bool = False) -> str:
        """Register a prompt (1, T, H) and return its id."""
        path = f"/v1/prompts?n_prompt_tokens={prompt.shape[1]}"
        return str(self._ask("POST", path, read_json, counted=counted, data=pack(prompt))["id"])

    def register_space(self, space: PromptSpace) -> str:
        """Register a space that was drawn by its recipe, and return its id.

        Raises:
            ProjectionError: the server draws another A.
        """
        assert space.recipe is not None
        r = space.recipe
        body = {
            "p0": self.register_prompt(space.p0),
            "seed": r.seed,
            "intrinsic_dim": r.intrinsic_dim,
            "projection": r.projection,
            "tied": r.tied,
            "scale": r.scale,
            "checksum": space.checksum(),
        }
        return str(self._ask("POST", "/v1/spaces", read_json, json=body)["id"])

    def scores(
        self,
        route: str,
        arrays: NDArray[Any],
        rows: RowsId,
        shape: tuple[int, ...],
        space: str | None,
        anchor: str | None,
    ) -> NDArray[np.float32]:
        """What `scores` or `likelihoods` answers for latents (n, d) in a space, or for prompts (n, T, H): an array
        (n, *shape).

        Raises:
            NotRegisteredError: an id that the server does not know (any more).
        """
        path = f"/v1/{route}?rows={rows.id}"
        path += f"&space={space}" if space else ""
        path += f"&anchor={anchor}" if anchor else ""
        path += "&join=true" if self._join else ""

        def read(response: Response) -> NDArray[np.float32]:
            scores = unpack(response.content, *shape)
            if len(scores) != len(arrays):
                raise AnswerError(f"scores of {len(scores)} candidates instead of {len(arrays)}")
            return scores

        return self._ask("POST", path, read, counted=True, data=pack(arrays))

    def texts(self, rows: RowsId, prompt: str | None, decoding: Decoding) -> list[str]:
        """The texts that the model writes after registered contexts; their tokens are counted.

        Raises:
            NotRegisteredError: as `scores`.
        """

        def read(response: Response) -> tuple[list[str], int]:
            answer = read_json(response)
            try:
                texts, n_tokens = [str(text) for text in answer["texts"]], int(answer["n_tokens"])
            except (TypeError, KeyError, ValueError) as error:
                raise AnswerError("an answer without texts") from error
            if len(texts) != rows.n_examples:
                raise AnswerError(f"{len(texts)} texts for {rows.n_examples} rows")
            return texts, n_tokens

        body = {"rows": rows.id, "prompt": prompt, "decoding": asdict(decoding)}
        texts, n_tokens = self._ask("POST", "/v1/texts", read, counted=True, json=body)
        self._transport.count_tokens(rows.n_tokens, n_tokens, written=True)
        return texts

    def _ask(self, method: str, path: str, read: Callable[[Response], T], counted: bool = False, **content: Any) -> T:
        def sound(response: Response) -> T:
            if response.status_code in TOLD:
                raise self._fault(response)
            try:
                return read(response)
            except WireError as error:
                raise AnswerError(str(error)) from error

        headers = {"Content-Type": MEDIA_TYPE} if "data" in content else None
        return self._transport.call(method, path, sound, headers=headers, accept=TOLD, counted=counted, **content)

    def _fault(self, response: Response) -> Exception:
        """The error that the server names in its answer."""
        try:
            body = response.json()
            name, detail = str(body["error"]), str(body["detail"])
            words = [str(word) for word in body.get("words", ())]
        except (ValueError, KeyError, TypeError):
            return EndpointError(
                f"{self.url}: no `bbt serve`: it answered {response.status_code}.", response.status_code
            )
        ours = {"NotRegisteredError": NotRegisteredError, "ConflictError": ProjectionError, "WireError": AnswerError}
        kind = ours.get(name) or getattr(errors, name, None)
        if kind is LabelWordError:
            return LabelWordError(detail, words)
        if isinstance(kind, type) and issubclass(kind, BbtError | NotRegisteredError | ProjectionError | AnswerError):
            return kind(detail)
        return EndpointError(f"{self.url}: {detail}", response.status_code)
