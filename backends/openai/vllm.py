"""`VLLMBackend` takes soft prompts of a causal LM that vLLM serves with `--enable-prompt-embeds`."""

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from backends.local.encoding import TokenRow, TokenRows, prompt_id
from backends.local.pairs import TokenPairs
from backends.openai.completions import Completions, Context
from backends.openai.probe import probe, served_model
from backends.openai.tensors import PRECISIONS, rounded
from backends.openai.vocabulary import VocabularyClient, api_root, refuse_anchor
from backends.openai.words import read_words
from backends.openai.written import TokenContexts, check_writing, ended
from backends.transport import Transport
from bbt.backend import Decoding, ModelInfo, Row
from bbt.errors import BackendError, unknown
from bbt.types import Prompts, RowScores, Scores, TokenIds


class VLLMBackend(VocabularyClient):
    """A causal LM behind vLLM's completions API: the client embeds text itself, the server sees embeddings.

    `model` is the bundled name, folder or hub name of what is served, for its tokenizer and word embeddings alone;
    `served_name` its name at the endpoint (none: the only one there); `precision` that of the embeddings on the
    wire: bf16 halves the bytes and moves log-probabilities by up to 1e-2, fp16 by 2e-3. `list_size` sequences go
    into a request. `api_key_env`, `timeout`, `retries` and `verify` are those of `Transport`.

    Raises:
        BackendError: the endpoint serves another model, or cannot do what is needed.
    """

    def __init__(
        self,
        model: str,
        *,
        url: str,
        served_name: str | None = None,
        precision: str = "fp32",
        revision: str | None = None,
        list_size: int = 64,
        api_key_env: str | None = None,
        timeout: float = 300.0,
        retries: int = 8,
        verify: bool | str = True,
    ) -> None:
        if precision not in PRECISIONS:
            raise BackendError(unknown("precision", precision, PRECISIONS))
        transport = Transport(api_root(url), api_key_env=api_key_env, timeout=timeout, retries=retries, verify=verify)
        served = served_model(transport, served_name)
        self._precision = precision
        words = read_words(model, revision)
        # One place of the server's length is the token that it generates.
        longest = words.max_length if served.max_length is None else served.max_length - 1
        super().__init__(model, transport, words, min(words.max_length, longest))
        self._completions = Completions(transport, served.name, list_size, precision)
        probe(self._completions, words, self._tokenizer)

    @cached_property
    def info(self) -> ModelInfo:
        """Facts about the model; `device` is the endpoint's address, `precision` that of the embeddings on the wire."""
        return self._info(PRECISIONS[self._precision].dtype)

    def encode(self, rows: Sequence[Row], label_words: Sequence[str], anchor: Prompts | None = None) -> TokenRows:
        """Tokenise rows once; see `Backend.encode`."""
        refuse_anchor(anchor)
        return self._tokenizer.rows(rows, label_words)

    def label_scores(self, prompts: Prompts, encoded: TokenRows) -> Scores:
        """Compute the log-probabilities of the label words under soft prompts: (n, T, H) -> (n, B, K).

        A candidate that is not finite in the wire's precision is NaN without being sent: one such row poisons the
        server's cache for everybody.

        Raises:
            BackendError: prompts of another shape.
            EndpointError: the endpoint refuses or cannot be reached.
        """
        vectors, finite = self._checked(prompts, encoded.n_prompt_tokens)
        scores = np.full((len(prompts), encoded.n_examples, len(encoded.label_ids)), np.nan, dtype=np.float32)
        # All rows of a candidate in sequence: its keys and values are in the server's prefix cache then.
        contexts = (self._embedded(row.ids, vector) for vector in vectors[finite] for row in encoded.rows)
        scores[finite] = self._scores(contexts, encoded)
        return scores

    def hard_scores(self, token_ids: TokenIds, encoded: TokenRows) -> Scores:
        """Compute the log-probabilities of the label words under hard prompts, which travel as token ids: (n, T) ->
        (n, B, K)."""
        return self._scores((filled(row, prompt) for prompt in token_ids.tolist() for row in encoded.rows), encoded)

    def encode_pairs(self, rows: Sequence[Row]) -> TokenPairs:
        """Tokenise rows that end in their targets; see `TargetBackend.encode_pairs`."""
        _require_rows(rows)
        return TokenPairs(self._tokenizer.pairs(rows), _n_prompt_tokens(rows))

    def target_log_likelihoods(self, prompts: Prompts, encoded: TokenPairs) -> RowScores:
        """Compute the log-likelihoods (n, B) of the targets under soft prompts (n, T, H). The server tells no
        likelihood of what it is sent as embeddings, so that each token of a target is asked for after the row and the
        tokens before it; rows without a soft prompt travel as token ids, and are echoed with theirs.

        Raises:
            BackendError, EndpointError: as `label_scores`.
        """
        vectors, finite = self._checked(prompts, encoded.n_prompt_tokens)
        found = np.full((len(prompts), encoded.n_examples), np.nan, dtype=np.float32)
        if not encoded.n_prompt_tokens:
            found[:] = self._echoed(encoded) if len(prompts) else 0.0
            return found
        prefixes: dict[tuple[int, ...], list[tuple[int, int]]] = {}  # by prefix, the tokens and the pairs that go on
        for number, pair in enumerate(encoded.pairs):
            for j, token in enumerate(pair.target):
                prefixes.setdefault((*pair.context.ids, *pair.target[:j]), []).append((token, number))
        wanted = [[token for token, _ in after] for after in prefixes.values()]
        numbers = [number for after in prefixes.values() for _, number in after]
        for candidate in np.flatnonzero(finite):
            contexts = [self._embedded(ids, vectors[candidate]) for ids in prefixes]
            values = [value for told in self._completions.token_log_probs(contexts, wanted) for value in told]
            found[candidate] = np.bincount(numbers, values, encoded.n_examples)
        return found

    def _echoed(self, encoded: TokenPairs) -> RowScores:
        """Compute the log-likelihoods (B,) of the targets of rows that hold no soft prompt."""
        rows = [[*pair.context.ids, *pair.target] for pair in encoded.pairs]
        told = self._completions.echoed(rows)
        return np.array([sum(v[-len(p.target) :]) for v, p in zip(told, encoded.pairs, strict=True)], np.float32)

    def encode_contexts(self, rows: Sequence[Row], max_new_tokens: int) -> TokenContexts:
        """Tokenise what is written on from; see `GenerationBackend.encode_contexts`."""
        _require_rows(rows)
        contexts = [self._tokenizer.context(row, max_new_tokens) for row in rows]
        return TokenContexts(contexts, _n_prompt_tokens(rows), max_new_tokens)

    def generate(self, prompt: Prompts, encoded: TokenContexts, decoding: Decoding) -> list[str]:
        """Have the endpoint write a text after each row under one prompt; see `GenerationBackend.generate`.

        Raises:
            BackendError: not one prompt of the rows' length, one that is not finite in the wire's precision, beams, or
                more new tokens than the rows have room for.
            EndpointError: the endpoint refuses or cannot be reached.
        """
        vectors, finite = self._checked(prompt, encoded.n_prompt_tokens)
        check_writing(len(prompt), encoded.max_new_tokens, decoding)
        if not finite.all():
            raise BackendError(f"the prompt is not finite in {self._precision}, and would poison the server's cache.")
        contexts: Iterable[Context] = (self._embedded(row.ids, vectors[0]) for row in encoded.rows)
        if not encoded.n_prompt_tokens:
            contexts = (list(row.ids) for row in encoded.rows)
        return [ended(text, decoding.stop) for text in self._completions.texts(contexts, decoding)]

    def _checked(self, prompts: Prompts, n_prompt_tokens: int) -> tuple[Prompts, NDArray[np.bool_]]:
        """Round prompts (n, T, H) as they travel, and tell which (n,) of them are finite then.

        Raises:
            BackendError: prompts of another shape.
        """
        expected = (n_prompt_tokens, self._words.matrix.shape[1])
        if prompts.ndim != 3 or prompts.shape[1:] != expected:
            raise BackendError(f"prompts have shape {prompts.shape}, expected (n, {expected[0]}, {expected[1]}).")
        vectors = rounded(np.asarray(prompts, dtype=np.float32), self._precision)
        return vectors, np.asarray(np.isfinite(vectors).all(axis=(1, 2)))

    def _scores(self, contexts: Iterable[Context], encoded: TokenRows) -> Scores:
        """Compute the scores (n, B, K) of the rows of every candidate, which come in sequence."""
        log_probs = self._completions.log_probs(contexts, encoded.label_ids)
        return log_probs.reshape(-1, encoded.n_examples, len(encoded.label_ids))

    def _embedded(self, token_ids: Sequence[int], prompt: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed a row of N tokens with the prompt (T, H) in its places, as (N, H)."""
        ids = np.array(token_ids)
        slots = ids < 0
        embeddings: NDArray[np.float32] = self._words.matrix[ids.clip(min=0)]
        embeddings[slots] = prompt[prompt_id(ids[slots])]
        return embeddings


def filled(row: TokenRow, prompt: Sequence[int]) -> list[int]:
    """Return a row's token ids with those of the prompt in its places."""
    return [prompt[prompt_id(i)] if i < 0 else i for i in row.ids]


def _n_prompt_tokens(rows: Sequence[Row]) -> int:
    return sum(segment.n_tokens for segment in rows[0])


def _require_rows(rows: Sequence[Row]) -> None:
    if not rows:
        raise BackendError("there are no rows to encode.")
