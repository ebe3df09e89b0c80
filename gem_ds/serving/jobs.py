"""What requests have the model do, their end of it, and whose turn it is.

Answers come on tickets. Turns go to each client in turn, and to each of its requests in turn, so
that neither a request of thousands of texts nor a client of hundreds of requests keeps others
waiting: in the order of what waits, in the places of what is written, and in time.
"""

import asyncio
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from gem_ds.corpus.tokenization import Ids
from gem_ds.inference.encoder import Vectors
from gem_ds.inference.gem_model import GemModel
from gem_ds.inference.generation import Chooser, Sampling, Written
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


Item = TypeVar("Item")
Holder = TypeVar("Holder", bound=Any)
CREDIT = 0.1  # seconds that one is behind who comes
BEHIND = 0.05  # seconds that a client has had less than another before it goes on alone


class Turns(Generic[Item]):
    """Items of requests that wait for their turn."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, OrderedDict[Ticket, deque[Item]]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._clients)

    @property
    def clients(self) -> set[str]:
        """Who waits."""
        return set(self._clients)

    def add(self, ticket: Ticket, item: Item, first: bool = False) -> None:
        """Put an item behind the others of its request, or before them."""
        requests = self._clients.setdefault(ticket.client, OrderedDict())
        items = requests.setdefault(ticket, deque())
        if first:
            items.appendleft(item)
        else:
            items.append(item)

    def waiting(self, clients: Container[str]) -> Iterator[list[Item]]:
        """Of each of these clients the first item of each of its requests, in their order."""
        for client, requests in list(self._clients.items()):
            if client in clients:
                yield [items[0] for items in requests.values()]

    def take(self, ticket: Ticket) -> Item:
        """Take out the first item of a request, which is the last of its client now, and that the
        last of all."""
        requests = self._clients[ticket.client]
        item = requests[ticket].popleft()
        requests.move_to_end(ticket)
        self._clients.move_to_end(ticket.client)
        if not requests[ticket]:
            self.drop(ticket)
        return item

    def drop(self, ticket: Ticket) -> None:
        """Take out all items of a request."""
        requests = self._clients.get(ticket.client, OrderedDict())
        requests.pop(ticket, None)
        if not requests:
            self._clients.pop(ticket.client, None)

    def tickets(self) -> Iterator[Ticket]:
        """The requests that have something waiting."""
        for requests in list(self._clients.values()):
            yield from list(requests)


def gives_way(ticket: Ticket, holders: Sequence[Holder], places: Sequence[Ticket]) -> Holder | None:
    """Which of those that hold a place gives it to a text of this request, if any.

    `places` has the request of every place. A holder has a `ticket`, and is `settled` once it has
    had its place for a while: then it gives way where its client, or its request if the client is
    the same, has more places; before, where it would still have as many.
    """
    clients, requests = Counter(one.client for one in places), Counter(places)

    def has_more(holder: Holder) -> bool:
        if holder.ticket.client == ticket.client:
            more = requests[holder.ticket] - requests[ticket]
        else:
            more = clients[holder.ticket.client] - clients[ticket.client]
        return more > (0 if holder.settled else 1)

    def share(holder: Holder) -> tuple[int, int]:
        return clients[holder.ticket.client], requests[holder.ticket]

    return max(filter(has_more, holders), key=share, default=None)


class Shares:
    """The seconds that each client has had of the model."""

    def __init__(self) -> None:
        self.had: dict[str, float] = {}

    def charge(self, clients: Sequence[str], seconds: float) -> None:
        """Divide time among the clients of the texts that it was for."""
        for client in clients:
            self.had[client] = self.had.get(client, 0.0) + seconds / len(clients)

    def next(self, clients: set[str]) -> set[str]:
        """Who of those that have something to do is next: all, unless some are behind others.

        Those that had nothing to do before begin a little behind the one that has had least, so
        that whoever asks for little does not wait for a whole turn of one that asks for much.
        """
        least = min((self.had[one] for one in clients if one in self.had), default=0.0)
        self.had = {one: self.had.get(one, least - CREDIT) for one in clients}
        least = min(self.had.values(), default=0.0)
        middle = (least + max(self.had.values(), default=0.0)) / 2
        if middle - least < BEHIND / 2:
            return clients
        return {one for one in clients if self.had[one] < middle}
