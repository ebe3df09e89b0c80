"""Clients that do a server harm: what each of them does, again and again, until it is stopped."""

import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from served import NAME

EMBEDDINGS, COMPLETIONS, CHAT = "/v1/embeddings", "/v1/completions", "/v1/chat/completions"
MEGABYTE = 1_000_000
LOWEST_PRIORITY = 19  # of the attackers' process: they stand for other machines
SECONDS = 20.0  # that an attacker waits for an answer
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def post(path: str, body: bytes, *more: str) -> bytes:
    """A request as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *more, "", ""]
    return "\r\n".join(lines).encode() + body


def said(**body: Any) -> bytes:
    """The JSON of a request."""
    return json.dumps({"model": NAME, **body}).encode()


def repeated(before: bytes, unit: bytes, after: bytes, size: int) -> bytes:
    """JSON with a list of so many bytes that repeats one thing."""
    return before + b",".join([unit] * (size // (len(unit) + 1))) + after


class Attackers:
    """Everything that attacks one server, and what came of it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.seen: Counter[str] = Counter()  # statuses, and ``closed`` where there was no answer
        name = json.dumps(NAME).encode()
        self.ids = [
            post(EMBEDDINGS, said(input=[5] * 100_000)),
            post(EMBEDDINGS, said(input=[[5] * 400] * 64, user="x" * 10)),
            post(EMBEDDINGS, said(input=[[5] * 400] * 2048)),
            post(EMBEDDINGS, said(input=[5, 10**400])),
            post(COMPLETIONS, said(prompt=[[5] * 300 + [10**9]] * 2048)),
        ]
        message = b'{"role":"user","content":"a"}'
        part = b'{"type":"text","text":"a"}'
        call = b'{"function":{"name":"f","arguments":"{}"}}'
        calls = repeated(b'{"role":"assistant","tool_calls":[', call, b"]}", 100 * len(call))
        parts = repeated(b'{"role":"user","content":[', part, b"]}", 4000 * len(part))
        messages, embed = b'{"model":%s,"messages":[' % name, b'{"model":%s,"input":[' % name
        size = 7 * MEGABYTE
        self.big = [
            post(CHAT, repeated(messages, message, b"]}", size)),
            post(CHAT, repeated(messages, parts, b"]}", size)),
            post(CHAT, repeated(messages, calls, b"]}", size)),
            post(EMBEDDINGS, repeated(embed, b'"word"', b"]}", size)),
            post(EMBEDDINGS, repeated(embed, b"[5]", b"]}", size)),
            post(COMPLETIONS, repeated(b'{"model":%s,"stop":[' % name, b'"a"', b"]}", size)),
            post(EMBEDDINGS, b'{"model":%s,"input":"%s"}' % (name, b"a" * size)),
            post(EMBEDDINGS, b"[" * size),
            post(EMBEDDINGS, b" " * 20 * MEGABYTE),
            post(EMBEDDINGS, b" " * 20 * MEGABYTE, "Connection: close"),
        ]
        self.chunked = post(EMBEDDINGS, b"").replace(
            b"Content-Length: 0", b"Transfer-Encoding: chunked"
        )
        self.stream = post(COMPLETIONS, said(prompt=["The"] * 4, n=2, max_tokens=500, stream=True))
        self.whole = post(COMPLETIONS, said(prompt=["The"] * 4, n=2, max_tokens=500))

    async def connect(self, receive_buffer: int = 0) -> Streams:
        """A connection to the server."""
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
            return await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise

    async def once(self, do: Callable[[Streams], Awaitable[None]], buffer: int = 0) -> None:
        """One connection that does something and is closed then."""
        writer = None
        try:
            async with asyncio.timeout(SECONDS):
                streams = await self.connect(buffer)
                writer = streams[1]
                await do(streams)
        except (OSError, TimeoutError, EOFError):
            self.seen["closed"] += 1
        finally:
            if writer is not None:
                writer.transport.abort()

    async def answer(self, streams: Streams) -> None:
        """Count the status that comes."""
        line = await streams[0].readline()
        self.seen[line.split()[1].decode() if line else "closed"] += 1

    async def ask(self, request: bytes) -> None:
        """Send a request and read its answer."""

        async def do(streams: Streams) -> None:
            with contextlib.suppress(OSError):
                streams[1].write(request)
                await streams[1].drain()
            await self.answer(streams)

        await self.once(do)

    async def attack_ids(self) -> None:
        """Token ids, many and wrong."""
        await self.ask(random.choice(self.ids))

    async def attack_heads(self) -> None:
        """A head that never ends."""

        async def do(streams: Streams) -> None:
            streams[1].write(b"GET /health HTTP/1.1\r\nHost: x\r\n")
            while not streams[1].is_closing():
                streams[1].write(b"x")
                await streams[1].drain()
                await asyncio.sleep(1)

        await self.once(do)
        await asyncio.sleep(0.5)

    async def attack_bodies(self) -> None:
        """A body that comes byte by byte."""

        async def do(streams: Streams) -> None:
            streams[1].write(post(EMBEDDINGS, b"x" * 300_000)[: -random.randint(1, 300_000)])
            await streams[1].drain()
            await self.answer(streams)

        await self.once(do)

    async def attack_big(self) -> None:
        """Large bodies: of much JSON, too large ones, and in tiny chunks."""
        if random.random() < 0.7:
            await self.ask(random.choice(self.big))
            return

        async def do(streams: Streams) -> None:
            streams[1].write(self.chunked)
            chunk = random.choice([b"1\r\n \r\n" * 4096, b"10000\r\n" + b" " * 65536 + b"\r\n"])
            with contextlib.suppress(OSError):
                for _ in range(400):
                    streams[1].write(chunk)
                    await streams[1].drain()
            await self.answer(streams)

        await self.once(do)

    async def attack_departures(self) -> None:
        """Leave, in the middle of a stream or before an answer, at once or politely."""

        async def do(streams: Streams) -> None:
            reader, writer = streams
            writer.write(random.choice([self.stream, self.whole]))
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(0.05, 1)):
                    while await reader.read(1000):
                        pass
            if random.random() < 0.5:
                linger = struct.pack("ii", 1, 0)  # a reset
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.seen["left"] += 1

        await self.once(do)

    async def attack_readers(self) -> None:
        """Ask for much and read nothing."""

        async def do(streams: Streams) -> None:
            streams[0]._transport.pause_reading()  # type: ignore[attr-defined]
            request = random.choice([self.stream, post(EMBEDDINGS, said(input=["a"] * 500))])
            streams[1].write(request)
            await streams[1].drain()
            await asyncio.sleep(SECONDS / 2)
            self.seen["unread"] += 1

        await self.once(do, buffer=4096)

    async def attack_overload(self) -> None:
        """Legal requests, more than the queue holds."""
        text = " ".join(
            random.choices(
                ["string", "list", "returns", "every", "part", "that", "is", "split"], k=30
            )
        )
        body = random.choice(
            [
                post(EMBEDDINGS, said(input=[text] * 8)),
                post(COMPLETIONS, said(prompt=text, max_tokens=32)),
                post(CHAT, said(messages=[{"role": "user", "content": text}], max_tokens=32)),
            ]
        )
        await self.ask(body)

    async def attack_garbage(self) -> None:
        """What is no HTTP."""
        junk = random.choice(
            [
                random.randbytes(200) + b"\r\n\r\n",
                b"GET / HTTP/9.9\r\n\r\n",
                b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
                b"GET /health HTTP/1.1\r\nHost: x\r\nx: " + b"x" * 100_000,
                self.chunked + b"zz\r\n",
                b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            ]
        )
        await self.ask(junk)


# Of each attack, how many go on at once.
ATTACKS = {
    "ids": 8,
    "heads": 1200,
    "bodies": 300,
    "big": 6,
    "departures": 16,
    "readers": 64,
    "overload": 300,
    "garbage": 8,
}


async def _attack(port: int, names: list[str], begun: Any, end: Any) -> dict[str, int]:
    attackers = Attackers(port)

    async def again(name: str) -> None:
        await asyncio.sleep(random.random())
        while True:
            await getattr(attackers, f"attack_{name}")()
            await asyncio.sleep(0.05)

    tasks = [asyncio.ensure_future(again(name)) for name in names for _ in range(ATTACKS[name])]
    await asyncio.sleep(1)  # by when all of them have begun
    begun.set()
    await asyncio.to_thread(end.wait)
    for task in tasks:
        task.cancel()
    failed = await asyncio.gather(*tasks, return_exceptions=True)
    faults = [one for one in failed if not isinstance(one, asyncio.CancelledError)]
    if faults:
        raise RuntimeError(f"an attack of {names} fails by itself: {faults[0]!r}")
    return dict(attackers.seen)


def _run(port: int, names: list[str], begun: Any, end: Any, pipe: Any) -> None:
    os.nice(LOWEST_PRIORITY)
    pipe.send(asyncio.run(_attack(port, names, begun, end)))


@contextlib.contextmanager
def attacking(port: int, names: list[str], seen: Counter[str]) -> Any:
    """Attack a server from a process of its own, from now on; `seen` is what came of it."""
    spawning = multiprocessing.get_context("spawn")
    begun, end = spawning.Event(), spawning.Event()
    near, far = spawning.Pipe(duplex=False)
    process = spawning.Process(target=_run, args=(port, names, begun, end, far), daemon=True)
    process.start()
    far.close()
    try:
        assert begun.wait(60)
        yield
    finally:
        end.set()
        with contextlib.suppress(EOFError):
            seen.update(near.recv() if near.poll(30) else {})
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
