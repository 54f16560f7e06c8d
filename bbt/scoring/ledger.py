"""The ledger: what a run has cost, each count by itself."""

from dataclasses import asdict, dataclass


@dataclass
class Ledger:
    """What a run has cost.

    A query is one candidate on the whole training set; dev queries are counted apart. `examples` are rows
    scored. `bytes_up` and `bytes_down` are what crossed the wire for that, or where there is none the prompts handed
    to the backend and the label scores returned. `seconds` is the time spent scoring train and dev prompts,
    `backend_seconds` the backend's part of it; the optimizer's stands apart. `tokens_up` and `tokens_down` are what an
    endpoint bills: the rows' tokens, prompt included, and those it generates. `truncated` rows were longer than the
    model, counted when they are encoded.
    """

    train_queries: int = 0
    dev_queries: int = 0
    examples: int = 0
    truncated: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    tokens_up: int = 0
    tokens_down: int = 0
    backend_seconds: float = 0.0
    optimizer_seconds: float = 0.0
    seconds: float = 0.0

    def restore(self, snapshot: dict[str, float]) -> None:
        """Take the counts of an earlier snapshot."""
        self.__dict__.update(snapshot)

    def add(self, other: "Ledger") -> None:
        """Take over what a part of this run has cost."""
        for name, count in other.snapshot().items():
            setattr(self, name, getattr(self, name) + count)

    def snapshot(self) -> dict[str, float]:
        """The counts as plain numbers."""
        return asdict(self)
