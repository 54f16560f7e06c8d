"""The service does what the routes offer: an account's registrations, and scores of its prompts. There is no HTTP in
here."""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from backends.serve.device import Device, Scoring
from backends.serve.keys import Account
from backends.serve.limits import Limits
from backends.serve.schemas import (
    Answers,
    ContextSet,
    Ids,
    Model,
    PairSet,
    Registered,
    RegisteredPairs,
    RegisteredRows,
    RowSet,
    Space,
    Texts,
    Words,
    Writing,
    Written,
)
from backends.serve.store import Contexts, Holdings, Pairs, Rows
from backends.wire import unpack
from bbt.backend import Encoded, EncodedPairs, GenerationBackend, HardBackend, Segment, TargetBackend, require
from bbt.errors import BackendError
from bbt.spaces.soft import PromptSpace, Recipe
from bbt.types import Latents, Prompts, RowScores, Scores

WRITTEN_TOGETHER = 16
"""The number of rows that are written on at a time; between them the model's thread sees who has gone away."""
CLASSIFIED_TOGETHER = 64
"""The number of texts that a served run is asked of at a time, likewise."""
STOP_CHARACTERS = 200
"""The most characters of a stop string."""


class ForbiddenError(Exception):
    """An account asks for more than it may know."""


class ConflictError(Exception):
    """The server's arithmetic does not give what the client's gives."""


class Trained(Protocol):
    """The protocol of a run on the served model; `bbt.predictor.Predictor` has it."""

    def predict(self, texts: Sequence[str], text_pairs: Sequence[str] | None) -> list[dict[str, Any]]:
        """The label and the probabilities of each text (see `LabelAnswer`), or its `output`."""


class Service:
    """One model that serves several accounts, and a run that was `trained` on it if there is one."""

    def __init__(self, device: Device, limits: Limits, trained: Trained | None = None) -> None:
        self._device, self._limits, self._trained = device, limits, trained
        self.info = device.backend.info
        self._holdings: defaultdict[str, Holdings] = defaultdict(lambda: Holdings(limits))
        self._same: WeakValueDictionary[str, Encoded] = WeakValueDictionary()
        self._same_pairs: WeakValueDictionary[str, EncodedPairs] = WeakValueDictionary()
        self._drawing = asyncio.Lock()

    def model(self) -> Model:
        """Facts about the model, and the limits."""
        return Model(info=self.info, limits=self._limits)

    async def ordinary_ids(self) -> Ids:
        """The ids of tokens that are not special."""
        return Ids(ranges=_ranges(await self._device.call(self._device.backend.ordinary_ids)))

    async def embeddings(self, account: Account, words: Words) -> Prompts:
        """The word embeddings (1, T, H) of a text or of ids. An account is told those of so many tokens only, which is
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
        """Tokenise rows once for many scorings. With the `anchor` that they will be scored with, the caller hears at
        once whether the model can have one."""
        self._check_rows(rows.rows, "mask")
        if len(rows.label_words) > self._limits.label_words:
            raise BackendError(f"{len(rows.label_words)} label words: at most {self._limits.label_words}.")
        id = _digest(rows.model_dump_json().encode())
        registered = Rows(rows, await self._encode(id, rows, None), _n_prompt_tokens(rows.rows[0]))
        self._holdings[account.name].rows.put(id[:16], registered)
        await self._encoded(account, id[:16], anchor)
        return RegisteredRows(id=id[:16], **_counts([registered.encoded]))

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
        """Encode rows: the result is one object for all accounts that have the same `content`, so that their requests
        can be joined."""
        segments = [tuple(row) for row in rows.rows]
        encoded = await self._device.call(partial(self._device.backend.encode, segments, rows.label_words, anchor))
        return self._same.setdefault(content, encoded)

    def register_prompt(self, account: Account, body: bytes, n_prompt_tokens: int) -> Registered:
        """Register a prompt (1, T, H), to be the p0 of a space or the anchor of rows."""
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
        async with self._drawing:  # one at a time, since each takes several times the memory of A
            drawn = await asyncio.to_thread(_draw, p0, recipe)
        if drawn.checksum() != space.checksum:
            raise ConflictError("the projection drawn here is not the client's: other maths libraries. Send prompts.")
        holdings.spaces.put(id, drawn)
        return Registered(id=id)

    async def score(
        self, account: Account, body: bytes, rows: str, space: str | None, anchor: str | None, join: bool
    ) -> Scores:
        """The scores (n, B, K) of z (n, d) in a space, or of prompts (n, T, H); without prompt tokens n is 1.

        Raises:
            NotRegisteredError, WireError, BusyError, QuotaError, BackendError: see each.
        """
        known = self._holdings[account.name].rows.get(rows)
        made, n = self._population(account, body, known.n_prompt_tokens, space)
        encoded = await self._encoded(account, rows, anchor)
        scoring = Scoring(n, made, encoded, self._device.backend.label_scores, join)
        return await self._scored(account, scoring, 4 * known.n_labels)

    async def log_likelihoods(
        self, account: Account, body: bytes, rows: str, space: str | None, join: bool
    ) -> RowScores:
        """The log-likelihoods (n, B) of registered targets; otherwise as `score`."""
        known = self._holdings[account.name].pairs.get(rows)
        made, n = self._population(account, body, known.n_prompt_tokens, space)
        backend = require(self._device.backend, TargetBackend)
        return await self._scored(account, Scoring(n, made, known.encoded, backend.target_log_likelihoods, join), 4)

    def _population(
        self, account: Account, body: bytes, n_prompt_tokens: int, space: str | None
    ) -> tuple[Callable[[slice], Prompts], int]:
        """What makes some of the prompts (n, T, H) that a body holds, or z (n, d) in a space; and n."""
        shape = (n_prompt_tokens, self.info.hidden_size)
        if space is None:
            prompts = unpack(body, *shape) if n_prompt_tokens else np.zeros((1, *shape), np.float32)
            return partial(_sent, prompts), len(prompts)
        its = self._holdings[account.name].spaces.get(space)
        if its.n_prompt_tokens != n_prompt_tokens:
            raise BackendError(f"the rows have {n_prompt_tokens} prompt tokens, the space {its.n_prompt_tokens}.")
        latents = unpack(body, its.intrinsic_dim).astype(np.float64)
        return partial(_made, its, latents), len(latents)

    async def _scored(self, account: Account, scoring: Scoring, bytes_a_row: int) -> Scores:
        """The answer to a scoring, if it is not too large and the account has so much left."""
        n, n_rows = scoring.n, scoring.encoded.n_examples
        if not 0 < n <= self._limits.candidates:
            raise BackendError(f"{n} candidates: expected 1 to {self._limits.candidates} in one request.")
        if n * n_rows > self._limits.sequences:
            raise BackendError(
                f"{n} candidates on {n_rows} rows: at most {self._limits.sequences} sequences (rows times candidates) "
                "in one request. Send fewer candidates at once, or register fewer rows."
            )
        answer = self._device.score(scoring)
        try:
            account.charge(rows=n * n_rows, bytes=bytes_a_row * n * n_rows)
        except Exception:
            answer.cancel()
            raise
        return await answer

    async def register_pairs(self, account: Account, pairs: PairSet) -> RegisteredPairs:
        """Tokenise rows with their targets once for many scorings."""
        self._check_rows(pairs.rows, "target")
        id = _digest(pairs.model_dump_json().encode())
        encode = require(self._device.backend, TargetBackend).encode_pairs
        encoded = await self._device.call(partial(encode, [tuple(row) for row in pairs.rows]))
        encoded = self._same_pairs.setdefault(id, encoded)
        self._holdings[account.name].pairs.put(id[:16], Pairs(encoded, _n_prompt_tokens(pairs.rows[0])))
        return RegisteredPairs(id=id[:16], **_counts([encoded]), n_target_tokens=encoded.n_target_tokens.tolist())

    async def register_contexts(self, account: Account, contexts: ContextSet) -> RegisteredRows:
        """Tokenise rows once that are to be written on."""
        self._check_rows(contexts.rows, "target")
        self._check_new_tokens(len(contexts.rows), contexts.max_new_tokens)
        id = _digest(contexts.model_dump_json().encode())[:16]
        encode = require(self._device.backend, GenerationBackend).encode_contexts
        rows, room = [tuple(row) for row in contexts.rows], contexts.max_new_tokens
        pieces = [rows[i : i + WRITTEN_TOGETHER] for i in range(0, len(rows), WRITTEN_TOGETHER)]
        parts = await self._device.call(lambda: [encode(piece, room) for piece in pieces])
        held = Contexts(tuple(parts), _n_prompt_tokens(contexts.rows[0]))
        self._holdings[account.name].contexts.put(id, held)
        return RegisteredRows(id=id, **_counts(parts))

    async def write(self, account: Account, writing: Writing) -> Written:
        """Have the model write a text after each of the contexts.

        Raises:
            NotRegisteredError, BusyError, QuotaError, BackendError: see each.
        """
        holdings, decoding, limits = self._holdings[account.name], writing.decoding, self._limits
        known = holdings.contexts.get(writing.rows)
        prompt = np.zeros((1, 0, self.info.hidden_size), np.float32)
        if writing.prompt is not None:
            prompt = holdings.prompts.get(writing.prompt)
        self._check_new_tokens(known.n_examples, decoding.max_new_tokens)
        stops = [len(stop) for stop in decoding.stop]
        if decoding.n_beams > limits.beams or len(stops) > limits.stops or max(stops, default=0) > STOP_CHARACTERS:
            raise BackendError(
                f"at most {limits.beams} beams, and {limits.stops} stop strings of {STOP_CHARACTERS} characters."
            )
        # No token is longer than four bytes on average; what is written is not known yet.
        account.charge(rows=known.n_examples, bytes=4 * known.n_examples * decoding.max_new_tokens)
        generate = require(self._device.backend, GenerationBackend).generate
        texts = await self._device.rows([partial(generate, prompt, part, decoding) for part in known.parts])
        return Written(texts=texts, n_tokens=await self._device.call(partial(self._n_tokens, texts)))

    async def classify(self, account: Account, asked: Texts) -> Answers:
        """The answers of the served run to texts.

        Raises:
            BusyError, QuotaError, BackendError, DataError: see each.
        """
        assert self._trained is not None, "the route is there where a run is served"
        texts, pairs, limits = asked.texts, asked.text_pairs, self._limits
        characters = max(map(len, [*texts, *(pairs or ())]))
        if len(texts) > limits.rows or characters > limits.row_characters:
            raise BackendError(
                f"{len(texts)} texts, the longest of {characters} characters: at most {limits.rows} of "
                f"{limits.row_characters} in one request."
            )
        if pairs is not None and len(pairs) != len(texts):
            raise BackendError(f"{len(texts)} texts, but {len(pairs)} text_pairs: give one a text.")
        account.charge(rows=len(texts))
        parts = [slice(i, i + CLASSIFIED_TOGETHER) for i in range(0, len(texts), CLASSIFIED_TOGETHER)]
        predict = self._trained.predict
        steps = [partial(predict, texts[part], None if pairs is None else pairs[part]) for part in parts]
        return Answers.model_validate({"answers": await self._device.rows(steps)})

    def _n_tokens(self, texts: Sequence[str]) -> int:
        backend = self._device.backend
        return sum(len(backend.prompt_ids(text)) for text in texts) if isinstance(backend, HardBackend) else 0

    def _check_new_tokens(self, n_rows: int, n_tokens: int) -> None:
        if n_rows * n_tokens > self._limits.new_tokens:
            raise BackendError(
                f"{n_tokens} new tokens after each of {n_rows} rows: at most {self._limits.new_tokens} in one request. "
                "Register fewer rows, or ask for fewer tokens."
            )

    def _check_rows(self, rows: Sequence[Sequence[Segment]], last: str) -> None:
        """Check the sizes of rows, that each has one mask or target, the other none, and that all have the same number
        of prompt tokens."""
        limits = self._limits
        if len(rows) > limits.rows:
            raise BackendError(f"{len(rows)} rows: at most {limits.rows} at once.")
        n_prompt_tokens = {_n_prompt_tokens(row) for row in rows}
        if len(n_prompt_tokens) > 1 or not 0 <= max(n_prompt_tokens) <= limits.prompt_tokens:
            raise BackendError(f"rows need one number of prompt tokens, at most {limits.prompt_tokens}.")
        for row in rows:
            if len(row) > limits.row_segments or sum(len(segment.text) for segment in row) > limits.row_characters:
                raise BackendError(
                    f"at most {limits.row_segments} segments and {limits.row_characters} characters a row."
                )
            if [segment.kind for segment in row if segment.kind in ("mask", "target")] != [last]:
                raise BackendError(f"every row needs exactly one {last}.")


def _n_prompt_tokens(row: Sequence[Segment]) -> int:
    """The number of prompt tokens T of a row; only prompt segments may have tokens, and none a negative number."""
    if any(segment.n_tokens < 0 or (segment.n_tokens and segment.kind not in ("prompt", "start")) for segment in row):
        raise BackendError("n_tokens is the number of tokens of a prompt segment, 0 elsewhere.")
    return sum(segment.n_tokens for segment in row)


def _counts(parts: Sequence[Encoded]) -> dict[str, int]:
    """The counts of rows that were encoded part by part."""
    return {name: sum(getattr(part, name) for part in parts) for name in ("n_examples", "n_tokens", "n_truncated")}


def _draw(p0: Prompts, recipe: Recipe) -> PromptSpace:
    with np.errstate(all="ignore"):
        space = PromptSpace.drawn(p0, recipe)
    _check_finite(space.matrix)
    return space


def _made(space: PromptSpace, latents: Latents, some: slice) -> Prompts:
    """The prompts p0 + A z (n, T, H) of some of the latents (n, d), all finite."""
    _check_finite(latents[some])
    with np.errstate(all="ignore"):
        return _sent(space.prompts(latents[some]))


def _sent(prompts: Prompts, some: slice = slice(None)) -> Prompts:
    """Some of the prompts that were sent, all finite."""
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
