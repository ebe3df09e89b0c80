"""Processes that read requests: JSON to ids, whatever that costs.

Reading holds Python's lock and may take seconds, or for ever where a tokenizer or a template fails
so. In processes it never stops the server's loop or the model, and one that is stuck is killed.
Small requests are read before large ones, and one process reads small ones alone.
"""

import asyncio
import heapq
import itertools
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from gem_ds.serving.config import ServeConfig
from gem_ds.serving.request_tokens import Asked, Call, Inputs, ModelSizes
from gem_ds.serving.schemas import ApiError, ChatRequest, parse

READ_SECONDS = 30.0  # a reader that takes longer is killed
LOW_PRIORITY = 10  # of those that read large requests: on few cores the model goes first
SMALL = 1 << 16  # bytes of a request that is soon read
FIRST = b'{"model": "", "messages": [{"role": "user", "content": "Is it ready?"}]}'
_log = logging.getLogger("uvicorn.error")  # the server's log


class _Reader:
    """One such process, and what it is doing."""

    def __init__(self, config: ServeConfig, small_only: bool) -> None:
        spawning = multiprocessing.get_context("spawn")
        self.pipe, far = spawning.Pipe()
        how = far, config, LOW_PRIORITY if config.readers > 1 and not small_only else 0
        self.process = spawning.Process(target=_read_all, args=how, daemon=True)
        self.process.start()
        far.close()
        self.small_only = small_only
        self.since: float | None = None  # when it was given the request that it reads

    def takes(self, size: int) -> bool:
        """Whether it reads requests of so many bytes."""
        return size <= SMALL or not self.small_only

    def ask(self, kind: type[Call], body: bytes) -> Any:
        """What it makes of a request; waits for that. Raises `EOFError` or `OSError` if it dies."""
        self.pipe.send(kind)
        self.pipe.send_bytes(body)
        return self.pipe.recv()

    def end(self) -> None:
        """Kill it, whatever it is doing."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Readers:
    """The processes that read a server's requests."""

    def __init__(self, config: ServeConfig) -> None:
        """They start at once, and read when they have been told the model's sizes."""
        self.config = config
        self.seconds = min(config.timeout_seconds, READ_SECONDS)
        self.sizes: ModelSizes | None = None
        several = config.readers > 1
        self.all = [_Reader(config, several and i == 0) for i in range(config.readers)]
        self.idle = list(self.all)  # the one for small requests first
        # Each waits for a reader's answer, which no loop can be told of on every system.
        self.threads = ThreadPoolExecutor(config.readers, thread_name_prefix="reader")
        self._waiting: list[tuple[int, int, asyncio.Future[_Reader]]] = []  # by size
        self._number = itertools.count()

    def begin(self, sizes: ModelSizes) -> None:
        """Tell them what they read for."""
        self.sizes = sizes
        for reader in self.all:
            reader.pipe.send(sizes)

    async def read(self, kind: type[Call], body: bytes) -> Asked:
        """The request that a body holds. Raises `ApiError`."""
        reader = await self._take(len(body))
        loop = asyncio.get_running_loop()
        reader.since = time.monotonic()
        asked = loop.run_in_executor(self.threads, reader.ask, kind, body)
        limit = loop.call_later(self.seconds, reader.process.kill)

        def done(future: asyncio.Future[Any]) -> None:
            limit.cancel()
            if future.cancelled() or future.exception():
                reader.end()
            self._free(reader)

        asked.add_done_callback(done)
        began = reader.since
        try:
            # Whoever asks may leave: it goes on reading then, and is free when it is done.
            found = await asyncio.shield(asked)
        except (EOFError, OSError):
            if time.monotonic() - began >= self.seconds:
                raise ApiError(
                    504,
                    f"reading this request took longer than {self.seconds:g} seconds; send less "
                    "at once",
                    code="timeout",
                    kind="server_error",
                ) from None
            found = "a process that reads requests died; another one has taken its place"
        if isinstance(found, str):
            _log.error("reading a request failed: %s", found)
            raise ApiError(500, "the server failed; see its log", kind="server_error")
        if isinstance(found, ApiError):
            raise found
        read: Asked = found
        return read

    def stuck(self) -> bool:
        """Whether one of them has read at one request for half of the time that it may take."""
        now = time.monotonic()
        times = [now - reader.since for reader in self.all if reader.since is not None]
        return max(times, default=0.0) > self.seconds / 2

    def close(self) -> None:
        """End them, whatever they are doing."""
        for reader in self.all:
            reader.process.kill()
        self.threads.shutdown()  # each has its answer or the end of the pipe now
        for reader in self.all:
            reader.end()

    async def _take(self, size: int) -> _Reader:
        for reader in self.idle:
            if reader.takes(size):
                self.idle.remove(reader)
                return self._living(reader)
        future: asyncio.Future[_Reader] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (size, next(self._number), future))
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._free(future.result())
            raise

    def _free(self, reader: _Reader) -> None:
        """Give a reader its next request, or one in its place if it has died."""
        reader = self._living(reader)
        reader.since = None
        while self._waiting and reader.takes(self._waiting[0][0]):
            _, _, future = heapq.heappop(self._waiting)
            if not future.done():
                future.set_result(reader)
                return
        self.idle.insert(0 if reader.small_only else len(self.idle), reader)

    def _living(self, reader: _Reader) -> _Reader:
        """The reader, or another one if it has died."""
        if reader.process.is_alive():
            return reader
        reader.end()
        new = _Reader(self.config, reader.small_only)
        new.pipe.send(self.sizes)
        self.all[self.all.index(reader)] = new
        return new


def _read_all(pipe: Connection, config: ServeConfig, niceness: int) -> None:
    """Read requests until the pipe ends: what one of these processes does."""
    os.nice(niceness)
    for sent in (signal.SIGINT, signal.SIGTERM):  # the server says when it is time to end
        signal.signal(sent, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        inputs = Inputs(pipe.recv(), config)
        _warm_up(inputs)
        while True:
            kind, body = pipe.recv(), pipe.recv_bytes()
            pipe.send(_answer(inputs, kind, body))
    except (EOFError, OSError):
        return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    # Whatever the reader is in the middle of, nobody waits for it now.
    signal.raise_signal(signal.SIGKILL)


def _warm_up(inputs: Inputs) -> None:
    """Load what is loaded late."""
    with suppress(ApiError):  # of a model that cannot chat
        inputs.prompts(parse(ChatRequest, FIRST))


def _answer(inputs: Inputs, kind: type[Call], body: bytes) -> Asked | ApiError | str:
    try:
        return inputs.read(kind, body)
    except ApiError as error:
        return error
    except Exception:  # a fault of this program, which must not end the reader
        return traceback.format_exc()
