"""How long requests may take, and what ends them before: their client, or the end of the server."""

import asyncio
import math
from collections.abc import Awaitable
from typing import Any, TypeVar

from gem_ds.serving.jobs import Ticket
from gem_ds.serving.schemas import ApiError

Found = TypeVar("Found")


class Deadlines:
    """The time limit of a server's requests."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.open: set[Deadline] = set()
        self.end = math.inf  # of all of them

    def stop(self, within: float) -> None:
        """End what takes longer than so many seconds from now, since the server ends."""
        self.end = asyncio.get_running_loop().time() + within
        for deadline in self.open:
            deadline.shorten(self.end)


class Deadline:
    """The time limit of one request, as long as it is entered.

    What runs out of time raises an `ApiError`.
    """

    def __init__(self, limits: Deadlines) -> None:
        self.limits = limits
        self.at = asyncio.get_running_loop().time() + limits.seconds
        self._timeout: asyncio.Timeout | None = None

    def __enter__(self) -> "Deadline":
        self.limits.open.add(self)
        self.shorten(self.limits.end)
        return self

    def __exit__(self, *how: Any) -> None:
        self.limits.open.discard(self)

    def shorten(self, at: float) -> None:
        """Let it end at this time of the loop, if not before."""
        self.at = min(self.at, at)
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(self.at)

    async def wait(self, awaited: Awaitable[Found]) -> Found:
        """What is awaited, if it comes in time; only one at once."""
        try:
            async with asyncio.timeout_at(self.at) as self._timeout:
                found = await awaited
        except TimeoutError:
            raise self._over() from None
        finally:
            self._timeout = None
        # What is there at once has not met the limit, and may never, one after another.
        if asyncio.get_running_loop().time() >= self.at:
            raise self._over()
        return found

    def _over(self) -> ApiError:
        if self.at >= self.limits.end:
            return ApiError(
                503, "the server ends; ask again later", code="timeout", kind="server_error"
            )
        return ApiError(
            504,
            f"this took longer than {self.limits.seconds:g} seconds; ask for less or try again "
            "later",
            code="timeout",
            kind="server_error",
        )


async def unless_gone(request: Any, ticket: Ticket, answer: Any) -> Any:
    """What is awaited, or None if the client leaves before; then the work for it ends too.

    The request's body has been read.
    """
    waits = asyncio.ensure_future(answer)
    leaves = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([waits, leaves], return_when=asyncio.FIRST_COMPLETED)
        return waits.result() if waits.done() else None
    finally:
        ticket.cancelled = True
        waits.cancel()
        leaves.cancel()


async def _gone(request: Any) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
