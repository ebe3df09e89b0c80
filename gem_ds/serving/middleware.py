"""What every request passes on its way in and out: the key, its place in the queue, counting, and
what a client is told where something is wrong. ASGI, around the application in `server`."""

import asyncio
import hmac
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gem_ds.serving.config import ServeConfig
from gem_ds.serving.metrics import Metrics
from gem_ds.serving.reader_processes import SMALL
from gem_ds.serving.schemas import ApiError

GONE = 499  # nginx's, of a client that did not wait; only metrics see it
BODIES = 16  # as many of the largest may be held at once
MINE = "/v1/"  # where the key is needed
PLACE = "gem_ds.place"  # in a request's scope


class Queue:
    """The places of requests at work or waiting, and the bytes of those that wait to be read."""

    def __init__(self, config: ServeConfig) -> None:
        self.most = config.max_queue
        self.most_bytes = BODIES * largest_body(config)
        self.clients: Counter[str] = Counter()  # places by client
        self.n_bytes = 0


class Place:
    """What one request has of the queue, from `take` to `leave`."""

    def __init__(self, queue: Queue, client: str) -> None:
        self.queue, self.client = queue, client
        self.taken, self.n_bytes = False, 0

    def take(self, n_bytes: int) -> None:
        """Enter the queue with a body of so many bytes.

        When the queue is full, a client that has less than its share of it has a place still.
        Raises `ApiError` if there is none.
        """
        queue = self.queue
        share = queue.most / len({*queue.clients, self.client})
        full = queue.clients.total() >= queue.most and queue.clients[self.client] >= share
        if full or (n_bytes > SMALL and queue.n_bytes + n_bytes > queue.most_bytes):
            raise ApiError(
                429,
                f"{queue.clients.total()} requests are at work or waiting already; "
                "try again in a while",
                code="rate_limit_exceeded",
                kind="rate_limit_error",
            )
        self.taken, self.n_bytes = True, n_bytes
        queue.clients[self.client] += 1
        queue.n_bytes += n_bytes

    def read(self) -> None:
        """The body is held no longer."""
        self.queue.n_bytes -= self.n_bytes
        self.n_bytes = 0

    def leave(self) -> None:
        """Give everything back."""
        self.read()
        if self.taken:
            self.queue.clients[self.client] -= 1
            self.queue.clients += Counter()  # without clients that have none
            self.taken = False


class Door:
    """Lets requests in, unless their key is wrong, and gives them a place."""

    def __init__(
        self, app: ASGIApp, config: ServeConfig, key: str | None, metrics: Metrics
    ) -> None:
        self.app, self.metrics, self.key = app, metrics, key
        self.queue = Queue(config)
        self.n_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        place = Place(self.queue, (scope.get("client") or ("",))[0])
        scope = {**scope, "path": scope["path"].rstrip("/") or "/", PLACE: place}
        began = time.perf_counter()
        status = GONE

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        works = scope["method"] == "POST"
        self.n_open += works
        self.metrics.open.set(self.n_open)
        try:
            refused = self._refused(scope)
            answer = self.app if refused is None else error_response(refused)
            await answer(scope, receive, watched)
        finally:
            place.leave()
            self.n_open -= works
            self.metrics.open.set(self.n_open)
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - began)

    def _refused(self, scope: Scope) -> ApiError | None:
        if self.key is None or not scope["path"].startswith(MINE):
            return None
        kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1"), self.key.encode())
        if right and kind.lower() == "bearer":
            return None
        return ApiError(
            401,
            "the API key is missing or wrong; send it as Authorization: Bearer KEY",
            code="invalid_api_key",
        )


def error_response(error: ApiError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as OpenAI's clients know it."""
    return JSONResponse(error.body, error.status, headers)


def largest_body(config: ServeConfig) -> int:
    """Bytes that a request may have."""
    return int(config.max_body_mb * 1e6)


async def read_body(request: Request, config: ServeConfig) -> bytes:
    """A request's body.

    Raises `ApiError` for one that takes too long, and for one that is too large as soon as that is
    known; the connection passes over the rest of it.
    """
    most = largest_body(config)
    told = request.headers.get("content-length", "0")
    body = bytearray()
    try:
        async with asyncio.timeout(config.body_seconds):
            if not told.isdecimal() or int(told[:20]) <= most:
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        break
                else:
                    return bytes(body)
    except TimeoutError:
        raise ApiError(
            408, f"the request's body took longer than {config.body_seconds:g} seconds; send less"
        ) from None
    raise ApiError(
        413,
        f"the request has more than {config.max_body_mb:g} MB; send several smaller ones",
    )


def place_of(request: Any) -> Place:
    """The place of a request that has passed the door."""
    place: Place = request.scope[PLACE]
    return place
