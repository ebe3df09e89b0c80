"""What requests have the model do, and their end of it: tickets, on which answers come."""

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gem_ds.decoding import Sampling
from gem_ds.encode import Vectors
from gem_ds.serving_schemas import ApiError
from gem_ds.tokenization import Ids


class Piece(NamedTuple):
    """What has been written of a text since the last piece."""

    choice: int  # which of the request's texts
    text: str
    tokens: int  # written in all so far
    reason: str | None  # why it ended, if it did: ``stop`` or ``length``


class Ticket:
    """A request's end of what the model does for it: events to wait for, and a way to give up.

    Pieces of one text that nobody has fetched become one, so that whoever reads slowly holds no
    more than the texts.
    """

    def __init__(self, client: str = "") -> None:
        """`client` is whose turn it is when others wait too."""
        self.client = client
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._events: dict[Any, Any] = {}  # by what is replaced by the next of its kind
        self._came = asyncio.Event()

    def push(self, event: Any) -> None:
        """Hand an event over, from the model's thread: a `Piece`, an `ApiError` or vectors."""
        if self.cancelled:
            return
        with self._lock:
            first = not self._events
            if isinstance(event, Piece) and event.choice in self._events:
                text = self._events[event.choice].text + event.text
                event = event._replace(text=text)
            key = event.choice if isinstance(event, Piece) else type(event)
            self._events[key] = event
        if first:
            with suppress(RuntimeError):  # the loop has ended, and so has whoever waited
                self._loop.call_soon_threadsafe(self._came.set)

    async def next(self, within: float | None = None) -> Any:
        """The next event, or None if there is none for so many seconds; one that is an `ApiError`
        is raised."""
        while not self._events:
            try:
                async with asyncio.timeout(within):
                    await self._came.wait()
            except TimeoutError:
                return None
            self._came.clear()
        with self._lock:
            event = self._events.pop(next(iter(self._events)))
        if isinstance(event, ApiError):
            raise event
        return event


@dataclass(eq=False)
class ToEmbed:
    """Documents ``bos text | summary``, and their embeddings as they come."""

    documents: Sequence[Ids]
    ticket: Ticket
    rows: dict[int, Vectors] = field(default_factory=dict)


@dataclass(eq=False)
class ToWrite:
    """One text to write behind a prompt, of the request's texts the one with this number."""

    prompt: Ids
    n_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    choice: int
    ticket: Ticket
    tokens: list[int] = field(default_factory=list)
