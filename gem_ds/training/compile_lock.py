"""Parts that DeepSpeed compiles on first use, in a cache that all processes of a user share.

The process that compiles holds a file ``lock``. One that is killed leaves it, and all later ones
wait for its removal without a word: see torch.utils.cpp_extension.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.utils import cpp_extension


@contextmanager
def warning_of_locks(seconds: float = 10.0) -> Iterator[None]:
    """Within it, name the locks that were there before and still are after some seconds."""
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
    locks = [lock for lock in Path(root).rglob("lock") if lock.is_file()]

    def warn() -> None:
        for lock in filter(Path.exists, locks):
            age = time.time() - lock.stat().st_mtime
            print(
                f"WARNING: waiting for a process that compiles a part of DeepSpeed: {lock} is "
                f"{age:.0f} s old; if no process compiles (one was killed), remove that file",
                flush=True,
            )

    timer = threading.Timer(seconds, warn)
    timer.daemon = True
    if locks and os.environ.get("LOCAL_RANK") == "0":  # one of a machine tells
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
