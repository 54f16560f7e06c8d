"""The ledger counts what a run has cost, each kind of cost by itself."""

import logging
from dataclasses import asdict, dataclass

from bbt.backend import Encoded
from bbt.scoring.meter import Meter

LOG = logging.getLogger(__name__)


@dataclass
class Ledger:
    """What a run has cost so far. A query is one candidate scored on a whole split."""

    train_queries: int = 0
    """Candidates scored on all train rows; the budget is counted in these."""
    dev_queries: int = 0
    """Prompts scored on all dev rows."""
    examples: int = 0
    """Rows that went through the model, each as often as it did."""
    truncated: int = 0
    """Rows that were longer than the model, counted when they are encoded."""
    bytes_up: int = 0
    """Bytes sent to score prompts; without a wire, the size of the arrays handed to the backend."""
    bytes_down: int = 0
    """Bytes received for them; without a wire, the size of the label scores returned."""
    tokens_up: int = 0
    """Tokens that an endpoint bills, or would bill, for what it is sent: the rows' tokens, prompt tokens included."""
    tokens_down: int = 0
    """Tokens that an endpoint bills, or would bill, for what it generates."""
    backend_seconds: float = 0.0
    """Seconds of `seconds` in which the backend computed."""
    optimizer_seconds: float = 0.0
    """Seconds in which the optimizer proposed candidates and took losses in; `seconds` does not hold them."""
    seconds: float = 0.0
    """Seconds spent on scoring train and dev prompts."""

    def __post_init__(self) -> None:
        self.meter = Meter()

    def part(self) -> "Ledger":
        """A ledger for a part of this run that is under way beside others; `add` it when it is done."""
        part = Ledger()
        part.meter = self.meter
        return part

    def restore(self, snapshot: dict[str, float]) -> None:
        """Take over the counts of an earlier snapshot."""
        self.__dict__.update(snapshot)

    def add(self, other: "Ledger") -> None:
        """Add what a part of this run has cost."""
        for name, count in other.snapshot().items():
            setattr(self, name, getattr(self, name) + count)

    def count_cut(self, encoded: Encoded) -> None:
        """Count those of the rows to train on that were cut when they were encoded, and tell the user of them."""
        self.truncated += encoded.n_truncated
        warn_of_cut_rows(encoded.n_truncated, encoded.n_examples)

    def snapshot(self) -> dict[str, float]:
        """The counts as plain numbers."""
        return asdict(self)


def warn_of_cut_rows(n_cut: int, n_rows: int) -> None:
    """Tell the user how many of these rows were longer than the model, if any were."""
    if n_cut:
        LOG.warning("%d of %d rows were longer than the model: their text was cut.", n_cut, n_rows)
