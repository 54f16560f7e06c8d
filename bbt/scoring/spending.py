"""A search's money: what it has spent, and whether its ceilings pay for another generation."""

from collections.abc import Sequence
from dataclasses import dataclass

from bbt.backend import Encoded
from bbt.errors import ConfigError
from bbt.scoring.ledger import Ledger
from bbt.settings import PriceConfig


@dataclass(frozen=True)
class Spending:
    """The prices and the ceilings of a search, and the queries that it has still to pay for."""

    price: PriceConfig
    """What tokens cost, in the config's currency."""
    ledger: Ledger
    """The ledger that counts the tokens spent so far."""
    ceilings: tuple[float, ...]
    """The most money that the run may cost: its first ceiling, then one for every extension. The last ends the
    search."""
    train: Encoded
    """The rows on which a train query is made."""
    judged: Sequence[Encoded]
    """The sets of rows on which a dev query is made."""
    tests: Sequence[tuple[int, Encoded]]
    """For each set of rows that is tested in the end, how many prompts are tested, and the rows."""
    population_size: int
    """The train queries of a generation."""
    n_judged: int
    """The dev queries of the check that follows a generation."""

    def reached(self) -> int:
        """The number of ceilings that the run would exceed with another generation, its check and the test."""
        spent = self.price.of(self.ledger.tokens_up, self.ledger.tokens_down)
        total = spent + self.cost(self.population_size, self.n_judged)
        return sum(total > ceiling for ceiling in self.ceilings)

    def cost(self, n_train: int, n_dev: int) -> float:
        """What so many train and dev queries and the test cost: by the tokens of the rows, or by what was billed so far
        for a row, if that is more."""
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
