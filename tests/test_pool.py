import functools
import os
import signal
import time

import pytest

from gem_ds import pool
from gem_ds.errors import InputError


def slow_square(n: int) -> int:
    time.sleep(0.02 * (n % 3 == 0))
    return n * n


def die_at_seven(n: int) -> int:
    if n == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order(workers: int) -> None:
    results = list(pool.ordered(slow_square, range(20), workers, str))
    assert results == [(n, n * n) for n in range(20)]


def test_work_is_not_taken_far_ahead() -> None:
    taken = []
    items = (taken.append(n) or n for n in range(1000))
    results = pool.ordered(slow_square, items, 2, str)
    next(results)
    assert len(taken) <= 2 * pool.AHEAD
    results.close()


def test_a_killed_worker_is_named() -> None:
    with pytest.raises(InputError, match=r"worker process was killed around item [1-7]\b"):
        list(pool.ordered(die_at_seven, range(1, 50), 2, "item {}".format))


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_task_raises_is_raised_here(workers: int) -> None:
    task = functools.partial(int, base=10)
    with pytest.raises(ValueError, match="invalid literal"):
        list(pool.ordered(task, ["1", "x"], workers, str))
