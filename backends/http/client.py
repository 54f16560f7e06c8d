"""The requests of `bbt serve`'s version 1, and what its answers mean."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from numpy.typing import NDArray
from requests import Response

from backends.transport import AnswerError, Transport, read_json
from backends.wire import MEDIA_TYPE, WireError, pack, unpack
from bbt import errors
from bbt.backend import ModelInfo, Traffic
from bbt.errors import BbtError, EndpointError
from bbt.spaces.soft import PromptSpace
from bbt.types import Prompts, Scores

T = TypeVar("T")

TOLD = (400, 403, 404, 409, 422)
"""States whose body names the fault."""


class NotRegisteredError(EndpointError):
    """The server knows an id no more: it was restarted, or had to make room."""


class ProjectionError(Exception):
    """The server cannot hold the prompt space."""


@dataclass(frozen=True)
class Takes:
    """What one request to the server may have; see `backends.serve.limits`."""

    body_bytes: int
    rows: int
    candidates: int
    sequences: int
    kept_spaces: int

    @property
    def rows_at_once(self) -> int:
        """Rows of a registration, few enough to be scored under one candidate at least."""
        return min(self.rows, self.sequences)

    def candidates_at_once(self, candidate: tuple[int, ...], n_rows: int) -> int:
        """How many candidates of this shape one request may hold on so many rows."""
        bytes_a_candidate = max(1, 4 * math.prod(candidate))
        by_bytes, by_sequences = (self.body_bytes - 4) // bytes_a_candidate, self.sequences // n_rows
        return max(1, min(self.candidates, by_bytes, by_sequences))


@dataclass(frozen=True)
class RowsId:
    """A row set as the server knows it."""

    id: str
    n_examples: int
    n_tokens: int
    n_truncated: int


class Client:
    """A `bbt serve` at `url`; the options are `HttpBackend`'s. `info` has facts about its model, `takes` its limits.

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
        """Bytes of all scoring calls."""
        return self._transport.traffic

    def token_ranges(self) -> list[list[int]]:
        """Token ids that are not special, as half-open ranges."""
        ranges: list[list[int]] = self._ask("GET", "/v1/tokens", read_json)["ranges"]
        return ranges

    def embeddings(self, words: dict[str, Any], hidden_size: int) -> Prompts:
        """(1, T, H) word embeddings of a `text` or of `ids`."""
        read = lambda response: unpack(response.content, hidden_size)[None]  # noqa: E731
        return self._ask("POST", "/v1/embeddings", read, json=words)

    def register_rows(self, body: dict[str, Any], anchor: str | None = None) -> RowsId:
        """Rows and label words, to be scored with an `anchor`: refused where the model can have none."""
        path = "/v1/rows" + (f"?anchor={anchor}" if anchor else "")
        return RowsId(**self._ask("POST", path, read_json, json=body))

    def register_prompt(self, prompt: Prompts) -> str:
        """A prompt (1, T, H): its id."""
        path = f"/v1/prompts?n_prompt_tokens={prompt.shape[1]}"
        return str(self._ask("POST", path, read_json, data=pack(prompt))["id"])

    def register_space(self, space: PromptSpace) -> str:
        """A space that was drawn by its recipe: its id.

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
        self, arrays: NDArray[Any], rows: RowsId, n_labels: int, space: str | None, anchor: str | None
    ) -> Scores:
        """(n, B, K) of latents (n, d) in a space, or of prompts (n, T, H).

        Raises:
            NotRegisteredError: an id that the server does not know (any more).
        """
        path = f"/v1/scores?rows={rows.id}"
        path += f"&space={space}" if space else ""
        path += f"&anchor={anchor}" if anchor else ""
        path += "&join=true" if self._join else ""

        def read(response: Response) -> Scores:
            scores = unpack(response.content, rows.n_examples, n_labels)
            if len(scores) != len(arrays):
                raise AnswerError(f"scores of {len(scores)} candidates instead of {len(arrays)}")
            return scores

        return self._ask("POST", path, read, counted=True, data=pack(arrays))

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
        """The error that the server names."""
        try:
            body = response.json()
            name, detail = str(body["error"]), str(body["detail"])
        except (ValueError, KeyError, TypeError):
            return EndpointError(
                f"{self.url}: no `bbt serve`: it answered {response.status_code}.", response.status_code
            )
        ours = {"NotRegisteredError": NotRegisteredError, "ConflictError": ProjectionError, "WireError": AnswerError}
        kind = ours.get(name) or getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, BbtError | NotRegisteredError | ProjectionError | AnswerError):
            return kind(detail)
        return EndpointError(f"{self.url}: {detail}", response.status_code)
