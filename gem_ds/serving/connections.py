"""Connections: how many there may be, and how long each may wait for its client.

uvicorn limits how long a connection is idle between two requests, but neither how long a request
takes to come nor how many connections are open. Here its server is extended by that, and by a way
of accepting connections that stops where files run out. A connection itself is in
`protocol`.
"""

import asyncio
import errno
import logging
import resource
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from gem_ds.errors import InputError
from gem_ds.serving.config import ServeConfig
from gem_ds.serving.metrics import Metrics
from gem_ds.serving.middleware import BODIES, largest_body
from gem_ds.serving.protocol import Connection

AT_ONCE = 64  # connections that are accepted in a turn of the loop
EVICTED = 16  # when there are too many, one of so many is closed
PAUSE = 0.1  # seconds without accepting, where there is no room
SWEEP = 5  # of uvicorn's ticks of 0.1 seconds, from one look at all connections to the next
LINGER = 1.0  # seconds more for a client to take the answer to a body that does not come
OWN_FILES = 64  # that the server may open beside connections
NO_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_log = logging.getLogger("uvicorn.error")  # the server's log


class Listener(uvicorn.Server):
    """uvicorn's server, with limits on connections.

    `ended` is asked whether to end, and `launcher` is called when it is to.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        listening: socket.socket,
        limits: ServeConfig,
        metrics: Metrics,
        ended: Callable[[], bool],
        stopping: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self.listening, self.metrics = listening, metrics
        self.ended, self.stopping = ended, stopping
        self.most = room(limits.max_connections)
        self.limits = limits
        self.seconds = {
            "head": limits.head_seconds,
            "body": limits.body_seconds + LINGER,
            "idle": limits.idle_seconds,
            "answer": limits.timeout_seconds + LINGER,
        }
        self.bodies: dict[Connection, int] = {}  # bytes of those that are coming, oldest first
        self.most_bytes = BODIES * largest_body(limits)
        self._joining: set[asyncio.Task[Any]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets=[])
        self.listening.setblocking(False)
        self._accepts(True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, and let what is under way finish."""
        self._accepts(False)
        self.listening.close()
        self.stopping()
        await super().shutdown(sockets=[])

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's, ten times a second; whether to end."""
        if counter % SWEEP == 0:
            self._sweep()
        return self.ended() or await super().on_tick(counter)

    def received(self, connection: Connection, size: int) -> None:
        """Bytes of a body that is coming, 0 where none is. When all have too many, those that have
        been coming longest are closed."""
        if not size:
            self.bodies.pop(connection, None)
            return
        self.bodies[connection] = self.bodies.get(connection, 0) + size
        while sum(self.bodies.values()) > self.most_bytes:
            oldest = next(iter(self.bodies))
            del self.bodies[oldest]
            self._drop(oldest, "room")

    def lost(self, connection: Connection) -> None:
        """A connection has ended."""
        self.bodies.pop(connection, None)
        self.metrics.connections.set(self._n_open())

    def _drop(self, connection: Connection, why: str) -> None:
        self.metrics.closed.labels(why).inc()
        connection.transport.abort()

    def _open(self) -> list[Connection]:
        return [one for one in self.server_state.connections if isinstance(one, Connection)]

    def _n_open(self) -> int:
        return len(self.server_state.connections) + len(self._joining)

    def _sweep(self) -> None:
        now = time.monotonic()
        for connection in self._open():
            awaits = connection.look(now)
            if awaits and now - connection.since > self.seconds[awaits]:
                self._drop(connection, awaits)
            elif awaits == "answer" and now - connection.began > self.limits.timeout_seconds:
                connection.flow.resume_writing()  # a stream writes its last event, and ends
            elif awaits is None:
                connection.find_out()

    def _accepts(self, whether: bool) -> None:
        loop = asyncio.get_running_loop()
        if self.listening.fileno() < 0:
            return
        if whether:
            loop.add_reader(self.listening, self._accept)
        else:
            loop.remove_reader(self.listening)

    def _pause(self) -> None:
        self._accepts(False)
        if not self.should_exit:
            asyncio.get_running_loop().call_later(PAUSE, self._accepts, True)

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(AT_ONCE):
            if self._n_open() >= self.most:
                if not self._evict():
                    self._pause()
                return  # what was closed is gone at the loop's next turn
            try:
                accepted, _ = self.listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in NO_FILES:
                    raise
                _log.error("cannot accept a connection: %s", error)
                self._evict()
                self._pause()
                return
            accepted.setblocking(False)
            task = loop.create_task(
                loop.connect_accepted_socket(lambda: Connection(self), accepted)
            )
            self._joining.add(task)
            task.add_done_callback(self._joined)

    def _joined(self, task: asyncio.Task[Any]) -> None:
        self._joining.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.error("a connection failed: %s", error)
        self.metrics.connections.set(self._n_open())

    def _evict(self) -> bool:
        """Close those that have waited longest for their clients, to make room for others; whether
        there are any."""
        now = time.monotonic()
        waiting = [one for one in self._open() if one.look(now)]
        waiting.sort(key=lambda one: one.since)
        for connection in waiting[: max(self.most // EVICTED, 1)]:
            self._drop(connection, "room")
        return bool(waiting)


def room(most: int) -> int:
    """How many connections there may be, of so many that are wanted, with the files that this
    process may open. Raises `InputError` if that is none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    own = len(list(Path("/dev/fd").iterdir())) + OWN_FILES
    wanted = most + own
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
        soft = max(soft, allowed)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return most
    if soft - own < 1:
        raise InputError(
            f"this process may open {soft} files, and needs {own} beside connections; raise the "
            "limit (ulimit -n)"
        )
    print(
        f"note: {soft - own} connections at most instead of --max-connections {most}, since this "
        f"process may open {soft} files (ulimit -n)",
        file=sys.stderr,
    )
    return soft - own
