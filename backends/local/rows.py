"""`LocalRows`: one split, tokenised."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from backends.local.deep import Shared
from backends.local.encoding import TokenRow


@dataclass
class LocalRows:
    """One split, tokenised; `n_prefix` tokens at the left are the same in every row of a causal LM."""

    rows: list[TokenRow]
    label_ids: Tensor
    n_prompt_tokens: int
    n_prefix: int
    anchor: Tensor | None = None
    """(1, T, H) word embeddings that stand in the prompt's places; a prompt's difference from them comes later."""
    shared: Shared | None = None

    def __post_init__(self) -> None:
        self.lengths = [len(row.ids) for row in self.rows]
        self.reads = [row.read for row in self.rows]
        self.tokens = np.concatenate([row.ids for row in self.rows])
        self.starts = np.cumsum([0, *self.lengths])

    @cached_property
    def ids(self) -> list[Tensor]:
        """Each row's token ids, on the device."""
        return [torch.tensor(row.ids, device=self.label_ids.device) for row in self.rows]

    @property
    def n_examples(self) -> int:
        """B."""
        return len(self.rows)

    @property
    def n_tokens(self) -> int:
        """Tokens of all rows, prompt tokens included."""
        return len(self.tokens)

    @property
    def n_truncated(self) -> int:
        """Rows whose text was cut."""
        return sum(row.truncated for row in self.rows)
