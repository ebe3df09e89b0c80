"""Being asked to stop: SIGTERM and SIGUSR1 end a run after its step, with a checkpoint.

SLURM sends one before a time limit or a preemption. A rank that stopped by itself would leave the
others waiting, so the handler only remembers, and the ranks agree in a collective of every step.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.made = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within it the signals are remembered instead of ending the process."""
    request = StopRequest()

    def remember(number: int, frame: FrameType | None) -> None:
        request.made = True

    before = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
