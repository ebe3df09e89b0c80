"""Whose turn it is: of each client in turn, and of each of its requests in turn.

So neither a request of thousands of texts nor a client of hundreds of requests keeps others
waiting: in the order of what waits, in the places of what is written, and in time.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Container, Iterator, Sequence
from typing import Any, Generic, TypeVar

from gem_ds.serving.jobs import Ticket

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
