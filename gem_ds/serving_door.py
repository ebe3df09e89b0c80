"""What every request passes on its way in and out: the key, the queue's length, counting, and what
a client is told where something is wrong. ASGI, around the application in `server`."""

import hmac
import time
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gem_ds.serving_config import ServeConfig
from gem_ds.serving_metrics import Metrics
from gem_ds.serving_schemas import ApiError

GONE = 499  # nginx's, of a client that did not wait; only metrics see it
TOO_LARGE = 413
LINGER = 4  # times what a request may have, that is read of one that has more
MINE = "/v1/"  # where the key is needed


class Door:
    """Lets requests in, unless their key is wrong or too many are inside."""

    def __init__(
        self, app: ASGIApp, config: ServeConfig, key: str | None, metrics: Metrics
    ) -> None:
        self.app, self.config, self.metrics = app, config, metrics
        self.key = None if key is None else f"Bearer {key}".encode()
        self.n_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
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
            self.n_open -= works
            self.metrics.open.set(self.n_open)
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - began)

    def _refused(self, scope: Scope) -> ApiError | None:
        if self.key is not None and scope["path"].startswith(MINE):
            given = Headers(scope=scope).get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, self.key):
                return ApiError(
                    401,
                    "the API key is missing or wrong; send it as Authorization: Bearer KEY",
                    code="invalid_api_key",
                )
        if self.n_open > self.config.max_queue:
            return ApiError(
                429,
                f"{self.config.max_queue} requests are at work or waiting already; "
                "try again in a while",
                code="rate_limit_exceeded",
                kind="rate_limit_error",
            )
        return None


def error_response(error: ApiError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as OpenAI's clients know it."""
    # Who sends too much may still be sending.
    closes = {"connection": "close"} if error.status == TOO_LARGE else {}
    return JSONResponse(error.body, error.status, {**closes, **(headers or {})})


async def read_body(request: Request, config: ServeConfig) -> bytes:
    """A request's body.

    Raises `ApiError` for one that is too large, when it has been read, since few clients look at an
    answer before they have sent everything; or at once where it is far too large.
    """
    most = int(config.max_body_mb * 1e6)
    body, size = bytearray(), 0
    told = request.headers.get("content-length", "0")
    if not (told.isdecimal() and int(told) > LINGER * most):
        async for part in request.stream():
            size += len(part)
            if size <= most:
                body += part
            elif size > LINGER * most:
                break
        if size <= most:
            return bytes(body)
    raise ApiError(
        TOO_LARGE,
        f"the request has more than {config.max_body_mb:g} MB; send several smaller ones",
    )


async def gone(request: Any) -> None:
    """Returns when the client no longer waits; the request's body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
