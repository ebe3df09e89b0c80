"""What a server counts and times, for Prometheus, and a log that does not grow with what clients
do: each kind of record at most once in a while."""

import logging
import time

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


REPEAT_SECONDS = 600.0
LOGGERS = ("uvicorn.error", "asyncio")
MOST = 1000  # kinds that are remembered


class Once(logging.Filter):
    """Counts all records, and lets each kind through at most once in `REPEAT_SECONDS`.

    A kind is a message without its arguments, and where its exception comes from.
    """

    def __init__(self, metrics: Metrics) -> None:
        super().__init__()
        self.metrics = metrics
        self.last: dict[object, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be logged."""
        self.metrics.problems.labels(record.levelname.lower()).inc()
        kind = record.name, record.levelno, str(record.msg)[:80], _origin(record)
        now = time.monotonic()
        if now - self.last.get(kind, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return False
        if len(self.last) >= MOST:
            self.last.clear()
        self.last[kind] = now
        record.msg = f"{record.msg} (logged at most once in {REPEAT_SECONDS / 60:g} minutes)"
        return True


def limit_log(metrics: Metrics) -> None:
    """Filter the server's log, and that of its loop."""
    once = Once(metrics)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.filters = [one for one in logger.filters if not isinstance(one, Once)]
        logger.addFilter(once)


def _origin(record: logging.LogRecord) -> object:
    error = record.exc_info[1] if record.exc_info else None
    trace = error.__traceback__ if error else None
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return type(error), trace and (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
