"""The routes of a server: OpenAI's embeddings, completions and chat completions of one model.

What the model does for them is `serving_batches`, what they may say `serving_schemas`; starting and
stopping is `serve`.
"""

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from gem_ds.decoding import Sampling
from gem_ds.encode import Vectors
from gem_ds.serving_answers import Form, usage
from gem_ds.serving_batches import Piece, Ticket, ToEmbed, ToWrite, Worker
from gem_ds.serving_config import ServeConfig
from gem_ds.serving_door import GONE, Door, error_response, gone, read_body
from gem_ds.serving_inputs import Inputs
from gem_ds.serving_metrics import Metrics
from gem_ds.serving_schemas import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    parse,
)
from gem_ds.tokenization import Ids

TIMEOUT = "timeout"
ROUTES = "/v1/embeddings, /v1/completions, /v1/chat/completions, /v1/models, /health, /metrics"
READERS = 2  # threads that read requests


class Server:
    """Answers requests with what `worker` does."""

    def __init__(self, worker: Worker, inputs: Inputs, config: ServeConfig, started: int) -> None:
        self.worker, self.inputs, self.config, self.started = worker, inputs, config, started
        self.name = config.served_name
        # Few, since each keeps the memory of the largest request that it has read.
        self.readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")

    async def _aside(self, do: Callable[[], Any]) -> Any:
        """Done by a thread, so that others are answered meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, do)

    async def models(self) -> Response:
        """GET /v1/models"""
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, name: str) -> Response:
        """GET /v1/models/{name}"""
        self._check_name(name)
        return JSONResponse(self._card())

    async def health(self) -> Response:
        """GET /health"""
        ready = self.worker.answers(self.config.timeout_seconds)
        return JSONResponse({"status": "ok" if ready else "stuck"}, 200 if ready else 503)

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings"""
        async with _Deadline(self.config):
            body = await read_body(request, self.config)
            call = await self._aside(lambda: parse(EmbeddingRequest, body))
            self._check_name(call.model)
            documents, n_tokens = await self._aside(lambda: self.inputs.documents(call))
            ticket = Ticket()
            self.worker.submit([ToEmbed(documents, ticket)])
            vectors = await _unless_gone(request, ticket, ticket.next())
            if vectors is None:
                return Response(status_code=GONE)
            answer: Response = await self._aside(lambda: self._embedded(call, vectors, n_tokens))
            return answer

    def _embedded(self, call: EmbeddingRequest, vectors_NC: Vectors, n_tokens: int) -> Response:
        vectors_NC = np.ascontiguousarray(vectors_NC[:, : call.dimensions])
        vectors_NC /= np.linalg.norm(vectors_NC, axis=1, keepdims=True)
        shown: list[Any] = list(vectors_NC)
        if call.encoding_format == "base64":
            shown = [base64.b64encode(v.astype("<f4").tobytes()).decode() for v in vectors_NC]
        data = [
            {"object": "embedding", "index": i, "embedding": one} for i, one in enumerate(shown)
        ]
        answer = {"object": "list", "data": data, "model": self.name, "usage": usage(n_tokens)}
        content = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(content, media_type="application/json")

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions"""
        return await self._write(request, CompletionRequest)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions"""
        return await self._write(request, ChatRequest)

    async def _write(
        self, request: Request, kind: type[CompletionRequest] | type[ChatRequest]
    ) -> Response:
        deadline = _Deadline(self.config)
        async with deadline:
            body = await read_body(request, self.config)
            call = await self._aside(lambda: parse(kind, body))
            self._check_name(call.model)
            prompts = await self._aside(lambda: self.inputs.prompts(call))
            ticket = Ticket()
            jobs = self._jobs(call, prompts, ticket)
            form = Form(isinstance(call, ChatRequest), uuid.uuid4().hex, self.name)
            n_prompt = sum(len(p) - self._n_head(call) for p in prompts)
            if call.stream:
                events = self._events(form, call, jobs, n_prompt, deadline)
                return StreamingResponse(events, media_type="text/event-stream")
            self.worker.submit(jobs)
            choices = await _unless_gone(request, ticket, _collect(ticket, len(jobs)))
            if choices is None:
                return Response(status_code=GONE)
            used = usage(n_prompt, sum(tokens for *_, tokens in choices))
            shown = [(text, reason) for text, reason, _ in choices]
            return JSONResponse(form.whole(shown, used))

    def _n_head(self, call: CompletionRequest | ChatRequest) -> int:
        """Tokens of a prompt that the client did not give."""
        return 0 if isinstance(call, ChatRequest) else len(self.inputs.head)

    def _jobs(
        self, call: CompletionRequest | ChatRequest, prompts: Sequence[Ids], ticket: Ticket
    ) -> list[ToWrite]:
        n = call.n or 1
        temperature = 1.0 if call.temperature is None else call.temperature
        top_p = 1.0 if call.top_p is None else call.top_p
        return [
            ToWrite(
                prompt,
                self.inputs.new_tokens(call, prompt),
                Sampling(temperature, top_p, None if call.seed is None else call.seed + choice),
                tuple(call.stop),
                i * n + choice,
                ticket,
            )
            for i, prompt in enumerate(prompts)
            for choice in range(n)
        ]

    async def _events(
        self,
        form: Form,
        call: CompletionRequest | ChatRequest,
        jobs: Sequence[ToWrite],
        n_prompt: int,
        deadline: "_Deadline",
    ) -> AsyncIterator[bytes]:
        """A stream of server-sent events, until the end or until nobody reads it."""
        ticket, unfinished, written = jobs[0].ticket, len(jobs), [0] * len(jobs)
        more = {"usage": None} if call.wants_usage else {}
        self.worker.submit(jobs)
        try:
            async with deadline.again():
                for job in jobs if form.chat else ():
                    yield _event({**form.piece(job.choice, "", None, first=True), **more})
                while unfinished:
                    piece: Piece = await ticket.next()
                    unfinished -= piece.reason is not None
                    written[piece.choice] = piece.tokens
                    yield _event({**form.piece(piece.choice, piece.text, piece.reason), **more})
            if call.wants_usage:
                yield _event(form.last(usage(n_prompt, sum(written))))
        except ApiError as error:
            yield _event(error.body)
        finally:
            ticket.cancelled = True
        yield b"data: [DONE]\n\n"

    def _check_name(self, name: str) -> None:
        if name != self.name:
            raise ApiError(
                404,
                f"there is no model {name[:100]!r} here; this server has {self.name!r}",
                "model",
                "model_not_found",
            )

    def _card(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.started, "owned_by": "gem_ds"}


class _Deadline:
    """A time limit that a stream can go on under after its request has been answered."""

    def __init__(self, config: ServeConfig) -> None:
        self.seconds = config.timeout_seconds
        self.at = asyncio.get_running_loop().time() + self.seconds

    def again(self) -> "_Deadline":
        """The same limit around something else."""
        self.timeout = asyncio.timeout_at(self.at)
        return self

    async def __aenter__(self) -> None:
        await self.again().timeout.__aenter__()

    async def __aexit__(self, *how: Any) -> None:
        try:
            await self.timeout.__aexit__(*how)
        except TimeoutError:
            raise ApiError(
                504,
                f"this took longer than {self.seconds:g} seconds; ask for less or try again later",
                code=TIMEOUT,
                kind="server_error",
            ) from None


async def _unless_gone(request: Request, ticket: Ticket, answer: Any) -> Any:
    """What is awaited, or None if the client leaves before; then the work for it ends too."""
    waits = asyncio.ensure_future(answer)
    leaves = asyncio.ensure_future(gone(request))
    try:
        await asyncio.wait([waits, leaves], return_when=asyncio.FIRST_COMPLETED)
        return waits.result() if waits.done() else None
    finally:
        ticket.cancelled = True
        waits.cancel()
        leaves.cancel()


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


def application(
    worker: Worker, inputs: Inputs, config: ServeConfig, metrics: Metrics, started: int
) -> ASGIApp:
    """The ASGI application."""
    server = Server(worker, inputs, config, started)
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
