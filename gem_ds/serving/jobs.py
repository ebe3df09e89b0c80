"""What requests have the model do, and their end of it: tickets, on which answers come."""

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from gem_ds.corpus.tokenization import Ids
from gem_ds.inference.encoder import Vectors
from gem_ds.inference.gem_model import GemModel
from gem_ds.inference.generation import Chooser, Sampling
from gem_ds.inference.written import Written
from gem_ds.serving.schemas import ApiError

SLICE = 64  # tokens that a text writes before it gives way to one whose client has no more places


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
        await asyncio.sleep(0)  # others have their turn, though there be always one
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


class Writer:
    """A text that is being written, or waits for that."""

    def __init__(self, job: ToWrite) -> None:
        self.job, self.ticket = job, job.ticket
        self.final = len(job.prompt) + job.n_tokens  # tokens that it may come to have
        self.joined = 0  # tokens that were written when it joined the batch

    def join(self, gem: GemModel) -> Ids:
        """What is to be read before the next token: the prompt, and what is written already."""
        if not self.job.tokens:
            self.chooser = Chooser(gem.lm, self.job.sampling)
            self.written = Written(gem.vocab, self.job.prompt, self.job.stop)
        self.joined = len(self.job.tokens)
        return np.concatenate([self.job.prompt, np.array(self.job.tokens, dtype=np.int32)])

    @property
    def length(self) -> int:
        """Tokens so far, the prompt's with them."""
        return len(self.job.prompt) + len(self.job.tokens)

    @property
    def settled(self) -> bool:
        """Whether it has written for a while since it joined."""
        return len(self.job.tokens) - self.joined >= SLICE

    def take(self, token: int, ends: set[int]) -> bool:
        """Tell the request what a token adds; whether it was the last."""
        self.job.tokens.append(token)
        text = "" if token in ends else self.written.add(token)
        reason = None
        if token in ends or self.written.stopped:
            reason = "stop"
        elif len(self.job.tokens) == self.job.n_tokens:
            reason = "length"
        if reason is not None:
            text += self.written.end()
        if text or reason:
            self.job.ticket.push(Piece(self.job.choice, text, len(self.job.tokens), reason))
        return reason is not None
