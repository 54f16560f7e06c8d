"""What a client that holds a model's words, and not the model, can do by itself."""

from collections.abc import Sequence

from backends.local.encoding import RowTokenizer
from backends.openai.words import Words
from bbt.errors import BackendError
from bbt.types import Prompts


class VocabularyClient:
    """The part of `Backend` and `HardBackend` that needs no endpoint."""

    def __init__(self, words: Words, max_length: int) -> None:
        self._words = words
        self._tokenizer = RowTokenizer(words.tokenizer, max_length, causal=True)

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of a text as it stands after other words."""
        return self._tokenizer.text_ids(text)

    def prompt_text(self, token_ids: Sequence[int]) -> str:
        """The text of a hard prompt's tokens."""
        return self._tokenizer.text(token_ids)

    def embed_text(self, text: str) -> Prompts:
        """Word embeddings of a text: (1, T, H)."""
        return self.embed_ids(self.prompt_ids(text))

    def embed_ids(self, token_ids: Sequence[int]) -> Prompts:
        """Word embeddings of token ids: (1, T, H)."""
        return self._words.embedded(token_ids)

    def ordinary_ids(self) -> list[int]:
        """Ids of all tokens that are not special."""
        return self._words.ordinary_ids()

    def anchor(self, prompt: Prompts | None) -> None:
        """Only None: such an endpoint takes what goes into the model, and nothing in between."""
        if prompt is not None:
            raise BackendError("an endpoint adds nothing after a LayerNorm; use prompt.placement: embedding.")
