"""`VocabularyClient` is what a client that holds a model's words, and not the model, can do by itself."""

from collections.abc import Sequence

from backends.local.encoding import RowTokenizer
from backends.openai.words import Words
from backends.transport import Transport
from bbt.backend import ModelInfo, Traffic
from bbt.errors import BackendError
from bbt.types import Prompts


def api_root(url: str) -> str:
    """Return the address before `/v1`, which users may give or leave out."""
    return url.rstrip("/").removesuffix("/v1")


class VocabularyClient:
    """The part of a backend for the model `name` that no endpoint need answer: what `Backend`, `RemoteBackend` and
    `HardBackend` ask for beside the scores."""

    def __init__(self, name: str, transport: Transport, words: Words, max_length: int) -> None:
        self._name, self._transport, self._words, self._max_length = name, transport, words, max_length
        self._tokenizer = RowTokenizer(words.tokenizer, max_length, causal=True)

    @property
    def traffic(self) -> Traffic:
        """The bytes of all scoring calls so far, and the tokens that were billed if the endpoint says so."""
        return self._transport.traffic

    def _info(self, precision: str) -> ModelInfo:
        """Put together the facts that the words tell of the model."""
        words = self._words
        return ModelInfo(
            name=self._name,
            kind="causal",
            architecture=words.architecture,
            hidden_size=int(words.matrix.shape[1]),
            n_layers=words.n_layers,
            vocab_size=int(words.matrix.shape[0]),
            max_length=self._max_length,
            embedding_std=words.embedding_std,
            fingerprint=words.fingerprint,
            device=self._transport.url,
            precision=precision,
        )

    def prompt_ids(self, text: str) -> list[int]:
        """Return the token ids of a text as it stands after other words."""
        return self._tokenizer.text_ids(text)

    def prompt_text(self, token_ids: Sequence[int]) -> str:
        """Return the text of a hard prompt's tokens."""
        return self._tokenizer.text(token_ids)

    def embed_text(self, text: str) -> Prompts:
        """Return the word embeddings (1, T, H) of a text."""
        return self.embed_ids(self.prompt_ids(text))

    def embed_ids(self, token_ids: Sequence[int]) -> Prompts:
        """Return the word embeddings (1, T, H) of token ids."""
        return self._words.embedded(token_ids)

    def ordinary_ids(self) -> list[int]:
        """List the ids of all tokens that are not special."""
        return self._words.ordinary_ids()


def refuse_anchor(anchor: Prompts | None) -> None:
    """Refuse an anchor: such an endpoint takes what goes into the model, and adds nothing in between.

    Raises:
        BackendError: there is an anchor.
    """
    if anchor is not None:
        raise BackendError("an endpoint adds nothing after a LayerNorm; use prompt.placement: embedding.")
