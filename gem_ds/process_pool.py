"""Work spread over processes of this machine. What the work is, the caller says."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, NamedTuple, TypeVar

from gem_ds.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")
Tell = Callable[[int], None]  # how much was done, as it is done
Task = Callable[[Item, Tell], Result]
RETRIES = 2  # of an item whose worker died
FAILURES = 3  # items that fail before no others are begun


@dataclass
class _Worker(Generic[Item]):
    """A process with a pipe: items go in; what was told, `_Done` or what failed comes out."""

    process: Any
    pipe: Connection
    item: Item
    tries: int = 0


class _Done(NamedTuple):
    """An item is done, and what its task returned."""

    result: Any


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    task: Task[Item, Result],
    items: Sequence[Item],
    workers: int,
    describe: Callable[[Item], str],
    tell: Tell,
    warn: Callable[[str], None],
) -> Iterator[tuple[Item, Result]]:
    """Do ``task(item, tell)`` for all items, begun in their order, in `workers` processes.

    Yields items and what the task returned for them, as they are done. What a task tells, `tell` is
    told here. An item whose worker dies is done again by a new one, up to `RETRIES` times, which
    `warn` is told. An item that fails, by an `InputError` or for good, does not stop the others
    until there are `FAILURES` of them; at the end an `InputError` tells of them. Any other
    exception is raised at once. No worker is left.
    """
    context = multiprocessing.get_context("forkserver")  # a fork would copy locks and threads
    context.set_forkserver_preload([str(getattr(task, "func", task).__module__)])
    waiting = deque((item, 1) for item in items)
    idle: list[_Worker[Item]] = []
    busy: dict[Connection, _Worker[Item]] = {}
    failures: list[str] = []

    def start(item: Item) -> _Worker[Item]:
        for tries in range(1, RETRIES + 2):
            try:
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(task, theirs))
                process.start()
                break
            except (EOFError, ConnectionError) as error:  # what forks died: another comes
                if tries > RETRIES:
                    raise InputError(
                        f"the process that starts workers died {tries} times ({error}); if memory "
                        "runs out, run the same command again with fewer --workers"
                    ) from error
                time.sleep(tries)  # a killed process refuses before it is seen to be dead
            except OSError as error:  # too many files or processes
                raise InputError(
                    f"no more than {len(busy)} worker processes could be started ({error}); "
                    "give fewer --workers"
                ) from error
        theirs.close()  # so that the pipe ends with the process
        return _Worker(process, ours, item)

    def begin() -> None:
        while waiting and len(busy) < workers and len(failures) < FAILURES:
            item, tries = waiting.popleft()
            worker = idle.pop() if idle else start(item)
            worker.item, worker.tries = item, tries
            busy[worker.pipe] = worker
            with contextlib.suppress(OSError):  # it died idle: its pipe has ended
                worker.pipe.send(item)

    try:
        begin()
        while busy:
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                try:
                    said = worker.pipe.recv()
                except (EOFError, OSError):
                    del busy[worker.pipe]
                    _bury(worker, waiting, failures, describe, warn)
                    continue
                if isinstance(said, int):
                    tell(said)
                    continue
                idle.append(busy.pop(worker.pipe))
                if isinstance(said, _Done):
                    yield worker.item, said.result
                elif isinstance(said, InputError):
                    failures.append(str(said))
                else:
                    raise RuntimeError(f"{describe(worker.item)}:\n{said}")
            begin()
    finally:
        workers_left = [*idle, *busy.values()]
        for worker in workers_left:
            worker.process.terminate()
        for worker in workers_left:
            worker.process.join()
    if failures:
        told = list(dict.fromkeys(failures))  # a full disk is told once
        more = f"; {len(told) - FAILURES} more failed" if len(told) > FAILURES else ""
        left = f"; {len(waiting)} were not begun" if waiting else ""
        raise InputError("; ".join(told[:FAILURES]) + more + left)


def _bury(
    worker: _Worker[Item],
    waiting: deque[tuple[Item, int]],
    failures: list[str],
    describe: Callable[[Item], str],
    warn: Callable[[str], None],
) -> None:
    """Have the item of a dead worker done again, if that may still help."""
    worker.process.join()
    code = worker.process.exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
    what = f"{describe(worker.item)}: worker process {worker.process.pid} {how}"
    if worker.tries <= RETRIES:
        warn(f"warning: {what}; trying again ({worker.tries} of {RETRIES})")
        waiting.appendleft((worker.item, worker.tries + 1))
    else:
        failures.append(
            f"{what}, as did {RETRIES} before it; if memory runs out, run the same command again "
            "with fewer --workers"
        )


def _serve(task: Task[Any, Any], pipe: Connection) -> None:
    """Do items until the pipe ends: what a worker process runs.

    It ignores Ctrl-C, which the main process handles, and ends when the main process does.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # of the pipe, if the main process has just ended
        while True:
            item = pipe.recv()
            try:
                result = task(item, pipe.send)
            except InputError as error:
                pipe.send(InputError(str(error)))
            except Exception:
                pipe.send(traceback.format_exc())
            else:
                pipe.send(_Done(result))
