"""`/v1/completions` is asked here in vLLM's dialect for the log-probabilities of chosen tokens, or for a text, after a
prompt of text, token ids or embeddings.

`logprob_token_ids` gives up to 128 of them in one request. Servers that do not know the field ignore it, as they
ignore any; with those a request a token, which alone is allowed by `allowed_token_ids`, is as exact. (All label ids
allowed at once would be renormalised over each other.)
"""

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from requests import Response

from backends.openai.answers import IMPOSSIBLE
from backends.openai.tensors import saved
from backends.transport import AnswerError, Transport, read_json
from bbt.backend import Decoding
from bbt.errors import EndpointError

T = TypeVar("T")

Context: TypeAlias = str | list[int] | NDArray[np.float32]
"""What stands before the token: text, token ids, or embeddings (N, H)."""

MAX_TOKEN_IDS = 128
"""The most token ids that vLLM takes in `logprob_token_ids`."""

NEXT_TOKEN = {
    "max_tokens": 1,
    "temperature": 0,
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "return_tokens_as_token_ids": True,
}
"""Neutral settings, since a model may bring others; tokens by id, since two may have the same text."""


class IgnoredFieldError(EndpointError):
    """The error of an answer without the tokens that were asked for."""


class Completions:
    """A client that asks for next-token log-probabilities of `model`.

    `list_size` contexts travel in a request: 16 to 256 are equally fast (measured), and concurrent requests to one
    replica add nothing. Embeddings travel in `precision`: fp32, bf16 or fp16. `one_by_one` is for servers that ignore
    `logprob_token_ids`.
    """

    def __init__(
        self, transport: Transport, model: str, list_size: int = 64, precision: str = "fp32", one_by_one: bool = False
    ) -> None:
        self._transport, self._model, self._list_size, self._precision = transport, model, list_size, precision
        self.one_by_one = one_by_one

    def log_probs(self, contexts: Iterable[Context], token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Ask for the log-probabilities (S, K) of K tokens after each of S contexts, which are all of one kind. They
        are normalised over the whole vocabulary.

        Contexts are taken list by list, so that a generator of embeddings never fills the memory.

        Raises:
            EndpointError: the endpoint refuses or is poisoned.
            IgnoredFieldError: it ignores which tokens were asked for.
        """
        step = 1 if self.one_by_one else MAX_TOKEN_IDS
        chunks = [list(token_ids[i : i + step]) for i in range(0, len(token_ids), step)]
        parts = [[self._request(content, chunk) for chunk in chunks] for content in self._lists(contexts)]
        return np.block(parts) if parts else np.empty((0, len(token_ids)), dtype=np.float32)

    def token_log_probs(self, contexts: Sequence[Context], token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Ask for the log-probabilities of some tokens after each of S contexts, of which each has its own; see
        `log_probs`."""
        found: list[dict[int, float]] = [{} for _ in contexts]
        for start in range(0, len(contexts), self._list_size):
            some = range(start, min(start + self._list_size, len(contexts)))
            wanted = sorted({token for i in some for token in token_ids[i]})
            step = 1 if self.one_by_one else MAX_TOKEN_IDS
            for chunk in (wanted[i : i + step] for i in range(0, len(wanted), step)):
                asked = [i for i in some if not set(chunk).isdisjoint(token_ids[i])]
                answers = self._request(_content([contexts[i] for i in asked], self._precision), chunk)
                for i, values in zip(asked, answers.tolist(), strict=True):
                    found[i].update(zip(chunk, values, strict=True))
        return [[values[token] for token in tokens] for values, tokens in zip(found, token_ids, strict=True)]

    def echoed(self, contexts: Iterable[list[int]]) -> Iterator[list[float]]:
        """Ask for the log-probability of every token but the first of contexts of token ids, in one forward pass of
        each."""
        for content in self._lists(contexts):
            body = {**content, **NEXT_TOKEN, "max_tokens": 0, "echo": True, "logprobs": 0}
            for choice in self._choices(body):
                values = [IMPOSSIBLE if v is None else float(v) for v in choice["logprobs"]["token_logprobs"]]
                yield values[1:]

    def texts(self, contexts: Iterable[Context], decoding: Decoding) -> list[str]:
        """Ask for a text after each of S contexts, which are all of one kind.

        Raises:
            EndpointError: the endpoint refuses or is poisoned.
        """
        sampled = {"temperature": decoding.temperature, "top_p": decoding.top_p} if decoding.sample else {}
        how = {"max_tokens": decoding.max_new_tokens, "stop": list(decoding.stop), "seed": decoding.seed, **sampled}
        return [
            str(choice["text"] or "")
            for content in self._lists(contexts)
            for choice in self._choices({**content, **NEXT_TOKEN, **how}, written=True)
        ]

    def _choices(self, body: dict[str, Any], written: bool = False) -> list[dict[str, Any]]:
        """Ask, and return the choices in the order of the contexts; the tokens are counted as they are billed, for
        texts that are `written` or for scores.

        Raises:
            EndpointError: the endpoint refuses or is poisoned.
        """
        n = len(body.get("prompt_embeds") or body["prompt"])
        choices, up, down = self._call(body, partial(_read_choices, n=n))
        self._transport.count_tokens(up, down, written)
        return choices

    def _lists(self, contexts: Iterable[Context]) -> Iterator[dict[str, Any]]:
        """Yield the contexts of one request after the other, as the request's field."""
        rest = iter(contexts)
        while part := list(islice(rest, self._list_size)):
            yield _content(part, self._precision)

    def _request(self, content: dict[str, Any], token_ids: list[int]) -> NDArray[np.float32]:
        """Ask for the log-probabilities (S, K) of one list of contexts.

        Raises:
            EndpointError: the endpoint refuses or is poisoned; IgnoredFieldError: it ignores which tokens were asked
                for.
        """
        asked = (
            {"logprobs": 0, "allowed_token_ids": token_ids}
            if self.one_by_one
            else {"logprobs": 1, "logprob_token_ids": token_ids}
        )
        body = {**content, **NEXT_TOKEN, **asked}
        (contexts,) = content.values()
        answers = self._call(body, partial(_read, n=len(contexts)))
        keys = [f"token_id:{token}" for token in token_ids]
        if any(key not in answer for answer in answers for key in keys):
            raise IgnoredFieldError(f"{self._transport.url}: its answers lack the tokens asked for, such as {keys[0]}.")
        return np.array([[answer[key] for key in keys] for answer in answers], dtype=np.float32)

    def _call(self, body: dict[str, Any], read: Callable[[Response], T]) -> T:
        """Send a request, and return what `read` makes of the answer.

        Raises:
            EndpointError: the endpoint refuses or is poisoned.
        """
        try:
            return self._transport.call("POST", "/v1/completions", read, json={"model": self._model, **body})
        except EndpointError as error:
            if error.status == 400 and "Out of range float" in str(error):
                raise EndpointError(
                    f"{self._transport.url} is poisoned: it finds NaN in finite input. Its prefix cache keeps what an "
                    "earlier request put there; restart it, then go on with bbt resume.",
                    error.status,
                ) from error
            raise


def _content(contexts: Sequence[Context], precision: str) -> dict[str, Any]:
    """Make the request's field for contexts of this kind."""
    embeddings = [_encoded(context, precision) for context in contexts if isinstance(context, np.ndarray)]
    return {"prompt_embeds": embeddings} if embeddings else {"prompt": list(contexts)}


def _encoded(embeddings: NDArray[np.float32], precision: str) -> str:
    """Write embeddings (N, H) as base64 of what `torch.save` writes."""
    return base64.b64encode(saved(embeddings, precision)).decode("ascii")


def _read(response: Response, n: int) -> list[dict[str, float]]:
    """Read the log-probabilities that are told for each context, in order, by token.

    Raises:
        AnswerError: not n choices with log-probabilities.
    """
    try:
        choices = sorted(read_json(response)["choices"], key=lambda choice: int(choice["index"]))
        answers = [_told(choice["logprobs"]) for choice in choices]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise AnswerError(f"choices without log-probabilities ({response.text[:80]!r})") from error
    if [choice["index"] for choice in choices] != list(range(n)):
        raise AnswerError(f"{len(choices)} choices for {n} prompts")
    return answers


def _read_choices(response: Response, n: int) -> tuple[list[dict[str, Any]], int, int]:
    """Read the n choices of an answer in order, and the numbers of tokens billed up and down.

    Raises:
        AnswerError: not n choices with texts.
    """
    try:
        answer = read_json(response)
        choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
        usage = answer.get("usage") or {}
        billed = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AnswerError(f"an answer without choices ({response.text[:80]!r})") from error
    if [choice["index"] for choice in choices] != list(range(n)):
        raise AnswerError(f"{len(choices)} choices for {n} prompts")
    return choices, billed[0], billed[1]


def _told(logprobs: dict[str, Any]) -> dict[str, float]:
    """Read the log-probabilities told of the first token: the sampled token's and those of the top list. Null is minus
    infinity, which JSON cannot hold."""
    pairs = {logprobs["tokens"][0]: logprobs["token_logprobs"][0], **((logprobs["top_logprobs"] or [{}])[0] or {})}
    return {token: IMPOSSIBLE if value is None else float(value) for token, value in pairs.items()}
