"""An endpoint is probed here before a search relies on it."""

from dataclasses import dataclass

import numpy as np

from backends.local.encoding import RowTokenizer
from backends.openai.completions import Completions, Context, IgnoredFieldError
from backends.openai.words import Words
from backends.transport import Transport, read_json
from bbt.backend import Segment
from bbt.errors import EndpointError, unknown

TEXT = "It was a slow, warm and funny story about two friends; not a great film, but I liked it. The sentiment is"
TOLERANCE = 0.05
"""The largest difference, in nats, between log-probabilities of equal models: they differ by 1e-5 in fp32 and by up to
0.02 in bf16, and other models by whole units."""


@dataclass(frozen=True)
class ServedModel:
    """A model that an endpoint serves."""

    name: str
    """The model's name at the endpoint."""
    max_length: int | None
    """The most tokens of a request with what it generates (none: the endpoint does not tell)."""


def served_model(transport: Transport, name: str | None) -> ServedModel:
    """Find the model of that name at the endpoint; without a name, the only one there.

    Raises:
        EndpointError: none of that name, or several to choose from.
    """
    listing = transport.call("GET", "/v1/models", read_json, counted=False)
    try:
        models = {str(model["id"]): model.get("max_model_len") for model in listing["data"]}
    except (KeyError, TypeError) as error:
        raise EndpointError(
            f"{transport.url}/v1/models does not list models: is it an OpenAI-compatible API?"
        ) from error
    if name is None and len(models) == 1:
        (name,) = models
    if name is None:
        raise EndpointError(
            f"{transport.url} serves {', '.join(sorted(models))}: set model.options.served_name to one."
        )
    if name not in models:
        raise EndpointError(f"{transport.url}: {unknown('model', name, models)}")
    return ServedModel(name, models[name])


def probe(completions: Completions, words: Words, tokenizer: RowTokenizer) -> None:
    """Check that text, token ids and embeddings of one row mean the same there, and choose how log-probabilities are
    asked for.

    Raises:
        EndpointError: log-probabilities of chosen tokens or embeddings are not to be had, or the endpoint's tokenizer
            or word embeddings are not ours.
    """
    ids = list(tokenizer.row((Segment("text", TEXT), Segment("mask"))).ids)
    some = sorted(set(ids))[:8]  # more than an answer could hold by chance
    try:
        by_ids = completions.log_probs([ids], some)
    except IgnoredFieldError:
        completions.one_by_one = True
        by_ids = completions.log_probs([ids], some)
    others: dict[str, Context] = {"token ids": TEXT, "word embeddings": words.matrix[ids]}
    for what, context in others.items():
        difference = float(np.abs(completions.log_probs([context], some) - by_ids).max())
        if not difference <= TOLERANCE:
            raise EndpointError(
                f"the endpoint's {what} are not those of the model given here: log-probabilities of one row differ by "
                f"{difference:.3g}. Set model.name to the folder or hub name (and revision) that is served there."
            )
