"""A run's money: what it has spent, and how far that is from its ceilings."""

from collections.abc import Sequence
from dataclasses import dataclass

from bbt.backend import Encoded
from bbt.errors import ConfigError
from bbt.scoring.ledger import Ledger
from bbt.settings import PriceConfig


@dataclass(frozen=True)
class Spending:
    """What a search may still cost."""

    price: PriceConfig
    ledger: Ledger
    ceilings: tuple[float, ...]
    """Every extension of a run adds one; the last ends it."""
    train: Encoded
    """The rows of a train query."""
    judged: Sequence[Encoded]
    """The rows of a dev query."""
    tests: Sequence[tuple[int, Encoded]]
    """How many prompts are tested in the end, and on which rows."""
    population_size: int
    """Train queries of a generation."""
    n_judged: int
    """Dev queries of the check that follows it."""

    def reached(self) -> int:
        """How many of the ceilings the run would exceed with another generation, its check and the test."""
        spent = self.price.of(self.ledger.tokens_up, self.ledger.tokens_down)
        total = spent + self.cost(self.population_size, self.n_judged)
        return sum(total > ceiling for ceiling in self.ceilings)

    def cost(self, n_train: int, n_dev: int) -> float:
        """Of so many queries and the test: by the rows' tokens, or by what was billed so far, if that is more."""
        parts = [(n_train, self.train), *((n_dev, rows) for rows in self.judged), *self.tests]
        examples = sum(n * rows.n_examples for n, rows in parts)
        counted = self.price.of(sum(n * rows.n_tokens for n, rows in parts), examples)
        if not self.ledger.examples:
            return counted
        billed = self.price.of(self.ledger.tokens_up, self.ledger.tokens_down) / self.ledger.examples
        return max(counted, billed * examples)

    def check(self, n_screened: int) -> None:
        """Refuse a ceiling under which nothing could be found.

        Raises:
            ConfigError: it does not pay for the first generation; says what would.
        """
        least = self.cost(n_screened + self.population_size, 2 + self.n_judged)
        if least > self.ceilings[0]:
            raise ConfigError(
                f"price.ceiling {self.ceilings[0]:g} does not pay for one generation and the test: {least:.4g} would. "
                "Raise it, or lower evaluation.rows."
            )
