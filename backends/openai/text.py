"""`TextBackend`: a model behind an OpenAI-compatible API that takes text only, and so hard prompts only."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.openai.answers import ChatAPI, CompletionsAPI, Sampling, TextAPI
from backends.openai.labels import check_distinct, label_log_probs, votes
from backends.openai.vocabulary import VocabularyClient, api_root, refuse_anchor
from backends.openai.words import read_words
from backends.openai.written import check_writing, ended
from backends.transport import Transport
from bbt.backend import Decoding, ModelInfo, Row
from bbt.errors import BackendError, ConfigError, EndpointError, LabelWordError, unknown
from bbt.types import Prompts, Scores, TokenIds

APIS: dict[str, type[TextAPI]] = {"completions": CompletionsAPI, "chat": ChatAPI}
SCORES = ("auto", "logprobs", "answers")
UNLIMITED = 10**9
ENOUGH = 16
"""The number of texts, under several prompts, after which a label word that was never listed is taken never to be: two
prompts with four rows for each of two classes have so many."""

PROBE = "I liked this film. The sentiment is"


@dataclass(frozen=True)
class TextRows:
    """The rows of one split, kept as text."""

    rows: Sequence[Row]
    """The rows (B,) as segments."""
    label_words: tuple[str, ...]
    """The label words (K,)."""
    n_prompt_tokens: int
    """The number of prompt tokens T."""
    n_tokens: int
    """The number of tokens of all rows, prompt tokens included, by the search's own vocabulary."""
    n_truncated: int = 0
    """The number of rows whose text was cut, which is none: the endpoint refuses a text that is too long."""

    @property
    def n_examples(self) -> int:
        """The number of rows B."""
        return len(self.rows)


@dataclass(frozen=True)
class TextContexts(TextRows):
    """The rows of one split that are to be written on, kept as text."""

    max_new_tokens: int = 0
    """The most tokens of a text."""


@dataclass(frozen=True)
class Answer:
    """What the endpoint's answer to one text says."""

    scores: NDArray[np.float32]
    """The scores (K,) of the label words."""
    found: NDArray[np.bool_]
    """Which label words (K,) the answer held."""
    said: Sequence[str]
    """The tokens that the endpoint listed, or the texts that it answered."""


class TextBackend(VocabularyClient):
    """A model that answers text with text.

    `model` is its name at the endpoint; `vocabulary` the causal LM (bundled name, folder or hub name) whose words a
    prompt is made of, since the endpoint's own may be unknown. `api` is `completions` or `chat`. `scores`: the label
    words' log-probabilities among the `top_logprobs` most likely next tokens (OpenAI lists up to 20 in chat and 5 in
    completions, llama.cpp as many as there are), or the votes of `n_answers` answers of `answer_tokens` tokens; `auto`
    takes what the endpoint gives. `concurrency` requests are under way at once. A text that is too long is the
    endpoint's to refuse. `api_key_env`, `timeout`, `retries` and `verify` are those of `Transport`.

    Label words that the endpoint never lists would score alike under every prompt: the first population that is scored
    must see each of them listed (of answers: one of them named), or it is the last.

    Raises:
        EndpointError: the endpoint refuses, or does not give the log-probabilities asked for.
    """

    def __init__(
        self,
        model: str,
        *,
        url: str,
        api: str = "completions",
        vocabulary: str = "gpt2-mini",
        scores: str = "auto",
        top_logprobs: int = 20,
        n_answers: int = 1,
        answer_tokens: int = 8,
        concurrency: int = 8,
        api_key_env: str | None = None,
        timeout: float = 120.0,
        retries: int = 8,
        verify: bool | str = True,
    ) -> None:
        if api not in APIS:
            raise ConfigError(unknown("api", api, APIS))
        if scores not in SCORES:
            raise ConfigError(unknown("scores", scores, SCORES))
        transport = Transport(api_root(url), api_key_env=api_key_env, timeout=timeout, retries=retries, verify=verify)
        super().__init__(model, transport, read_words(vocabulary), UNLIMITED)
        self._api = APIS[api](transport, model, Sampling(top_logprobs, n_answers, answer_tokens))
        self._concurrency = concurrency
        # What has been asked and heard of label words so far: it decides of an error, never of a score.
        self._listed: set[str] = set()
        self._populations = self._texts = 0
        self._by_answers = scores == "answers" or not self._tells_log_probs(required=scores == "logprobs")

    @cached_property
    def info(self) -> ModelInfo:
        """The endpoint's name for the model with facts about the vocabulary; `precision` says how labels are scored."""
        known = self._info("sampled answers" if self._by_answers else "listed log-probabilities")
        fingerprint = hashlib.sha256(f"{known.name} {known.fingerprint}".encode()).hexdigest()[:12]
        return replace(known, architecture="text-only API", fingerprint=fingerprint)

    @property
    def heard(self) -> dict[str, Any]:
        """What the answers to populations have held so far; see `HearingBackend`."""
        return {"label_words": sorted(self._listed), "populations": self._populations, "texts": self._texts}

    def hear(self, heard: Mapping[str, Any]) -> None:
        """Go on from what an earlier process has heard; see `HearingBackend`."""
        self._listed.update(heard["label_words"])
        self._populations = max(self._populations, heard["populations"])
        self._texts = max(self._texts, heard["texts"])

    def encode(self, rows: Sequence[Row], label_words: Sequence[str], anchor: Prompts | None = None) -> TextRows:
        """Keep the rows as text; label words that are looked for in answers may have several tokens.

        Raises:
            LabelWordError: a word that is looked for among tokens is not one, or two words are alike.
        """
        refuse_anchor(anchor)
        if not rows:
            raise BackendError("there are no rows to encode.")
        check_distinct(label_words)
        if not self._by_answers:
            self._check_tokens(label_words, rows[0])
        n_tokens = sum(len(self._tokenizer.row(row).ids) for row in rows)
        return TextRows(rows, tuple(label_words), sum(segment.n_tokens for segment in rows[0]), n_tokens)

    def hard_scores(self, token_ids: TokenIds, encoded: TextRows) -> Scores:
        """Score every row under every hard prompt: (n, T) -> (n, B, K). Each row with the prompt's words in its places
        is one request.

        Raises:
            EndpointError: the endpoint refuses, or none of the answers to a population holds a label word.
        """
        words, n, n_rows = encoded.label_words, len(token_ids), encoded.n_examples
        ask = self._vote if self._by_answers else self._log_probs
        texts = [self._filled(row, prompt) for prompt in token_ids.tolist() for row in encoded.rows]
        with ThreadPoolExecutor(self._concurrency) as pool:
            answers = list(pool.map(partial(ask, words=words), texts))
        for answer in answers:
            self._listed.update(word for word, found in zip(words, answer.found, strict=True) if found)
        if answers:
            self._populations, self._texts = self._populations + 1, self._texts + len(texts)
            self._check_listed(words, n, texts[-1], answers[-1].said)
        return np.array([answer.scores for answer in answers], dtype=np.float32).reshape(n, n_rows, len(words))

    def label_scores(self, prompts: Prompts, encoded: TextRows) -> Scores:
        """Score rows without a soft prompt, the only ones that can be sent as text: (1, 0, H) -> (1, B, K).

        Raises:
            BackendError: there is a soft prompt.
        """
        self._refuse_soft(prompts, encoded)
        return self.hard_scores(np.zeros((len(prompts), 0), dtype=np.int64), encoded)

    def encode_contexts(self, rows: Sequence[Row], max_new_tokens: int) -> TextContexts:
        """Keep what is written on from as text; the room for new tokens is the endpoint's matter."""
        if not rows:
            raise BackendError("there are no rows to encode.")
        n_tokens = sum(len(self._tokenizer.context(row, 1).ids) for row in rows)
        return TextContexts(rows, (), sum(segment.n_tokens for segment in rows[0]), n_tokens, 0, max_new_tokens)

    def generate(self, prompt: Prompts, encoded: TextContexts, decoding: Decoding) -> list[str]:
        """Have the endpoint write a text for each row without a soft prompt (1, 0, H); each is one request.

        Raises:
            BackendError: there is a soft prompt, or a decoding that no such API offers.
            EndpointError: the endpoint refuses or cannot be reached.
        """
        self._refuse_soft(prompt, encoded)
        check_writing(len(prompt), encoded.max_new_tokens, decoding)
        texts = [self._filled(row[:-1], ()) for row in encoded.rows]
        with ThreadPoolExecutor(self._concurrency) as pool:
            return [
                ended(text, decoding.stop) for text in pool.map(partial(self._api.written, decoding=decoding), texts)
            ]

    def _refuse_soft(self, prompts: Prompts, encoded: TextRows) -> None:
        """Refuse soft prompts.

        Raises:
            BackendError: there is one.
        """
        if prompts.ndim != 3 or prompts.shape[1] or encoded.n_prompt_tokens:
            raise BackendError(
                f"{self._transport.url} takes text, which cannot hold a soft prompt; "
                "use method: hard-prompt or token-search, or manual where the answer is a text."
            )

    def _tells_log_probs(self, required: bool) -> bool:
        try:
            if self._api.top_tokens(PROBE, counted=False):
                return True
        except EndpointError as error:
            if required or error.status != 400:
                raise
        if required:
            raise EndpointError(
                f"{self._transport.url} gives no log-probabilities; set model.options.scores to answers."
            )
        return False

    def _check_tokens(self, words: Sequence[str], row: Row) -> None:
        try:
            self._tokenizer.label_ids(words, row)
        except LabelWordError as error:
            raise LabelWordError(
                f"{error} The tokens are those of model.options.vocabulary: name a model there that shares the "
                "endpoint's tokenizer, or set model.options.scores to answers.",
                error.words,
            ) from error

    def _check_listed(self, words: Sequence[str], n_candidates: int, text: str, said: Sequence[str]) -> None:
        """Check after a population whether each label word has been listed. If one never is, to go on would cost money,
        and no prompt would score better. A population of one (the manual prompt, a text to classify) is no proof, so
        that a warning has to do; several of them are, on `ENOUGH` texts.

        Raises:
            EndpointError: the population has several candidates, or is one of several without any label word.
        """
        missing = [word for word in words if word not in self._listed]
        if not missing or (len(missing) < len(words) and (self._by_answers or n_candidates < 2)):
            return
        where, remedy = "named in an answer", ""
        if not self._by_answers:
            where = "among the most likely next tokens that it lists"
            remedy = "raise model.options.top_logprobs, set model.options.scores to answers, or "
        words_said = ", ".join(repr(part[:40]) for part in said[:5])
        message = (
            f"{self._transport.url}: label word{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))} never "
            f"{where}, and can never win; {remedy}choose label words that fit what it says to such a text: "
            f"{text[-80:]!r} -> {words_said}."
        )
        if n_candidates > 1 or (self._populations > 1 and self._texts >= ENOUGH):
            raise EndpointError(message)
        if self._populations == 1:
            warnings.warn(message, stacklevel=3)

    def _log_probs(self, text: str, words: Sequence[str]) -> Answer:
        tokens = self._api.top_tokens(text)
        if not tokens:
            raise EndpointError(f"{self._transport.url} gave log-probabilities before but none now.")
        return Answer(*label_log_probs(tokens, words), [token for token, _ in tokens])

    def _vote(self, text: str, words: Sequence[str]) -> Answer:
        answers = self._api.answers(text)
        return Answer(*votes(answers, words), answers)

    def _filled(self, row: Row, prompt: Sequence[int]) -> str:
        """Write the row as text, as the template is written, with the prompt's words in its places, up to where the
        label word comes with the space before it.

        Raises:
            BackendError: the template has a `{start}`, which is no place for words.
        """
        text, rest = "", list(prompt)
        for segment in row:
            if segment.kind == "start":
                raise BackendError("a text endpoint takes no soft prompt: {start} is no place for words, use {prompt}.")
            if segment.kind == "prompt":
                words, rest = self.prompt_text(rest[: segment.n_tokens]), rest[segment.n_tokens :]
                # The first word may bring the space that the template has already.
                text += words.removeprefix(" ") if text[-1:].isspace() else words
            else:
                text += segment.text
        return text.removesuffix(" ")
