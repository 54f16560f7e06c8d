"""`VLLMBackend` takes soft prompts of a causal LM that vLLM serves with `--enable-prompt-embeds`."""

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from backends.local.encoding import TokenRow, TokenRows, prompt_id
from backends.openai.completions import Completions, Context
from backends.openai.probe import probe, served_model
from backends.openai.tensors import PRECISIONS, rounded
from backends.openai.vocabulary import VocabularyClient, api_root, refuse_anchor
from backends.openai.words import read_words
from backends.transport import Transport
from bbt.backend import ModelInfo, Row
from bbt.errors import BackendError, unknown
from bbt.types import Prompts, Scores, TokenIds


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
        expected = (encoded.n_prompt_tokens, self._words.matrix.shape[1])
        if prompts.ndim != 3 or prompts.shape[1:] != expected:
            raise BackendError(f"prompts have shape {prompts.shape}, expected (n, {expected[0]}, {expected[1]}).")
        vectors = rounded(np.asarray(prompts, dtype=np.float32), self._precision)
        finite = np.isfinite(vectors).all(axis=(1, 2))
        scores = np.full((len(prompts), encoded.n_examples, len(encoded.label_ids)), np.nan, dtype=np.float32)
        # All rows of a candidate in sequence: its keys and values are in the server's prefix cache then.
        contexts = (self._embedded(row, vector) for vector in vectors[finite] for row in encoded.rows)
        scores[finite] = self._scores(contexts, encoded)
        return scores

    def hard_scores(self, token_ids: TokenIds, encoded: TokenRows) -> Scores:
        """Compute the log-probabilities of the label words under hard prompts, which travel as token ids: (n, T) ->
        (n, B, K)."""
        return self._scores((filled(row, prompt) for prompt in token_ids.tolist() for row in encoded.rows), encoded)

    def _scores(self, contexts: Iterable[Context], encoded: TokenRows) -> Scores:
        """Compute the scores (n, B, K) of the rows of every candidate, which come in sequence."""
        log_probs = self._completions.log_probs(contexts, encoded.label_ids)
        return log_probs.reshape(-1, encoded.n_examples, len(encoded.label_ids))

    def _embedded(self, row: TokenRow, prompt: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed a row of N tokens with the prompt (T, H) in its places, as (N, H)."""
        ids = np.array(row.ids)
        slots = ids < 0
        embeddings: NDArray[np.float32] = self._words.matrix[ids.clip(min=0)]
        embeddings[slots] = prompt[prompt_id(ids[slots])]
        return embeddings


def filled(row: TokenRow, prompt: Sequence[int]) -> list[int]:
    """Return a row's token ids with those of the prompt in its places."""
    return [prompt[prompt_id(i)] if i < 0 else i for i in row.ids]
