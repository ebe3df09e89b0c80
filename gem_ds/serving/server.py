"""The routes of a server: OpenAI's embeddings, completions and chat completions of one model.

What the model does for them is `scheduler`, what they may say `schemas`; starting and
stopping is `serve`.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from gem_ds.inference.generation import Sampling
from gem_ds.serving.answers import Form, embedded, usage
from gem_ds.serving.config import ServeConfig
from gem_ds.serving.deadlines import Deadline, Deadlines, unless_gone
from gem_ds.serving.jobs import Piece, Ticket, ToEmbed, ToWrite
from gem_ds.serving.metrics import Metrics
from gem_ds.serving.middleware import GONE, Door, error_response, place_of, read_body
from gem_ds.serving.reader_processes import Readers
from gem_ds.serving.request_tokens import Asked, Call, check_name
from gem_ds.serving.scheduler import Worker
from gem_ds.serving.schemas import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
)

ROUTES = "/v1/embeddings, /v1/completions, /v1/chat/completions, /v1/models, /health, /metrics"
FULL_SECONDS = 1.0  # after which a client is told that the queue is full
BEAT = 5.0  # seconds after which a stream says something
IDS = (
    "a request has token ids instead of text. They must be of this model's tokenizer: those of "
    "another give wrong results without an error. Send text where you can (langchain-openai: "
    "check_embedding_ctx_length=False)"
)
_log = logging.getLogger("uvicorn.error")  # the server's log


class Server:
    """Answers requests with what `worker` does."""

    def __init__(
        self, worker: Worker, readers: Readers, deadlines: Deadlines, config: ServeConfig
    ) -> None:
        self.worker, self.readers, self.deadlines = worker, readers, deadlines
        self.config, self.name, self.started = config, config.served_name, int(time.time())
        self.aside = ThreadPoolExecutor(1, thread_name_prefix="answers")

    async def models(self) -> Response:
        """GET /v1/models"""
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, name: str) -> Response:
        """GET /v1/models/{name}"""
        check_name(name, self.name)
        return JSONResponse(self._card())

    async def health(self) -> Response:
        """GET /health"""
        stuck = None
        if not self.worker.answers(self.config.timeout_seconds):
            stuck = "the model"
        elif self.readers.stuck():
            stuck = "a process that reads requests"
        if stuck:
            return JSONResponse({"status": "stuck", "what": stuck}, 503)
        return JSONResponse({"status": "ok"})

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings"""
        with Deadline(self.deadlines) as deadline:
            asked = await self._read(request, EmbeddingRequest, deadline)
            ticket = Ticket(place_of(request).client)
            self.worker.submit([ToEmbed(asked.documents, ticket)])
            vectors = await deadline.wait(unless_gone(request, ticket, ticket.next()))
            if vectors is None:
                return Response(status_code=GONE)
            loop = asyncio.get_running_loop()
            what = asked.call, vectors, asked.n_tokens, self.name
            content = await loop.run_in_executor(self.aside, embedded, *what)
            return Response(content, media_type="application/json")

    async def _read(self, request: Request, kind: type[Call], deadline: Deadline) -> Asked:
        """The request that a body holds. Raises `ApiError`."""
        place = place_of(request)
        body = await deadline.wait(read_body(request, self.config))
        try:
            place.take(len(body))
        except ApiError:  # many ask again at once, and answering them would be all that is done
            del body
            await deadline.wait(asyncio.sleep(FULL_SECONDS))
            raise
        asked = await deadline.wait(self.readers.read(kind, body))
        place.read()
        if asked.gave_ids:
            _log.warning(IDS)
        return asked

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions"""
        return await self._write(request, CompletionRequest)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions"""
        return await self._write(request, ChatRequest)

    async def _write(
        self, request: Request, kind: type[CompletionRequest] | type[ChatRequest]
    ) -> Response:
        with Deadline(self.deadlines) as deadline:
            asked = await self._read(request, kind, deadline)
            ticket = Ticket(place_of(request).client)
            jobs = _jobs(asked, ticket)
            form = Form(kind is ChatRequest, uuid.uuid4().hex, self.name)
            if asked.call.stream:
                events = self._events(form, asked, jobs, deadline)
                return StreamingResponse(events, media_type="text/event-stream")
            self.worker.submit(jobs)
            found = unless_gone(request, ticket, _collect(ticket, len(jobs)))
            choices = await deadline.wait(found)
            if choices is None:
                return Response(status_code=GONE)
            used = usage(asked.n_tokens, sum(tokens for *_, tokens in choices))
            shown = [(text, reason) for text, reason, _ in choices]
            return JSONResponse(form.whole(shown, used))

    async def _events(
        self, form: Form, asked: Asked, jobs: Sequence[ToWrite], deadline: Deadline
    ) -> AsyncIterator[bytes]:
        """A stream of server-sent events, until the end or until nobody reads it."""
        ticket, unfinished, written = jobs[0].ticket, len(jobs), [0] * len(jobs)
        more = {"usage": None} if asked.call.wants_usage else {}
        self.worker.submit(jobs)
        try:
            with deadline:
                for job in jobs if form.chat else ():
                    yield _event({**form.piece(job.choice, "", None, first=True), **more})
                while unfinished:
                    piece: Piece | None = await deadline.wait(ticket.next(BEAT))
                    if piece is None:
                        yield b": waiting\n\n"  # a comment, by which one sees who has left
                        continue
                    unfinished -= piece.reason is not None
                    written[piece.choice] = piece.tokens
                    yield _event({**form.piece(piece.choice, piece.text, piece.reason), **more})
            if asked.call.wants_usage:
                yield _event(form.last(usage(asked.n_tokens, sum(written))))
        except ApiError as error:
            yield _event(error.body)
        finally:
            ticket.cancelled = True
        yield b"data: [DONE]\n\n"

    def _card(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.started, "owned_by": "gem_ds"}


def _jobs(asked: Asked, ticket: Ticket) -> list[ToWrite]:
    call = asked.call
    assert not isinstance(call, EmbeddingRequest)
    n = call.n or 1
    temperature = 1.0 if call.temperature is None else call.temperature
    top_p = 1.0 if call.top_p is None else call.top_p
    return [
        ToWrite(
            prompt,
            n_new,
            Sampling(temperature, top_p, None if call.seed is None else call.seed + choice),
            tuple(call.stop),
            i * n + choice,
            ticket,
        )
        for i, (prompt, n_new) in enumerate(zip(asked.documents, asked.n_new, strict=True))
        for choice in range(n)
    ]


async def _collect(ticket: Ticket, n: int) -> list[tuple[str, str, int]]:
    """Of each of n texts the whole, why it ended, and its tokens."""
    texts = [""] * n
    ends: dict[int, tuple[str, int]] = {}
    while len(ends) < n:
        piece: Piece = await ticket.next()
        texts[piece.choice] += piece.text
        if piece.reason is not None:
            ends[piece.choice] = piece.reason, piece.tokens
    return [(text, *ends[i]) for i, text in enumerate(texts)]


def _event(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def application(server: Server, config: ServeConfig, metrics: Metrics) -> ASGIApp:
    """The ASGI application."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    reads = ["GET", "HEAD"]
    app.api_route("/v1/models", methods=reads)(server.models)
    app.api_route("/v1/models/{name:path}", methods=reads)(server.model)
    app.post("/v1/embeddings")(server.embeddings)
    app.post("/v1/completions")(server.completions)
    app.post("/v1/chat/completions")(server.chat)
    app.api_route("/health", methods=reads)(server.health)

    @app.api_route("/metrics", methods=reads)
    async def shown() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=1.0.0; charset=utf-8")

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {request.url.path[:100]}: {error.detail}"
        if error.status_code == 404:
            what += f"; this server has {ROUTES}"
        if request.method == "OPTIONS":
            what += "; web pages may ask a server that was started with --cors-origin"
        return error_response(ApiError(error.status_code, what), error.headers)

    @app.exception_handler(ClientDisconnect)
    async def left(*_: Any) -> Response:
        return Response(status_code=GONE)

    @app.exception_handler(Exception)
    async def failed(*_: Any) -> Response:
        return error_response(ApiError(500, "the server failed; see its log", kind="server_error"))

    door = Door(app, config, config.api_key(), metrics)
    if not config.origins:
        return door
    # Outside the door, since browsers ask without the key, and read errors only with the header.
    methods = [*reads, "POST"]
    return CORSMiddleware(
        door, config.origins, methods, allow_headers=["*"], allow_private_network=True
    )
