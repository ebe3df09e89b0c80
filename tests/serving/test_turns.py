"""Whose turn it is: among clients, among a client's requests, and in time."""

import asyncio
from typing import NamedTuple

from gem_ds.serving.jobs import BEHIND, CREDIT, Shares, Ticket, Turns, gives_way


def tickets(*clients: str) -> list[Ticket]:
    async def made() -> list[Ticket]:
        return [Ticket(client) for client in clients]

    return asyncio.run(made())


def order(turns: Turns[str], by: dict[str, Ticket]) -> list[str]:
    found = []
    while texts := next(turns.waiting(turns.clients), None):
        found.append(turns.take(by[texts[0][:-1]]))
    return found


def test_clients_take_turns_and_so_do_their_requests() -> None:
    a, other, b = tickets("one", "one", "two")
    turns: Turns[str] = Turns()
    by = {"a": a, "other": other, "b": b}
    for name, n in (("a", 3), ("other", 2), ("b", 2)):
        for i in range(n):
            turns.add(by[name], f"{name}{i}")
    assert list(turns.waiting({"one"})) == [["a0", "other0"]]
    assert order(turns, by) == ["a0", "b0", "other0", "b1", "a1", "other1", "a2"]
    assert not turns
    turns.add(a, "a0")
    turns.add(a, "a1", first=True)
    turns.add(b, "b0")
    assert list(turns.tickets()) == [a, b]
    turns.drop(b)
    assert order(turns, by) == ["a1", "a0"]
    turns.drop(a)  # which has nothing
    assert turns.clients == set()


class Place(NamedTuple):
    ticket: Ticket
    settled: bool


def test_who_has_more_gives_way() -> None:
    large, small, new = tickets("one", "one", "two")

    def giving(ticket: Ticket, *holders: Place) -> Place | None:
        return gives_way(ticket, holders, [holder.ticket for holder in holders])

    many = [Place(large, False)] * 3
    assert giving(new, *many) == Place(large, False)
    assert giving(small, *many) == Place(large, False)
    assert giving(large, *many) is None, "a request's own texts wait for each other"
    # Of as many, those that have had their places for a while.
    assert giving(new, Place(large, False)) is None
    assert giving(new, Place(large, True)) == Place(large, True)
    assert giving(small, Place(large, True)) == Place(large, True)
    # Not to a client that has as much.
    assert giving(large, Place(new, True), Place(small, False)) is None
    assert giving(large, Place(new, True), Place(new, False)) == Place(new, True)


def test_who_has_had_less_is_next() -> None:
    shares = Shares()
    both = {"many", "few"}
    assert shares.next(both) == both
    shares.charge(["many"] * 9 + ["few"], BEHIND)
    assert shares.next(both) == both, "not for a little"
    shares.charge(["many"] * 9 + ["few"], BEHIND)
    assert shares.next(both) == {"few"}
    shares.charge(["few"], 2 * BEHIND)
    assert shares.next(both) == both
    shares.charge(["many"], 10.0)
    assert shares.next({"many"}) == {"many"}
    assert shares.next({"many", "new"}) == {"new"}, "who comes is before who is busy"
    shares.charge(["new"], CREDIT)
    assert shares.next({"many", "new"}) == {"many", "new"}, "but nobody saves up"
