"""The thread that owns the model, and what it does next.

Requests come and go while it works. Texts to embed that wait are read as one flat stream, a text
of each request in turn, so that a request of one text does not wait for one of thousands. Texts to
write are written together: whoever waits joins between two steps. Where there is both, the kind
that has had less of the model's time is next, so that neither starves.
"""

import asyncio
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from gem_ds import decoding
from gem_ds.decoding import Chooser, Sampling
from gem_ds.decoding_batch import DecodingBatch
from gem_ds.encode import Vectors
from gem_ds.inference import GemModel, sharing_weights
from gem_ds.serving_config import ServeConfig
from gem_ds.serving_metrics import Metrics
from gem_ds.serving_schemas import ApiError
from gem_ds.tokenization import Ids
from gem_ds.written import Written

EMBED, WRITE = "embed", "write"
SHARED = 8  # where texts are being written, a stream of texts to embed is so many times shorter


class Piece(NamedTuple):
    """What has been written of a text since the last piece."""

    choice: int  # which of the request's texts
    text: str
    tokens: int  # written in all so far
    reason: str | None  # why it ended, if it did: ``stop`` or ``length``


class Ticket:
    """A request's end of what the model does for it: events to wait for, and a way to give up."""

    def __init__(self) -> None:
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Any] = asyncio.Queue()

    def push(self, event: Any) -> None:
        """Hand an event over, from the model's thread."""
        if self.cancelled:
            return
        with suppress(RuntimeError):  # the loop has ended, and so has whoever waited
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> Any:
        """The next event; one that is an `ApiError` is raised."""
        event = await self._events.get()
        if isinstance(event, ApiError):
            raise event
        return event


@dataclass(eq=False)
class ToEmbed:
    """Documents ``bos text | summary``, and their embeddings as they come."""

    documents: Sequence[Ids]
    ticket: Ticket
    rows: list[Vectors] = field(default_factory=list)
    begun: int = 0


@dataclass(eq=False)
class ToWrite:
    """One text to write behind a prompt, of the request's texts the one with this number."""

    prompt: Ids
    n_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    choice: int
    ticket: Ticket
    tokens: list[int] = field(default_factory=list)


class _Writer:
    """A text that is being written."""

    def __init__(self, job: ToWrite, gem: GemModel) -> None:
        self.job = job
        self.chooser = Chooser(gem.lm, job.sampling)
        self.written = Written(gem.vocab, job.prompt, job.stop)

    def take(self, token: int, ends: set[int]) -> bool:
        """Tell the request what a token adds; whether it was the last."""
        self.job.tokens.append(token)
        text = "" if token in ends else self.written.add(token)
        reason = None
        if token in ends or self.written.stopped:
            reason = "stop"
        elif len(self.job.tokens) == self.job.n_tokens:
            reason = "length"
        if reason is not None:
            text += self.written.end()
        if text or reason:
            self.job.ticket.push(Piece(self.job.choice, text, len(self.job.tokens), reason))
        return reason is not None


class Worker(threading.Thread):
    """Embeds and writes for all requests, from `start` to `close`."""

    def __init__(self, gem: GemModel, config: ServeConfig, metrics: Metrics) -> None:
        super().__init__(name="model", daemon=True)
        self.gem, self.config, self.metrics = gem, config, metrics
        self.batch = DecodingBatch(sharing_weights(gem.lm))
        self.ends = decoding.end_tokens(gem.lm, gem.vocab)
        self.writers: list[_Writer] = []  # of the texts of the batch, in its order
        self.to_embed: deque[ToEmbed] = deque()
        self.embedding: list[ToEmbed] = []  # whose documents are in the stream under way
        self.to_write: deque[ToWrite] = deque()
        self.spent = {EMBED: 0.0, WRITE: 0.0}  # seconds, while there was both to do
        self.since: float | None = None  # when the turn began that is under way
        self._came: deque[ToEmbed | ToWrite] = deque()
        self._wake = threading.Condition()
        self._closing = False

    def submit(self, jobs: Sequence[ToEmbed | ToWrite]) -> None:
        """Have something done, from any thread."""
        with self._wake:
            self._came.extend(jobs)
            self._wake.notify()

    def close(self) -> None:
        """End when everything is done, and wait for that."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self.join()

    def answers(self, within: float) -> bool:
        """Whether it lives, and is not in a turn for longer than so many seconds."""
        since = self.since
        return self.is_alive() and (since is None or time.monotonic() - since < within)

    def run(self) -> None:
        """Do turns until `close`."""
        while self._fetch():
            self.since = time.monotonic()
            self._drop_cancelled()
            kind = self._next_kind()
            try:
                if kind == EMBED:
                    self._embed()
                elif kind == WRITE:
                    self._write()
            except Exception:  # whatever it is must not end the server for all others
                traceback.print_exc()
                self._fail(kind)
            if self._has(EMBED) and self._has(WRITE):
                self.spent[str(kind)] += time.monotonic() - self.since
            else:
                self.spent = dict.fromkeys(self.spent, 0.0)
            self.since = None

    def _fetch(self) -> bool:
        """Take over what has come, waiting if there is nothing to do; False at the end."""
        with self._wake:
            while not (self._came or self._has(EMBED) or self._has(WRITE) or self._closing):
                self._wake.wait()
            while self._came:
                job = self._came.popleft()
                if isinstance(job, ToEmbed):
                    self.to_embed.append(job)
                else:
                    self.to_write.append(job)
        return self._has(EMBED) or self._has(WRITE) or not self._closing

    def _has(self, kind: str) -> bool:
        return bool(self.to_embed if kind == EMBED else self.to_write or self.writers)

    def _next_kind(self) -> str | None:
        kinds = [kind for kind in (WRITE, EMBED) if self._has(kind)]
        return min(kinds, key=lambda kind: self.spent[kind]) if kinds else None

    def _drop_cancelled(self) -> None:
        self.to_embed = deque(job for job in self.to_embed if not job.ticket.cancelled)
        self.to_write = deque(job for job in self.to_write if not job.ticket.cancelled)
        self._leave([i for i, w in enumerate(self.writers) if w.job.ticket.cancelled])

    def _fail(self, kind: str | None) -> None:
        """Tell all whose work was under way that it came to nothing."""
        if kind == EMBED:
            failed = {job.ticket for job in self.embedding}
            self.to_embed = deque(job for job in self.to_embed if job.ticket not in failed)
        else:
            failed = {writer.job.ticket for writer in self.writers}
            self.writers = []
            self.batch = DecodingBatch(self.batch.lm)
        for ticket in failed:
            ticket.push(
                ApiError(500, "the model failed; see the server's log", kind="server_error")
            )

    def _embed(self) -> None:
        most = self.config.max_batch_tokens // (SHARED if self._has(WRITE) else 1)
        budget = self.gem.encoder.at_once(most)
        self.embedding = []
        documents: list[Ids] = []
        tokens = 0
        while self.to_embed:
            document = self.to_embed[0].documents[self.to_embed[0].begun]
            if documents and tokens + len(document) > budget:
                break
            job = self.to_embed.popleft()
            self.embedding.append(job)
            documents.append(document)
            tokens += len(document)
            job.begun += 1
            if job.begun < len(job.documents):
                self.to_embed.append(job)
        vectors_DC = self.gem.encoder.embed(documents).float().cpu().numpy()
        for job, vector in zip(self.embedding, vectors_DC, strict=True):
            job.rows.append(vector)
            if len(job.rows) == len(job.documents):
                job.ticket.push(np.stack(job.rows))
        self.metrics.batch(EMBED, len(documents), tokens)

    def _write(self) -> None:
        if self.writers:
            logits_BV = self.batch.step([writer.job.tokens[-1] for writer in self.writers])
            self.metrics.batch(WRITE, len(self.writers), len(self.writers))
            self._advance(0, logits_BV)
        new = self._joining()
        if new:
            prompts = [job.prompt for job in new]
            first = len(self.writers)
            self.writers += [_Writer(job, self.gem) for job in new]
            logits_DV = self.batch.join(prompts, [len(job.prompt) + job.n_tokens for job in new])
            self.metrics.batch("read", len(new), sum(map(len, prompts)))
            self._advance(first, logits_DV)

    def _joining(self) -> list[ToWrite]:
        """Who of those that wait has room beside the others; one always has room alone."""
        new: list[ToWrite] = []
        tokens = 0
        while self.to_write and len(self.writers) + len(new) < self.config.max_together:
            job = self.to_write[0]
            tokens += len(job.prompt)
            final = [len(one.prompt) + one.n_tokens for one in (*new, job)]
            full = tokens > self.config.max_batch_tokens and new
            if full or (
                self.batch.places(final) > self.config.max_cache_tokens and (new or self.writers)
            ):
                break
            new.append(self.to_write.popleft())
        return new

    def _advance(self, first: int, logits: Tensor) -> None:
        """Give the writers from `first` on their next tokens."""
        tokens = decoding.choose([writer.chooser for writer in self.writers[first:]], logits)
        done = [
            i
            for i, token in enumerate(tokens, start=first)
            if self.writers[i].take(token, self.ends)
        ]
        self._leave(done)

    def _leave(self, gone: Sequence[int]) -> None:
        if gone:
            self.batch.leave(gone)
            self.writers = [w for i, w in enumerate(self.writers) if i not in set(gone)]
