"""The store is what an account has registered. Nobody else's requests can name it: every account has shelves of its
own."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from backends.serve.limits import Limits
from backends.serve.schemas import RowSet
from bbt.backend import Encoded, EncodedPairs
from bbt.spaces.soft import PromptSpace
from bbt.types import Prompts

T = TypeVar("T")


class NotRegisteredError(Exception):
    """An id that this account has not registered, or that has made room for others since."""


class Shelf(Generic[T]):
    """Registered things by id; where there is no more room the least recently used goes."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._things: OrderedDict[str, T] = OrderedDict()

    def put(self, id: str, thing: T) -> None:
        """Register a thing, or register it again."""
        self._things[id] = thing
        self._things.move_to_end(id)
        while len(self._things) > self._room:
            self._things.popitem(last=False)

    def get(self, id: str) -> T:
        """The thing that was registered under the id.

        Raises:
            NotRegisteredError: nothing.
        """
        if id not in self._things:
            raise NotRegisteredError(f"nothing is registered under {id!r}: register it (again).")
        self._things.move_to_end(id)
        return self._things[id]

    def __contains__(self, id: str) -> bool:
        return id in self._things


@dataclass(frozen=True)
class Rows:
    """A registered row set, and what the model made of it."""

    source: RowSet
    """The rows and label words as they were sent."""
    encoded: Encoded
    """The rows as the model has them without an anchor."""
    n_prompt_tokens: int
    """The number of prompt tokens T."""

    @property
    def n_labels(self) -> int:
        """The number of label words K."""
        return len(self.source.label_words)


@dataclass(frozen=True)
class Pairs:
    """Registered rows with their targets, as the model has them."""

    encoded: EncodedPairs
    """The tokenised rows."""
    n_prompt_tokens: int
    """The number of prompt tokens T."""


@dataclass(frozen=True)
class Contexts:
    """Registered rows that are to be written on, as the model has them."""

    parts: tuple[Encoded, ...]
    """The tokenised rows, so many at a time as are written on together."""
    n_prompt_tokens: int
    """The number of prompt tokens T."""

    @property
    def n_examples(self) -> int:
        """The number of rows B."""
        return sum(part.n_examples for part in self.parts)


class Holdings:
    """The shelves of one account, and the ids of tokens whose word embeddings it was told."""

    def __init__(self, limits: Limits) -> None:
        self.rows: Shelf[Rows] = Shelf(limits.kept)
        self.pairs: Shelf[Pairs] = Shelf(limits.kept)
        self.contexts: Shelf[Contexts] = Shelf(limits.kept)
        self.anchored: Shelf[Encoded] = Shelf(limits.kept)
        self.prompts: Shelf[Prompts] = Shelf(limits.kept)
        self.spaces: Shelf[PromptSpace] = Shelf(limits.kept_spaces)
        self.tokens: set[int] = set()
