"""One connection: HTTP as uvicorn's protocol speaks it, and what that leaves open.

It knows for what of its client it waits and since when, passes over what is left of a body that has
been answered, answers clients that have ended what they send, and refuses bodies in tiny pieces.
How long it may wait is in `connections`.
"""

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

AGAIN = 0.1  # seconds until what has been sent to a client that has left comes back
PROBE = 5.0  # seconds from one try to find out whether a client is still there to the next
MANY_CHUNKS, SMALL_CHUNK = 1000, 64  # more pieces of a body than so many have so many bytes or more
CLOSED, CLOSE_WAIT = 7, 8  # TCP's states in Linux: both sides have ended, the client has


class Keeper(Protocol):
    """Who keeps the connections of a server."""

    config: uvicorn.Config
    server_state: Any
    lifespan: Any

    def received(self, connection: "Connection", size: int) -> None:
        """Bytes of a body that is coming, 0 where none is."""

    def lost(self, connection: "Connection") -> None:
        """A connection has ended."""


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

    transport: Any  # a `_Transport`

    def __init__(self, keeper: Keeper) -> None:
        super().__init__(keeper.config, keeper.server_state, keeper.lifespan.state)
        self.keeper = keeper
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

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Transport(transport, self._unread))  # type: ignore[arg-type]

    def _unread(self) -> bool:
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR) and not self.ended

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.keeper.lost(self)

    def data_received(self, data: bytes) -> None:
        if self.transport.lingers:
            return
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # what is wrong comes in the middle of an answer
            self.transport.abort()
        reads = self.conn.their_state is h11.SEND_BODY and self.conn.our_state is not h11.DONE
        self.keeper.received(self, len(data) if reads else 0)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether there is something to answer still: a client may only have ended what it sends.

        If it has left, the system says so when something is sent to it. An interim answer, which
        clients pass over, is such a thing.
        """
        self.ended = True
        if self.transport.lingers or not self._answers():
            return False
        self.find_out()
        self.loop.call_later(AGAIN, self.find_out)
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


def _tcp_state(sock: Any) -> int | None:
    if not hasattr(socket, "TCP_INFO"):
        return None
    try:
        return int(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0])
    except OSError:
        return None
