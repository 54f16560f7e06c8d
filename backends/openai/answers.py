"""What a text-only API says to a text: the most likely next tokens, or sampled answers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeAlias, TypeVar

from requests import Response

from backends.transport import AnswerError, Transport, read_json
from bbt.backend import Decoding
from bbt.errors import EndpointError

T = TypeVar("T")

TopTokens: TypeAlias = list[tuple[str, float]]
"""Texts of the most likely next tokens with their log-probabilities; two tokens may have the same text."""

IMPOSSIBLE = -9999.0
"""What OpenAI and vLLM write for a log-probability of minus infinity, which JSON cannot hold; others write null."""


@dataclass(frozen=True)
class Sampling:
    """What is asked of the endpoint for each text."""

    top_logprobs: int
    """The number of most likely next tokens that are listed."""
    n_answers: int
    """The number of answers that are drawn."""
    answer_tokens: int
    """The most tokens of an answer."""


class TextAPI(ABC):
    """One of an OpenAI-compatible endpoint's two ways to be asked. Several threads may ask at once."""

    path: ClassVar[str]
    """The path of the address that is asked."""

    def __init__(self, transport: Transport, model: str, sampling: Sampling) -> None:
        self._transport, self._model, self._sampling = transport, model, sampling

    @abstractmethod
    def top_tokens(self, text: str, counted: bool = True) -> TopTokens | None:
        """Ask which tokens come next after the text; None where the endpoint does not tell log-probabilities."""

    @abstractmethod
    def answers(self, text: str) -> list[str]:
        """Ask for answers to the text: the most likely one, or several sampled at temperature 1."""

    @abstractmethod
    def written(self, text: str, decoding: Decoding) -> str:
        """Ask for one text that goes on from, or answers, the text."""

    def _ask(
        self, counted: bool, read: Callable[[dict[str, Any]], T], written: bool = False, /, **fields: Any
    ) -> list[T]:
        """Ask, and return what `read` makes of each of the answer's choices; the tokens are counted as the endpoint
        bills them, for a text that is `written` or for scores."""
        body = {"model": self._model, **fields}
        choices, up, down = self._transport.call("POST", self.path, partial(_read, read), json=body, counted=counted)
        if counted:
            self._transport.count_tokens(up, down, written)
        return choices

    def _listed(self, counted: bool, **fields: Any) -> TopTokens | None:
        return self._ask(counted, _top_tokens, max_tokens=1, temperature=0, **fields)[0]

    def _sampled(self, read: Callable[[dict[str, Any]], str], **fields: Any) -> list[str]:
        s = self._sampling
        several = {"n": s.n_answers} if s.n_answers > 1 else {}  # not every server knows the field
        answers = self._ask(
            True, read, max_tokens=s.answer_tokens, temperature=int(s.n_answers > 1), **several, **fields
        )
        if len(answers) != s.n_answers:
            given = f"{len(answers)} of {s.n_answers} answers"
            raise EndpointError(f"{self._transport.url} gave {given}; set model.options.n_answers to 1.")
        return answers


class CompletionsAPI(TextAPI):
    """The API `/v1/completions`, which goes on from the text."""

    path = "/v1/completions"

    def top_tokens(self, text: str, counted: bool = True) -> TopTokens | None:
        """Ask which tokens come next after the text; see `TextAPI.top_tokens`."""
        return self._listed(counted, prompt=text, logprobs=self._sampling.top_logprobs)

    def answers(self, text: str) -> list[str]:
        """Ask for texts that go on from the text; see `TextAPI.answers`."""
        return self._sampled(_text, prompt=text)

    def written(self, text: str, decoding: Decoding) -> str:
        """Ask for a text that goes on from the text; see `TextAPI.written`."""
        return self._ask(True, _text, True, **_decoded(decoding), prompt=text)[0]


class ChatAPI(TextAPI):
    """The API `/v1/chat/completions`, to which the text is what the user says."""

    path = "/v1/chat/completions"

    def top_tokens(self, text: str, counted: bool = True) -> TopTokens | None:
        """Ask which tokens the answer to the text begins with; see `TextAPI.top_tokens`."""
        return self._listed(counted, messages=_said(text), logprobs=True, top_logprobs=self._sampling.top_logprobs)

    def answers(self, text: str) -> list[str]:
        """Ask for answers to the text; see `TextAPI.answers`."""
        return self._sampled(_content, messages=_said(text))

    def written(self, text: str, decoding: Decoding) -> str:
        """Ask for an answer to the text; see `TextAPI.written`."""
        return self._ask(True, _content, True, **_decoded(decoding), messages=_said(text))[0]


def _decoded(decoding: Decoding) -> dict[str, Any]:
    """Make the fields by which text is generated. `seed` is sent where it matters, since not every server knows it."""
    drawn = {"temperature": decoding.temperature, "top_p": decoding.top_p, "seed": decoding.seed}
    stop = {"stop": list(decoding.stop)} if decoding.stop else {}
    return {"max_tokens": decoding.max_new_tokens, **stop, **(drawn if decoding.sample else {"temperature": 0})}


def _text(choice: dict[str, Any]) -> str:
    """Read the text of a completion."""
    return str(choice["text"] or "")


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _read(read: Callable[[dict[str, Any]], T], response: Response) -> tuple[list[T], int, int]:
    """Return what `read` makes of each of an answer's choices, and the numbers of tokens billed up and down.

    Raises:
        AnswerError: it has no choices, or other ones than such an endpoint gives.
    """
    answer = read_json(response)
    if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list) or not answer["choices"]:
        raise AnswerError(f"an answer without choices ({response.text[:80]!r})")
    try:
        usage = answer.get("usage") or {}
        billed = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        return [read(choice) for choice in answer["choices"]], billed[0], billed[1]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise AnswerError(f"an answer of another form ({response.text[:80]!r})") from error


def _top_tokens(choice: dict[str, Any]) -> TopTokens | None:
    """Read the list of the first token, in the form of completions or in that of chat, whichever was asked: servers mix
    them. Tokens that are impossible are left out; None where there is no list.

    Raises:
        ValueError: a list without one possible token.
    """
    told = choice.get("logprobs") or {}
    if told.get("content"):
        listed = [(item["token"], item["logprob"]) for item in told["content"][0].get("top_logprobs") or ()]
    else:
        listed = list(((told.get("top_logprobs") or [None])[0] or {}).items())
    possible = [(str(token), float(value)) for token, value in listed if value is not None]
    possible = [(token, value) for token, value in possible if math.isfinite(value) and value > IMPOSSIBLE]
    if listed and not possible:
        raise ValueError("no token is possible")
    return possible or None


def _content(choice: dict[str, Any]) -> str:
    """Read the text of a chat's answer, which is a string, or parts of which some are text; it is empty where a model
    refuses."""
    content = (choice.get("message") or {}).get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text") or "") for part in content)
