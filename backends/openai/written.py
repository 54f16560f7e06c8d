"""What an endpoint writes is checked before it is asked for, and cut where it ends."""

from collections.abc import Sequence
from dataclasses import dataclass

from backends.local.encoding import Tokenised
from bbt.backend import Decoding
from bbt.errors import BackendError


@dataclass
class TokenContexts(Tokenised):
    """One split of contexts to write on from, tokenised."""

    max_new_tokens: int
    """The number of tokens that there is room for after each of them."""


def check_writing(n_prompts: int, max_new_tokens: int, decoding: Decoding) -> None:
    """Check that an endpoint can write so, after rows with room for so many new tokens.

    Raises:
        BackendError: it cannot.
    """
    if n_prompts != 1 or decoding.max_new_tokens > max_new_tokens:
        raise BackendError(
            f"text is generated under one prompt, {max_new_tokens} tokens at most after these rows; asked for "
            f"{n_prompts} prompts and {decoding.max_new_tokens} tokens."
        )
    if decoding.n_beams > 1:
        raise BackendError("an OpenAI-compatible API searches no beams: set task.decoding.n_beams to 1.")


def ended(text: str, stop: Sequence[str]) -> str:
    """Cut a text before the first stop string in it, should the endpoint have left one, and blanks around it."""
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))].strip()
