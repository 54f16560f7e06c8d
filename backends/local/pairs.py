"""`TokenPairs` are contexts with their targets, tokenised; a client of an endpoint has them without PyTorch."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from backends.local.encoding import TokenPair


@dataclass
class TokenPairs:
    """One split of contexts with their targets, tokenised."""

    pairs: list[TokenPair]
    """The pairs (B,), each a context with its target."""
    n_prompt_tokens: int
    """The number of prompt tokens T."""

    @property
    def n_examples(self) -> int:
        """The number of rows B."""
        return len(self.pairs)

    @property
    def n_tokens(self) -> int:
        """The number of tokens of all contexts and targets, prompt tokens included."""
        return sum(len(pair.context.ids) + len(pair.target) for pair in self.pairs)

    @property
    def n_truncated(self) -> int:
        """The number of rows whose text was cut."""
        return sum(pair.context.truncated for pair in self.pairs)

    @cached_property
    def n_target_tokens(self) -> NDArray[np.int64]:
        """The number of tokens (B,) of each target."""
        return np.array([len(pair.target) for pair in self.pairs], dtype=np.int64)
