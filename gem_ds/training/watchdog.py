"""Notices that a run no longer moves, says which rank keeps it, and ends it.

Every rank has a thread that writes into ``ranks/rank-N.json`` of the run's folder where the rank is
and that it lives. A rank that has not moved for a while prints its Python stacks, compares the
files and ends: one whose sign of life does not change is stopped or gone, and one that lives and
has come less far than the others keeps them waiting. A stopped process of this machine, which no
signal but SIGKILL ends, is killed.
"""

import faulthandler
import json
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil  # type: ignore[import-untyped]

FOLDER = "ranks"
EXIT_STATUS = 124  # as of timeout(1)
_TICKS = 20  # signs of life in the time after which a rank is missed
_LONGEST_TICK = 10.0
_LOOK = 0.2  # seconds between looks at the others' files
_DONE = "done"  # what a rank says at its end, unless it fails
_MISSED = 3  # ticks without a sign of life: the process does not run


class Watchdog:
    """The signs of life of one rank, and its eye on the others."""

    def __init__(
        self,
        run: Path,
        rank: int,
        world_size: int,
        timeout: float,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        """`timeout` in seconds; `on_tick` is called by the thread now and then."""
        self._folder = run / FOLDER
        self._rank, self._world_size = rank, world_size
        self._timeout = self._patience = timeout
        self._tick = min(timeout / _TICKS, _LONGEST_TICK)
        self._on_tick = on_tick
        self._moves, self._doing = 0, "starting"
        self._moved = math.inf  # not before it moves first: loading a model may take long
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._started = psutil.Process().create_time()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sign()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()
        lines = str(error).strip().splitlines() if error is not None else []
        self._sign(ended=lines[0] if lines else getattr(kind, "__name__", _DONE))

    def move(self, doing: str, patience: float = 0.0) -> None:
        """The rank goes on, to do this. All ranks say the same in the same order.

        `patience` in seconds is for what may take longer than the timeout.
        """
        self._doing = doing
        self._patience = max(patience, self._timeout)
        self._moved = time.monotonic()
        self._moves += 1

    def missing(self, awaited: Callable[[], Collection[int]] | None = None) -> str:
        """Which ranks no longer live, where they were last; nothing if all do.

        Returns at once if one of this machine is gone, else within some signs of life. `awaited`
        tells which ranks count, all without it; where none is awaited any more it returns too.
        """
        until = time.monotonic() + (_MISSED + 1) * self._tick
        before = self._others()
        while True:
            others = self._others()
            if awaited is not None:
                wanted = awaited()
                before, others = (
                    {n: each for n, each in known.items() if n in wanted}
                    for known in (before, others)
                )
                if not wanted:
                    return ""
            gone = [each for each in others.values() if _is_gone(each)]
            if not gone and time.monotonic() > until:
                still = [n for n in before if others.get(n, {}).get("signs") == before[n]["signs"]]
                gone = [others.get(n, before[n]) for n in still]
                return _described(gone)
            if gone:
                return _described(gone)
            time.sleep(min(self._tick / 2, _LOOK))

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._end.wait(self._tick):
            now = time.monotonic()
            if now - before > self._timeout / 2:  # suspended, with all others perhaps
                self._moved = max(self._moved, now)
            before = now
            self._sign()
            with suppress(OSError):
                self._on_tick()
            # Comparing takes some ticks: it begins so early that the timeout is kept.
            if now - self._moved > self._patience - (_MISSED + 2) * self._tick:
                moves, others = self._moves, self._compared()
                if moves == self._moves:
                    self._bark(others)
                before = time.monotonic()

    def _bark(self, others: list[dict[str, Any]]) -> None:
        """Say what is known, and end this process."""
        doing, seconds = self._doing, time.monotonic() - self._moved
        head = f"rank {self._rank} has not moved for {seconds:.0f} s, {doing}; its stacks:"
        with (self._folder / f"rank-{self._rank:05d}.stacks.txt").open("w") as file:
            for out in (sys.stderr, file):
                print(head, file=out, flush=True)
                faulthandler.dump_traceback(out)
        still = [each for each in others if each["still"]]
        if not any(each["rank"] < self._rank and not each["still"] for each in others):
            print(
                f"error [rank {self._rank}]: {self._verdict(others)}", file=sys.stderr, flush=True
            )
        for each in still:
            if each["host"] == socket.gethostname() and _same_process(each):
                with suppress(OSError):
                    os.kill(each["pid"], signal.SIGKILL)
        os._exit(EXIT_STATUS)

    def _verdict(self, others: list[dict[str, Any]]) -> str:
        still = [each for each in others if each["still"]]
        if still:
            return f"{_described(still)}; the run ends, continue with --resume auto"
        mine = {"rank": self._rank, "moves": self._moves, "doing": self._doing}
        here = {"host": socket.gethostname(), "pid": os.getpid()}
        everyone = [mine | here, *others]
        least = min(each["moves"] for each in everyone)
        behind = [each for each in everyone if each["moves"] == least]
        if len(behind) == len(everyone):
            return (
                f"no rank has moved for {self._patience:.0f} s, all are {self._doing}; see their "
                f"stacks in {self._folder}; a step that takes so long needs more --timeout-minutes"
            )
        names = ", ".join(_named(each) for each in behind[:8])
        return (
            f"{names} hangs, {behind[0]['doing']}, and the others wait; see its stacks in "
            f"{self._folder}; the run ends, continue with --resume auto"
        )

    def _compared(self) -> list[dict[str, Any]]:
        """The other ranks, and whether each gave no sign of life for some ticks."""
        before = self._others()
        for _ in range(_MISSED):
            time.sleep(self._tick)
            self._sign()
        after = self._others()
        return [
            {**each, "still": not each["ended"] and each["signs"] == before[number]["signs"]}
            for number, each in after.items()
            if number in before
        ]

    def _others(self) -> dict[int, dict[str, Any]]:
        others = {}
        for number in range(self._world_size):
            if number != self._rank:
                with suppress(OSError, ValueError):
                    others[number] = json.loads(self._path(number).read_text())
        return others

    def _sign(self, ended: str = "") -> None:
        """Write this rank's file. One that cannot be written stops nothing."""
        content = {
            "rank": self._rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": self._started,
            "doing": self._doing,
            "moves": self._moves,
            "signs": time.time(),
            "ended": ended,
        }
        path = self._path(self._rank)
        with suppress(OSError):
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(content) + "\n")
            os.replace(temporary, path)

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank-{rank:05d}.json"


def _is_gone(each: dict[str, Any]) -> bool:
    """Whether a rank has failed, or is of this machine and its process is dead."""
    here = each["host"] == socket.gethostname()
    return each["ended"] not in ("", _DONE) or (here and not _same_process(each))


def _same_process(each: dict[str, Any]) -> bool:
    """Whether a rank's process is there, and is no later one with its number."""
    try:
        process = psutil.Process(each["pid"])
        same = abs(process.create_time() - each["started"]) < 1
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _named(each: dict[str, Any]) -> str:
    return f"rank {each['rank']} (process {each['pid']} on {each['host']})"


def _described(gone: list[dict[str, Any]]) -> str:
    """What is to say of ranks that no longer live."""
    if not gone:
        return ""
    ended = [each for each in gone if each["ended"] not in ("", _DONE)]
    first = (ended or gone)[0]
    more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
    if ended:
        return f"{_named(first)}{more} ended {first['doing']}: {first['ended']}"
    return f"{_named(first)}{more} {_condition(first)}, last {first['doing']}"


def _condition(each: dict[str, Any]) -> str:
    """What has become of a rank that gives no sign of life."""
    if each["host"] == socket.gethostname():
        if not _same_process(each):
            return "is dead: killed, by the kernel perhaps for its memory"
        if psutil.Process(each["pid"]).status() == psutil.STATUS_STOPPED:
            return "is stopped (SIGSTOP)"
    return "gives no sign of life: stopped, killed or without its machine"
