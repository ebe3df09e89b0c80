"""Who writes in a folder of shards: one run alone, or several that do units of one plan.

A lock of the file system, which ends with its process. Tasks of a cluster hold it too, so that a
run of this machine does not take the files that they are writing for leftovers.
"""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gem_ds.errors import InputError

LOCK = "lock"


@contextmanager
def claimed(output: Path, alone: bool) -> Iterator[Callable[[], None]]:
    """The folder, ours: alone, or beside others. What it yields lets others in from then on.

    Raises `InputError` if it holds files that are not ours, or if another run writes there that
    this one must not share it with.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / LOCK
    if any(output.iterdir()) and not path.exists():  # ours begin with the lock
        raise InputError(f"{output} holds files that are not ours; give a new --output")
    with path.open("a") as lock:

        def share() -> None:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)

        try:
            fcntl.flock(lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another run is writing {output}; wait for it") from error
        except OSError:
            pass  # a file system without locks: two runs would do the same work twice, no worse
        yield share
