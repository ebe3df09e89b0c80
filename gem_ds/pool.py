"""Work spread over processes, results in order. What the work is, the caller says."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from gem_ds.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 3  # items a worker may be ahead of the consumer, which bounds memory


def ordered(
    task: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    describe: Callable[[Item], str],
) -> Iterator[tuple[Item, Result]]:
    """Each item with ``task(item)``, in the order of the items, from `workers` processes.

    One worker is this process itself. What a task raises is raised here. Raises `InputError` if a
    worker is killed, naming with `describe` the first item that was under way.
    """
    if workers == 1:
        yield from ((item, task(item)) for item in items)
        return
    context = multiprocessing.get_context("forkserver")  # a fork would copy locks and threads
    context.set_forkserver_preload([task_module(task)])
    source = iter(items)
    pending: deque[tuple[Item, Future[Result]]] = deque()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        while True:
            for item in islice(source, workers * AHEAD - len(pending)):
                pending.append((item, pool.submit(task, item)))
            if not pending:
                return
            item, future = pending[0]
            result = future.result()
            pending.popleft()
            yield item, result
    except BrokenProcessPool as error:
        where = f" around {describe(pending[0][0])}" if pending else ""
        raise InputError(
            f"a worker process was killed{where}, by the system if memory ran out; "
            "run the same command again, with fewer workers if it recurs"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def task_module(task: Callable[..., object]) -> str:
    """The module to load before workers are forked; of a partial, that of its function."""
    return str(getattr(task, "func", task).__module__)


def _start_worker() -> None:
    """Leave Ctrl-C to the main process, and end with it whatever way it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
