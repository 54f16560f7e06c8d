"""The metrics are what Prometheus may scrape: sums over all accounts, never one account's own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        ProcessCollector(registry=own)
        self.requests = Counter("bbt_requests", "Requests answered.", ("route", "status"), registry=own)
        self.seconds = Histogram("bbt_request_seconds", "From the head of a request on.", ("route",), registry=own)
        self.bytes_up = Counter("bbt_body_bytes_up", "Bytes of request bodies.", registry=own)
        self.sequences = Counter("bbt_sequences", "Rows times candidates scored, and rows written.", registry=own)
        self.populations = Counter("bbt_populations", "Runs through the model, joined requests as one.", registry=own)
        self.joined = Counter("bbt_scoring_requests", "Requests in those runs.", registry=own)
        self.model_seconds = Counter("bbt_model_seconds", "Seconds the model has computed scores.", registry=own)
        self.new_tokens = Counter("bbt_new_tokens", "Tokens of generated texts.", registry=own)
        self.waiting = Gauge("bbt_waiting_requests", "Requests waiting for the model.", registry=own)

    def scored(self, requests: int, sequences: int, seconds: float) -> None:
        """Count one population that has gone through the model."""
        self.populations.inc()
        self.joined.inc(requests)
        self.sequences.inc(sequences)
        self.model_seconds.inc(seconds)

    def text(self) -> bytes:
        """The metrics page, in Prometheus' format."""
        return generate_latest(self._registry)
