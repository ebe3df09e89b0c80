"""Workers that fail, that die, and that lose their main process. Items are numbers."""

import functools
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import pytest
from processes import living, until

from gem_ds import process_pool
from gem_ds.errors import InputError
from gem_ds.process_pool import FAILURES, RETRIES, Tell


def note(item: int, tell: Tell, folder: Path) -> None:
    """Leave a mark of having been done."""
    tell(10)
    with (folder / str(item)).open("a") as file:
        file.write("x")


def die_once(item: int, tell: Tell, folder: Path) -> None:
    """Items under 3 kill their worker the first time."""
    mark = folder / f"died-{item}"
    if item < 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    note(item, tell, folder)


def die_at_three(item: int, tell: Tell, folder: Path) -> None:
    if item == 3:
        os.abort()
    note(item, tell, folder)


def fail_from_five(item: int, tell: Tell, folder: Path) -> None:
    if item >= 5:
        raise InputError(f"item {item} is wrong")
    note(item, tell, folder)


def fail_alike(item: int, tell: Tell) -> None:
    raise InputError("the disk is full")


def divide(item: int, tell: Tell, folder: Path) -> None:
    """Item 0 fails while another is at work."""
    if item:
        sleep(item, tell, folder)
    until(lambda: any(path.read_text() for path in folder.iterdir()), 20)
    tell(1 // item)


def kill_the_idle(item: int, tell: Tell, folder: Path) -> None:
    """Item 0 says who does it. Item 1 kills that worker, idle by then, and then its own."""
    if item == 0:
        (folder / "pid").write_text(str(os.getpid()))
    elif not (folder / "killed").exists():
        time.sleep(0.3)
        (folder / "killed").touch()
        os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    note(item, tell, folder)


def sleep(item: int, tell: Tell, folder: Path) -> None:
    (folder / str(item)).write_text(str(os.getpid()))
    time.sleep(60)


class Heard:
    """What a pool told."""

    def __init__(self) -> None:
        self.amount = 0
        self.warnings: list[str] = []

    def tell(self, amount: int) -> None:
        self.amount += amount

    def run(self, task: Callable, items: list[int], workers: int = 2) -> list[int]:
        say = "item {}".format
        done = process_pool.run(task, items, workers, say, self.tell, self.warnings.append)
        return [item for item, _ in done]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.mark.parametrize("workers", [1, 3, 9])
def test_each_item_is_done_once_and_progress_is_told(
    heard: Heard, tmp_path: Path, workers: int
) -> None:
    items = [5, 1, 4, 2, 3]
    assert sorted(heard.run(functools.partial(note, folder=tmp_path), items, workers)) == [
        *range(1, 6)
    ]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        "12345", "x"
    )
    assert heard.amount == 50
    assert heard.warnings == []
    assert heard.run(note, []) == []


def test_a_killed_worker_is_named_and_its_item_done_again(heard: Heard, tmp_path: Path) -> None:
    done = heard.run(functools.partial(die_once, folder=tmp_path), [0, 1, 2, 3, 4])
    assert sorted(done) == [0, 1, 2, 3, 4]
    assert all((tmp_path / str(item)).read_text() == "x" for item in range(5))
    pattern = (
        r"warning: item (\d): worker process \d+ was killed by SIGKILL; trying again \(1 of 2\)"
    )
    told = [re.fullmatch(pattern, warning) for warning in heard.warnings]
    assert sorted(match[1] for match in told if match) == ["0", "1", "2"]


def test_an_item_that_always_kills_its_worker_is_given_up(heard: Heard, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        heard.run(functools.partial(die_at_three, folder=tmp_path), list(range(8)))
    message = r"item 3: worker process \d+ was killed by SIGABRT, as did 2 before it; if memory .*"
    assert re.fullmatch(message, str(caught.value))
    assert len(heard.warnings) == RETRIES
    assert {path.name for path in tmp_path.iterdir()} == set("0124567")


def test_failures_are_collected_and_bounded(heard: Heard, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        heard.run(functools.partial(fail_from_five, folder=tmp_path), list(range(20)), 2)
    *told, left = str(caught.value).split("; ")
    # The first three to fail, of the four that may have been begun by then.
    assert len(set(told[:FAILURES])) == FAILURES
    assert set(told[:FAILURES]) <= {f"item {i} is wrong" for i in range(5, 5 + FAILURES + 1)}
    assert re.fullmatch(r"1[12] were not begun", left)
    assert {path.name for path in tmp_path.iterdir()} == set("01234")
    with pytest.raises(InputError, match=r"^the disk is full; \d were not begun$"):
        heard.run(fail_alike, list(range(10)), 3)
    with pytest.raises(InputError, match=r"^(item \d+ is wrong; ){3}3 more failed"):
        heard.run(functools.partial(fail_from_five, folder=tmp_path), [5, 6, 7, 8, 9, 10], 6)


def test_another_exception_keeps_its_traceback(heard: Heard, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)^item 0:\nTraceback.*1 // item.*ZeroDivision"):
        heard.run(functools.partial(divide, folder=tmp_path), [1, 0, 2])
    assert living_of(tmp_path) == []


def test_a_worker_that_dies_idle_is_replaced(heard: Heard, tmp_path: Path) -> None:
    assert sorted(heard.run(functools.partial(kill_the_idle, folder=tmp_path), [0, 1])) == [0, 1]
    assert all((tmp_path / str(item)).read_text() == "x" for item in (0, 1))


def test_workers_start_though_what_forks_them_is_killed(heard: Heard, tmp_path: Path) -> None:
    forkserver._forkserver.ensure_running()
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    os.kill(pid, signal.SIGSTOP)
    killer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))  # as it is asked for a worker
    killer.start()
    assert sorted(heard.run(functools.partial(note, folder=tmp_path), [1, 2])) == [1, 2]
    killer.join()


def test_too_many_workers(heard: Heard, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 12, hard))
    try:
        with pytest.raises(InputError, match=r"no more than \d+ worker .*give fewer --workers"):
            heard.run(functools.partial(sleep, folder=tmp_path), list(range(50)), 50)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert living_of(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "to_group"),
    [(signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGINT, True)],
)
def test_workers_end_with_the_main_process(
    tmp_path: Path, number: signal.Signals, to_group: bool
) -> None:
    """Killed, ended, or interrupted by Ctrl-C, which goes to the whole group."""
    code = f"import test_process_pool; test_process_pool.sleepers({str(tmp_path)!r})"
    main = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background commands ignore Ctrl-C, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert until(lambda: len([p for p in tmp_path.iterdir() if p.read_text()]) == 3, 20)
    began = time.monotonic()
    (os.killpg if to_group else os.kill)(main.pid, number)
    _, errors = main.communicate(timeout=60)
    assert until(lambda: not living_of(tmp_path) and not living(main.pid), 2)
    assert time.monotonic() - began < 10
    assert "ForkServer" not in errors  # a worker that ends says nothing
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)


def sleepers(folder: str) -> None:
    """Run by the test above."""
    Heard().run(functools.partial(sleep, folder=Path(folder)), list(range(4)), 3)


def living_of(folder: Path) -> list[int]:
    """The processes alive of those that wrote their numbers there."""
    pids = [int(text) for path in folder.iterdir() if (text := path.read_text())]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]
