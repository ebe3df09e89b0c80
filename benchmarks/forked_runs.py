"""launch/train.py as commands of their own that start in a moment, and may be killed at a moment.

Each is forked from a process that has imported everything, which takes seconds. A moment is a
change of the run's folder, just before it is made: a file opened for writing, a piece of one
written, a name given, changed or removed.
"""

import json
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from faults_runs import ROOT
from processes import free_port

# Looking for GPUs loads CUDA's driver else, which does not survive a fork.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["gem_ds.training.trainer"])
SECONDS = 120.0
REMOVE, RENAME, WRITE = ("remove", "rename", "write")


@dataclass(frozen=True)
class Ended:
    """A run that has ended: negative the number of the signal that killed it; what it said."""

    status: int
    text: str


def begin(flags: list[str], log: Path, moments: Path | None = None, kill: int = -1) -> BaseProcess:
    """A run under way. With `moments` they are written into a file; it is killed at the one of a
    number, if any."""
    process = _PROCESSES.Process(target=_be_run, args=(flags, log, moments, kill))
    process.start()
    return process


def finish(flags: list[str], log: Path, moments: Path | None = None, kill: int = -1) -> Ended:
    """A run to its end."""
    log.unlink(missing_ok=True)
    return end(begin(flags, log, moments, kill), log)


def end(process: BaseProcess, log: Path) -> Ended:
    """Wait for a run."""
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode is not None
    return Ended(process.exitcode, log.read_text() if log.exists() else "")


def read(moments: Path) -> list[tuple[str, str]]:
    """The moments of a run: what was changed, in which file or folder."""
    return [tuple(json.loads(line)) for line in moments.read_text().splitlines()]


def _be_run(flags: list[str], log: Path, moments: Path | None, kill: int) -> None:
    os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # The children of a fork server have descriptors of their own, and these are Python's.
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ["MASTER_PORT"] = str(free_port())
    if moments is not None:
        _watch(Path(flags[flags.index("--output") + 1]), moments, kill)
    sys.argv = [str(ROOT / "launch/train.py"), *flags]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _watch(run: Path, moments: Path, kill: int) -> None:
    from gem_ds.checkpoints import writer

    out = moments.open("w", buffering=1)
    n = 0

    def count(kind: str, name: str) -> bool:
        """Whether this is the moment."""
        nonlocal n
        n += 1
        out.write(json.dumps([kind, name]) + "\n")
        return n == kill + 1

    def end() -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # it comes in a moment

    def see(event: str, args: tuple[Any, ...]) -> None:
        kind = _kind(event, args)
        if kind is None:
            return
        path = _path(event, args)
        # Signs of life come by the clock, and TensorBoard's files have one in their name.
        apart = (run / "ranks", run / "tensorboard", run / "tokenizer")
        if run not in path.parents or any(each in (path, *path.parents) for each in apart):
            return
        if count(kind, str(path.relative_to(run))):
            end()

    write: Callable[..., int] = writer._Hashed.write

    def half_write(self: Any, data: Any) -> int:
        if count(WRITE, "a piece"):
            self._file.write(bytes(data)[: len(data) // 2])
            self._file.flush()
            end()
        return write(self, data)

    writer._Hashed.write = half_write  # type: ignore[method-assign]
    sys.addaudithook(see)


def _kind(event: str, args: tuple[Any, ...]) -> str | None:
    if event == "open":
        return WRITE if isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR) else None
    kinds = {"os.rename": RENAME, "os.remove": REMOVE, "os.rmdir": REMOVE, "os.mkdir": WRITE}
    return kinds.get(event)


def _path(event: str, args: tuple[Any, ...]) -> Path:
    """The one that an event is of; in removals of whole folders names are relative to a folder."""
    if not isinstance(args[0], (str, bytes, os.PathLike)):
        return Path()
    name = Path(os.fsdecode(args[0]))
    if event in ("os.remove", "os.rmdir") and args[1] >= 0:
        return Path(os.readlink(f"/proc/self/fd/{args[1]}")) / name
    return name
