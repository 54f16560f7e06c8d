"""What a text-only API says to a text: the most likely next tokens, or sampled answers; and what both say of labels."""

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from requests import Response

from backends.transport import AnswerError, Transport, read_json
from bbt.errors import EndpointError

T = TypeVar("T")

TopTokens: TypeAlias = list[tuple[str, float]]
"""Texts of the most likely next tokens with their log-probabilities; two tokens may have the same text."""


@dataclass(frozen=True)
class Sampling:
    """How many next tokens are listed, how many answers are drawn, and how long an answer may be."""

    top_logprobs: int
    n_answers: int
    answer_tokens: int


class TextAPI(ABC):
    """One of an OpenAI-compatible endpoint's two ways to be asked; for several threads at once."""

    path: ClassVar[str]

    def __init__(self, transport: Transport, model: str, sampling: Sampling) -> None:
        self._transport, self._model, self._sampling = transport, model, sampling
        self._lock = threading.Lock()

    @abstractmethod
    def top_tokens(self, text: str, counted: bool = True) -> TopTokens | None:
        """What comes next after the text; None where the endpoint does not tell log-probabilities."""

    @abstractmethod
    def answers(self, text: str) -> list[str]:
        """Sampled answers to the text: the most likely one, or several at temperature 1."""

    def _choices(self, counted: bool, /, **fields: Any) -> list[dict[str, Any]]:
        """The answer's choices; its tokens are counted as the endpoint bills them."""
        body = {"model": self._model, **fields}
        answer = self._transport.call("POST", self.path, _read, json=body, counted=counted)
        usage = answer.get("usage") or {}
        if counted:
            with self._lock:
                self._transport.traffic.tokens_up += int(usage.get("prompt_tokens") or 0)
                self._transport.traffic.tokens_down += int(usage.get("completion_tokens") or 0)
        return list(answer["choices"])

    def _sampled(self, read: Callable[[dict[str, Any]], str], **fields: Any) -> list[str]:
        s = self._sampling
        several = {"n": s.n_answers} if s.n_answers > 1 else {}  # not every server knows the field
        choices = self._choices(True, max_tokens=s.answer_tokens, temperature=int(s.n_answers > 1), **several, **fields)
        if len(choices) != s.n_answers:
            given = f"{len(choices)} of {s.n_answers} answers"
            raise EndpointError(f"{self._transport.url} gave {given}; set model.options.n_answers to 1.")
        return [read(choice) for choice in choices]


class CompletionsAPI(TextAPI):
    """`/v1/completions`: the text is gone on from."""

    path = "/v1/completions"

    def top_tokens(self, text: str, counted: bool = True) -> TopTokens | None:
        """See `TextAPI`."""
        n = self._sampling.top_logprobs
        (choice,) = self._choices(counted, prompt=text, max_tokens=1, temperature=0, logprobs=n)
        listed = ((choice.get("logprobs") or {}).get("top_logprobs") or [None])[0]
        return [(token, float(value)) for token, value in listed.items()] if listed else None

    def answers(self, text: str) -> list[str]:
        """See `TextAPI`."""
        return self._sampled(lambda choice: str(choice["text"]), prompt=text)


class ChatAPI(TextAPI):
    """`/v1/chat/completions`: the text is what the user says."""

    path = "/v1/chat/completions"

    def top_tokens(self, text: str, counted: bool = True) -> TopTokens | None:
        """See `TextAPI`."""
        (choice,) = self._choices(
            counted,
            messages=_said(text),
            max_tokens=1,
            temperature=0,
            logprobs=True,
            top_logprobs=self._sampling.top_logprobs,
        )
        content = (choice.get("logprobs") or {}).get("content") or [{}]
        listed = content[0].get("top_logprobs")
        return [(item["token"], float(item["logprob"])) for item in listed] if listed else None

    def answers(self, text: str) -> list[str]:
        """See `TextAPI`."""
        return self._sampled(lambda choice: str(choice["message"]["content"] or ""), messages=_said(text))


def label_log_probs(tokens: TopTokens, words: Sequence[str]) -> NDArray[np.float32]:
    """(K,) log-probabilities of label words from the most likely next tokens.

    Tokens that are the word but for its case and the spaces around it count together. A word that is not listed gets
    the least likely listed token's, than which it is not likelier. All equal: no word is listed.
    """
    known: dict[str, float] = {}
    for token, value in tokens:
        key = token.strip().casefold()
        known[key] = np.logaddexp(known.get(key, -np.inf), value)
    floor = min(value for _, value in tokens)
    return np.array([max(floor, known.get(word.strip().casefold(), floor)) for word in words], dtype=np.float32)


def votes(answers: Sequence[str], words: Sequence[str]) -> NDArray[np.float32]:
    """(K,) log of the smoothed share of answers whose first label word is this one: log((votes + 1) / (n + K)).

    With one answer the cross-entropy of these is a linear function of the accuracy. All equal: no label was named.
    """
    pattern = re.compile(r"\b(" + "|".join(re.escape(w) for w in sorted(words, key=len, reverse=True)) + r")\b", re.I)
    named = [found.group().casefold() for answer in answers if (found := pattern.search(answer))]
    counts = np.array([named.count(word.casefold()) for word in words])
    return np.log((counts + 1) / (len(answers) + len(words))).astype(np.float32)


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _read(response: Response) -> dict[str, Any]:
    """The answer, if it has choices."""
    answer = read_json(response)
    if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list) or not answer["choices"]:
        raise AnswerError(f"an answer without choices ({response.text[:80]!r})")
    return answer
