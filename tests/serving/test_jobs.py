"""gem_ds.serving.jobs: what a request is given, and how it waits for that."""

import numpy as np
from serving import go

from gem_ds.serving.jobs import Piece, Ticket


def test_what_is_read_slowly_is_held_as_text() -> None:
    async def do() -> None:
        ticket = Ticket()
        for i in range(1000):
            ticket.push(Piece(i % 2, "a", i // 2 + 1, "stop" if i > 997 else None))
        ticket.push(np.zeros(1))
        assert await ticket.next() == Piece(0, "a" * 500, 500, "stop")
        assert await ticket.next() == Piece(1, "a" * 500, 500, "stop")
        assert (await ticket.next()).shape == (1,)
        assert await ticket.next(0.01) is None

    go(do)
