"""Being asked to stop: SIGTERM and SIGUSR1 end a run after its step, with a checkpoint.

SLURM sends one before a time limit or a preemption. A rank that stopped by itself would leave the
others waiting, so the handler only remembers, and the ranks agree in a collective of every step.
"""

import atexit
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.made = False

    def remember(self, number: int, frame: FrameType | None) -> None:
        """The handler of a signal."""
        self.made = True


def listen() -> StopRequest:
    """From now on SIGUSR1 is remembered.

    Until the process has ended: a job whose last step is done, or whose first has not begun, is
    not to fail of a signal that comes just then.
    """
    request = StopRequest()
    signal.signal(signal.SIGUSR1, request.remember)
    # The interpreter's own end takes handlers away, but not this.
    atexit.register(signal.signal, signal.SIGUSR1, signal.SIG_IGN)
    return request


@contextmanager
def remembering_sigterm(request: StopRequest) -> Iterator[None]:
    """Within it SIGTERM is remembered too; elsewhere it ends the process, as launchers expect of
    one that waits for a rank which has failed."""
    before = signal.signal(signal.SIGTERM, request.remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
