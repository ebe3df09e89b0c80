"""What a server counts and times, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS = tuple(2**n for n in range(4, 18))
TEXTS = tuple(2**n for n in range(12))


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "gem_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "gem_request_seconds",
            "From a request's head to the end of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.open = Gauge("gem_open_requests", "Requests at work or waiting.", registry=registry)
        self.connections = Gauge("gem_connections", "Open connections.", registry=registry)
        self.closed = Counter(
            "gem_connections_closed",
            "Connections that the server closed, by what it waited for in vain: head, body, idle "
            "(another request), answer (to be taken), or room (for others).",
            ["waited"],
            registry=registry,
        )
        self.problems = Counter(
            "gem_log_records",
            "Warnings and errors, of which each kind is logged once in ten minutes.",
            ["level"],
            registry=registry,
        )
        self.tokens = Counter(
            "gem_tokens", "Tokens embedded, read and written.", ["kind"], registry=registry
        )
        self.batch_tokens = Histogram(
            "gem_batch_tokens", "Tokens read at once.", ["kind"], buckets=TOKENS, registry=registry
        )
        self.batch_texts = Histogram(
            "gem_batch_texts", "Texts at once.", ["kind"], buckets=TEXTS, registry=registry
        )

    def batch(self, kind: str, texts: int, tokens: int) -> None:
        """Count a batch: ``embed``, ``read`` (of prompts) or ``write``."""
        self.tokens.labels(kind).inc(tokens)
        self.batch_tokens.labels(kind).observe(tokens)
        self.batch_texts.labels(kind).observe(texts)

    def text(self) -> bytes:
        """All of it in Prometheus' format."""
        return generate_latest(self.registry)
