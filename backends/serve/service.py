"""What the routes do: an account's registrations, and scores of its prompts. No HTTP in here."""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from backends.serve.device import Device, Scoring
from backends.serve.keys import Account
from backends.serve.limits import Limits
from backends.serve.schemas import Ids, Model, Registered, RegisteredRows, RowSet, Space, Words
from backends.serve.store import Holdings, Rows
from backends.wire import unpack
from bbt.backend import Encoded, HardBackend, Segment, require
from bbt.errors import BackendError
from bbt.spaces.soft import PromptSpace, Recipe
from bbt.types import Latents, Prompts, Scores


class ForbiddenError(Exception):
    """More than an account may know."""


class ConflictError(Exception):
    """The server's arithmetic does not give what the client's gives."""


class Service:
    """One model for several accounts."""

    def __init__(self, device: Device, limits: Limits) -> None:
        self._device, self._limits = device, limits
        self.info = device.backend.info
        self._holdings: defaultdict[str, Holdings] = defaultdict(lambda: Holdings(limits))
        self._same: WeakValueDictionary[str, Encoded] = WeakValueDictionary()
        self._drawing = asyncio.Lock()

    def model(self) -> Model:
        """Facts about the model, and the limits."""
        return Model(info=self.info, limits=self._limits)

    async def ordinary_ids(self) -> Ids:
        """Token ids that are not special."""
        return Ids(ranges=_ranges(await self._device.call(self._device.backend.ordinary_ids)))

    async def embeddings(self, account: Account, words: Words) -> Prompts:
        """(1, T, H) word embeddings of a text or of ids; an account is told those of so many tokens only, which is
        checked before anything is computed.

        Raises:
            ForbiddenError: more tokens than the account may know of.
        """
        backend = self._device.backend
        if (words.ids is None) == (words.text is None):
            raise BackendError("give either text or ids.")
        ids: list[int] = words.ids or []
        if words.text is not None:
            ids = await self._device.call(partial(require(backend, HardBackend).prompt_ids, words.text))
        if max(ids, default=0) >= self.info.vocab_size:
            raise BackendError(f"token {max(ids)} is not in the vocabulary of {self.info.vocab_size}.")
        known, most = self._holdings[account.name].tokens, self._limits.embedded_tokens
        if len(ids) > min(most, self.info.vocab_size) or len(known.union(ids)) > most:
            raise ForbiddenError(
                f"a key is told the word embeddings of {most} tokens at most, and of no more at once than the "
                f"vocabulary has ({self.info.vocab_size}); it knows {len(known)}, {len(ids)} were asked for."
            )
        known.update(ids)
        return await self._device.call(partial(backend.embed_ids, ids))

    async def register_rows(self, account: Account, rows: RowSet, anchor: str | None) -> RegisteredRows:
        """Tokenise rows once for many scorings; with an `anchor` that they will be scored with, to hear at once
        whether the model can have one."""
        self._check_rows(rows)
        id = _digest(rows.model_dump_json().encode())
        registered = Rows(rows, await self._encode(id, rows, None), _n_prompt_tokens(rows.rows[0]))
        self._holdings[account.name].rows.put(id[:16], registered)
        await self._encoded(account, id[:16], anchor)
        counts = {name: getattr(registered.encoded, name) for name in ("n_examples", "n_tokens", "n_truncated")}
        return RegisteredRows(id=id[:16], **counts)

    async def _encoded(self, account: Account, rows: str, anchor: str | None) -> Encoded:
        """Registered rows as the model has them with this anchor."""
        holdings = self._holdings[account.name]
        known = holdings.rows.get(rows)
        if anchor is None or not known.n_prompt_tokens:
            return known.encoded
        prompt, id = holdings.prompts.get(anchor), f"{rows} {anchor}"
        if id not in holdings.anchored:
            encoded = await self._encode(f"{rows} {_digest(prompt.tobytes())}", known.source, prompt)
            holdings.anchored.put(id, encoded)
        return holdings.anchored.get(id)

    async def _encode(self, content: str, rows: RowSet, anchor: Prompts | None) -> Encoded:
        """What the model makes of rows; one object for all accounts that have the same `content`, so that their
        requests can be joined."""
        segments = [tuple(row) for row in rows.rows]
        encoded = await self._device.call(partial(self._device.backend.encode, segments, rows.label_words, anchor))
        return self._same.setdefault(content, encoded)

    def register_prompt(self, account: Account, body: bytes, n_prompt_tokens: int) -> Registered:
        """A prompt (1, T, H), to be the p0 of a space or the anchor of rows."""
        if not 0 < n_prompt_tokens <= self._limits.prompt_tokens:
            raise BackendError(f"{n_prompt_tokens} prompt tokens: expected 1 to {self._limits.prompt_tokens}.")
        prompt = unpack(body, n_prompt_tokens, self.info.hidden_size)
        if len(prompt) != 1:
            raise BackendError(f"{len(prompt)} prompts: expected one.")
        _check_finite(prompt)
        id = _digest(f"{n_prompt_tokens} ".encode() + body)[:16]
        self._holdings[account.name].prompts.put(id, prompt)
        return Registered(id=id)

    async def register_space(self, account: Account, space: Space) -> Registered:
        """Draw A again from its recipe.

        Raises:
            ConflictError: it is not the client's A.
        """
        holdings, limits, id = self._holdings[account.name], self._limits, space.checksum[:16]
        p0 = holdings.prompts.get(space.p0)
        if space.intrinsic_dim > limits.intrinsic_dim or 4 * p0.size * space.intrinsic_dim > limits.projection_bytes:
            raise BackendError(
                f"a projection of {p0.size} x {space.intrinsic_dim} numbers is too large: at most "
                f"{limits.intrinsic_dim} dimensions and {limits.projection_bytes} bytes."
            )
        if id in holdings.spaces and holdings.spaces.get(id).checksum() == space.checksum:
            return Registered(id=id)
        recipe = Recipe(space.seed, space.intrinsic_dim, space.projection, space.scale, space.tied)
        async with self._drawing:  # one at a time: each takes memory several times that of A
            drawn = await asyncio.to_thread(_draw, p0, recipe)
        if drawn.checksum() != space.checksum:
            raise ConflictError("the projection drawn here is not the client's: other maths libraries. Send prompts.")
        holdings.spaces.put(id, drawn)
        return Registered(id=id)

    async def score(
        self, account: Account, body: bytes, rows: str, space: str | None, anchor: str | None, join: bool
    ) -> Scores:
        """Scores (n, B, K) of z (n, d) in a space, or of prompts (n, T, H); without prompt tokens n is 1.

        Raises:
            NotRegisteredError, WireError, BusyError, QuotaError, BackendError: see each.
        """
        holdings = self._holdings[account.name]
        known = holdings.rows.get(rows)
        shape = (known.n_prompt_tokens, self.info.hidden_size)
        made: Callable[[slice], Prompts]
        if space is None:
            prompts = unpack(body, *shape) if known.n_prompt_tokens else np.zeros((1, *shape), np.float32)
            made, n = partial(_sent, prompts), len(prompts)
        else:
            its = holdings.spaces.get(space)
            if its.n_prompt_tokens != known.n_prompt_tokens:
                raise BackendError(f"the rows have {shape[0]} prompt tokens, the space {its.n_prompt_tokens}.")
            latents = unpack(body, its.intrinsic_dim).astype(np.float64)
            made, n = partial(_made, its, latents), len(latents)
        if not 0 < n <= self._limits.candidates:
            raise BackendError(f"{n} candidates: expected 1 to {self._limits.candidates} in one request.")
        if n * known.encoded.n_examples > self._limits.sequences:
            raise BackendError(
                f"{n} candidates on {known.encoded.n_examples} rows: at most {self._limits.sequences} sequences (rows "
                "times candidates) in one request. Send fewer candidates at once, or register fewer rows."
            )
        answer = self._device.score(Scoring(n, made, await self._encoded(account, rows, anchor), join))
        try:
            account.charge(rows=n * known.encoded.n_examples, bytes=4 * n * known.encoded.n_examples * known.n_labels)
        except Exception:
            answer.cancel()
            raise
        return await answer

    def _check_rows(self, rows: RowSet) -> None:
        """Sizes, one mask a row, and the same number of prompt tokens in all."""
        limits = self._limits
        if len(rows.rows) > limits.rows or len(rows.label_words) > limits.label_words:
            raise BackendError(f"at most {limits.rows} rows and {limits.label_words} label words at once.")
        n_prompt_tokens = {_n_prompt_tokens(row) for row in rows.rows}
        if len(n_prompt_tokens) > 1 or not 0 <= max(n_prompt_tokens) <= limits.prompt_tokens:
            raise BackendError(f"rows need one number of prompt tokens, at most {limits.prompt_tokens}.")
        for row in rows.rows:
            if len(row) > limits.row_segments or sum(len(segment.text) for segment in row) > limits.row_characters:
                raise BackendError(
                    f"at most {limits.row_segments} segments and {limits.row_characters} characters a row."
                )
            if [segment.kind for segment in row].count("mask") != 1:
                raise BackendError("every row needs exactly one mask.")


def _n_prompt_tokens(row: Sequence[Segment]) -> int:
    """T of a row; only prompt segments may have tokens, and none a negative number."""
    if any(segment.n_tokens < 0 or (segment.n_tokens and segment.kind not in ("prompt", "start")) for segment in row):
        raise BackendError("n_tokens is the number of tokens of a prompt segment, 0 elsewhere.")
    return sum(segment.n_tokens for segment in row)


def _draw(p0: Prompts, recipe: Recipe) -> PromptSpace:
    with np.errstate(all="ignore"):
        space = PromptSpace.drawn(p0, recipe)
    _check_finite(space.matrix)
    return space


def _made(space: PromptSpace, latents: Latents, some: slice) -> Prompts:
    """p0 + A z of some candidates: (n, d) -> (n, T, H), finite."""
    _check_finite(latents[some])
    with np.errstate(all="ignore"):
        return _sent(space.prompts(latents[some]))


def _sent(prompts: Prompts, some: slice = slice(None)) -> Prompts:
    """Some of the prompts, finite."""
    _check_finite(prompts[some])
    return prompts[some]


def _check_finite(array: NDArray[np.floating]) -> None:
    if not np.isfinite(array).all():
        raise BackendError("the numbers sent, or the prompts they make, are not all finite.")


def _ranges(ids: Sequence[int]) -> list[tuple[int, int]]:
    """Sorted ids as half-open ranges."""
    array = np.array(ids)
    breaks = np.flatnonzero(np.diff(array) != 1) + 1
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(array, breaks) if len(part)]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
