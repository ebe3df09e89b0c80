"""Connections: how many there may be, and how long each may wait for its client.

uvicorn limits how long a connection is idle between two requests, but neither how long a request
takes to come nor how many connections are open. Its protocol for HTTP is extended by that here, and
its server by a way of accepting connections that stops where files run out.
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

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gem_ds.errors import InputError
from gem_ds.serving_config import ServeConfig
from gem_ds.serving_door import BODIES, largest_body
from gem_ds.serving_metrics import Metrics

AT_ONCE = 64  # connections that are accepted in a turn of the loop
EVICTED = 16  # when there are too many, one of so many is closed
PAUSE = 0.1  # seconds without accepting, where there is no room
SWEEP = 5  # of uvicorn's ticks of 0.1 seconds, from one look at all connections to the next
LINGER = 1.0  # seconds more for a client to take the answer to a body that does not come
PROBE = 5.0  # seconds from one try to find out whether a client is still there to the next
OWN_FILES = 64  # that the server may open beside connections
MANY_CHUNKS, SMALL_CHUNK = 1000, 64  # more pieces of a body than so many have so many bytes or more
NO_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
CLOSED, CLOSE_WAIT = 7, 8  # TCP's states in Linux: both sides have ended, the client has
_log = logging.getLogger("uvicorn.error")  # the server's log


class _Parser(h11.Connection):
    """h11's, which refuses a body in very many tiny pieces: each costs as much as a large one."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER)
        self.pieces = self.size = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.pieces = self.size = 0
        elif isinstance(event, h11.Data):
            self.pieces += 1
            self.size += len(event.data)
            if self.pieces > MANY_CHUNKS and self.size < SMALL_CHUNK * self.pieces:
                raise h11.RemoteProtocolError("a body in pieces that are too small")
        return event


class _Transport:
    """A connection's transport, which closes so that the client gets what has been sent: the
    system would take it back if there were something of the client's that nobody has read."""

    def __init__(self, transport: asyncio.Transport, unread: Callable[[], bool]) -> None:
        self._transport, self._unread = transport, unread
        self.lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        if self.lingers or not self._unread() or not self._transport.can_write_eof():
            self._transport.close()
        elif not self._transport.is_closing():
            self.lingers = True
            self._transport.write_eof()
            self._transport.resume_reading()


class Connection(H11Protocol):
    """One connection, which knows for what of its client it waits, and since when."""

    def __init__(self, listener: "Listener") -> None:
        super().__init__(listener.config, listener.server_state, listener.lifespan.state)
        self.listener = listener
        self.conn = _Parser()
        self.ended = False  # the client sends nothing more
        self.probed = -PROBE
        self.since = self.began = time.monotonic()
        self._seen: Any = None

    def awaits(self) -> str | None:
        """What is missing: head, body, idle (another request) or answer (to be taken). None where
        the server is at work."""
        theirs = self.conn.their_state
        if self.transport.lingers:
            return "head" if theirs is h11.ERROR else "body"
        if self.transport.get_write_buffer_size():
            return "answer"
        if theirs is h11.SEND_BODY:
            return "body"
        if theirs is h11.IDLE:
            return "head" if self.cycle is None or self.conn.trailing_data[0] else "idle"
        return None

    def look(self, now: float) -> str | None:
        """`awaits`, noting since when."""
        awaits = self.awaits()
        if (awaits, self.cycle) != self._seen:
            self.since = now
            if self.cycle is not (self._seen and self._seen[1]):
                self.began = now
            self._seen = awaits, self.cycle
        return awaits

    def drop(self, why: str) -> None:
        """Close it at once, whatever is under way."""
        self.listener.metrics.closed.labels(why).inc()
        self.transport.abort()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Transport(transport, self._unread))  # type: ignore[arg-type]

    def _unread(self) -> bool:
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR) and not self.ended

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.listener.lost(self)

    def data_received(self, data: bytes) -> None:
        if self.transport.lingers:
            return
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # what is wrong comes in the middle of an answer
            self.transport.abort()
        reads = self.conn.their_state is h11.SEND_BODY and self.conn.our_state is not h11.DONE
        self.listener.received(self, len(data) if reads else 0)

    def eof_received(self) -> bool:
        """Whether there is something to answer still: a client may only have ended what it sends.

        If it has left, the system says so when something is sent to it. An interim answer, which
        clients pass over, is such a thing.
        """
        self.ended = True
        if self.transport.lingers or not self._answers():
            return False
        self.find_out()
        self.loop.call_later(PAUSE, self.find_out)
        return True

    def _answers(self) -> bool:
        done = self.conn.their_state in (h11.DONE, h11.MUST_CLOSE)
        return done and self.cycle is not None and not self.cycle.response_complete

    def find_out(self) -> None:
        """Close the connection if the client has left for good, which is found out in a while."""
        state = _tcp_state(self.transport.get_extra_info("socket"))
        if state == CLOSED:
            self.transport.abort()
        elif state == CLOSE_WAIT and self._answers() and self.conn.our_state is h11.SEND_RESPONSE:
            now, knows = time.monotonic(), self.conn.their_http_version != b"1.0"
            if knows and now - self.probed > PROBE:
                self.probed = now
                told = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
                self.transport.write(self.conn.send(told))

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.ended and self.cycle.response_complete:
            self.transport.close()

    def shutdown(self) -> None:
        """End, when what is under way has been answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        elif self.transport.get_write_buffer_size():
            self.transport.close()
        else:
            self.transport.abort()


class Listener(uvicorn.Server):
    """uvicorn's server, with limits on connections.

    `ended` is asked whether to end, and `stopping` is called when it is to.
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
            oldest.drop("room")

    def lost(self, connection: Connection) -> None:
        """A connection has ended."""
        self.bodies.pop(connection, None)
        self.metrics.connections.set(self._n_open())

    def _n_open(self) -> int:
        return len(self.server_state.connections) + len(self._joining)

    def _sweep(self) -> None:
        now = time.monotonic()
        for connection in list(self.server_state.connections):
            awaits = connection.look(now)
            if awaits and now - connection.since > self.seconds[awaits]:
                connection.drop(awaits)
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
        waiting = [one for one in self.server_state.connections if one.look(now)]
        waiting.sort(key=lambda one: one.since)
        for connection in waiting[: max(self.most // EVICTED, 1)]:
            connection.drop("room")
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


def _tcp_state(sock: Any) -> int | None:
    if not hasattr(socket, "TCP_INFO"):
        return None
    try:
        return int(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0])
    except OSError:
        return None
