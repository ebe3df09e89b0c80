"""A log that does not grow with what clients do: each kind of record at most once in a while."""

import logging
import time

from gem_ds.serving.metrics import Metrics

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


def install(metrics: Metrics) -> None:
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
