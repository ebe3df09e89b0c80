"""The thread that owns the model, and what it does next.

Requests come and go while it works. Texts to embed that wait are read as one flat stream, and texts
to write are written together: whoever waits joins between two steps. Both are taken by `Turns`.
Where all places are taken, a text that waits takes the place of one whose client or request has
more of them, or as soon as that has written a while; that one keeps what it has written, and is
read again at its next turn. Where there is both to embed and to write, the kind that has had less
of the model's time is next, so that neither starves.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from gem_ds.corpus.tokenization import Ids
from gem_ds.inference import generation
from gem_ds.inference.gem_model import GemModel, sharing_weights
from gem_ds.inference.generation_batch import DecodingBatch, places
from gem_ds.serving.config import ServeConfig
from gem_ds.serving.jobs import Shares, Ticket, ToEmbed, ToWrite, Turns, Writer, gives_way
from gem_ds.serving.metrics import Metrics
from gem_ds.serving.schemas import ApiError

EMBED, WRITE = "embed", "write"
TURN = 0.1  # seconds that a stream of texts takes about: whoever comes meanwhile waits for it
LEAST_TOKENS = 64  # of a stream
_log = logging.getLogger("uvicorn.error")  # the server's log


class Worker(threading.Thread):
    """Embeds and writes for all requests, from `start` to `close`."""

    def __init__(self, gem: GemModel, config: ServeConfig, metrics: Metrics) -> None:
        super().__init__(name="model", daemon=True)
        self.gem, self.config, self.metrics = gem, config, metrics
        self.batch = DecodingBatch(sharing_weights(gem.lm))
        self.ends = generation.end_tokens(gem.lm, gem.vocab)
        self.writers: list[Writer] = []  # of the texts of the batch, in its order
        self.to_embed: Turns[tuple[ToEmbed, int]] = Turns()  # a request, and which of its texts
        self.embedding: set[Ticket] = set()  # whose texts are in the stream under way
        self.to_write: Turns[Writer] = Turns()
        self.most_tokens = gem.encoder.at_once(config.max_batch_tokens)
        self.at_once = LEAST_TOKENS  # tokens that are read in about `TURN`; found out in use
        self.spent = {EMBED: 0.0, WRITE: 0.0}  # seconds, while there was both to do
        self.shares = Shares()
        # Where a step's time grows with its texts; on a GPU it hardly does.
        self.shares_time = gem.lm.device.type == "cpu"
        self.since: float | None = None  # when the turn began that is under way
        self._came: deque[ToEmbed | ToWrite] = deque()
        self._wake = threading.Condition()
        self._closing = self.failed = False

    def submit(self, jobs: Sequence[ToEmbed | ToWrite]) -> None:
        """Have something done, from any thread."""
        with self._wake:
            self._came.extend(jobs)
            self._wake.notify()
        if self.failed:
            self._give_up()

    def close(self, timeout: float | None = None) -> None:
        """End when everything is done, and wait for that, or for so many seconds."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self.join(timeout)

    def answers(self, within: float) -> bool:
        """Whether it lives, and is not in a turn for longer than so many seconds."""
        since = self.since
        return self.is_alive() and (since is None or time.monotonic() - since < within)

    def run(self) -> None:
        """Do turns until `close`, or until the model has `failed` for good."""
        try:
            while self._fetch():
                self._turn()
        except Exception:
            _log.exception("the model works no more, so the server ends")
            self.failed = True
            self._give_up()

    def _turn(self) -> None:
        """Do what is next. Where it fails, those whose it was are told, and the others go on."""
        self.since = time.monotonic()
        kind: str | None = WRITE  # whoever leaves may leave the batch of what is written
        try:
            self._drop_cancelled()
            clients = self._clients(EMBED) | self._clients(WRITE)
            next_clients = self.shares.next(clients)
            if self.shares_time:
                clients = next_clients
            kind = self._next_kind(clients)
            if kind == EMBED:
                self._embed(clients)
            elif kind == WRITE:
                self._write(clients)
        except Exception:
            _log.exception("the model failed")
            self._fail(kind)
            self.gem.encode("Is it ready?")  # if not, it never will be
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
                    for i in range(len(job.documents)):
                        self.to_embed.add(job.ticket, (job, i))
                else:
                    self.to_write.add(job.ticket, Writer(job))
        return self._has(EMBED) or self._has(WRITE) or not self._closing

    def _has(self, kind: str) -> bool:
        return bool(self.to_embed if kind == EMBED else self.to_write or self.writers)

    def _clients(self, kind: str) -> set[str]:
        if kind == EMBED:
            return self.to_embed.clients
        return self.to_write.clients | {writer.ticket.client for writer in self.writers}

    def _next_kind(self, clients: set[str]) -> str | None:
        kinds = [kind for kind in (WRITE, EMBED) if clients & self._clients(kind)]
        return min(kinds, key=lambda kind: self.spent[kind]) if kinds else None

    def _drop_cancelled(self) -> None:
        for turns in (self.to_embed, self.to_write):
            for ticket in turns.tickets():
                if ticket.cancelled:
                    turns.drop(ticket)
        self._leave([i for i, writer in enumerate(self.writers) if writer.ticket.cancelled])

    def _fail(self, kind: str | None) -> None:
        """Tell all whose work was under way that it came to nothing."""
        failed = self.embedding
        if kind != EMBED:
            failed = {writer.ticket for writer in self.writers}
            self.writers = []
            self.batch = DecodingBatch(self.batch.lm)
        for ticket in failed:
            self.to_embed.drop(ticket)
            self.to_write.drop(ticket)
            ticket.push(_failure())

    def _give_up(self) -> None:
        """Tell everybody that nothing is done any more."""
        with self._wake:
            tickets = {job.ticket for job in self._came} | {w.ticket for w in self.writers}
            tickets |= {*self.embedding, *self.to_embed.tickets(), *self.to_write.tickets()}
            self._came.clear()
        for ticket in tickets:
            ticket.push(_failure())

    def _embed(self, clients: set[str]) -> None:
        began = time.monotonic()
        taken: list[tuple[ToEmbed, int]] = []
        documents: list[Ids] = []
        tokens = 0
        while texts := next(self.to_embed.waiting(clients), None):
            job, i = texts[0]
            if documents and tokens + len(job.documents[i]) > self.at_once:
                break
            taken.append(self.to_embed.take(job.ticket))
            documents.append(job.documents[i])
            tokens += len(job.documents[i])
        self.embedding = {job.ticket for job, _ in taken}
        vectors_DC = self.gem.encoder.embed(documents).float().cpu().numpy()
        for (job, i), vector in zip(taken, vectors_DC, strict=True):
            job.rows[i] = vector
            if len(job.rows) == len(job.documents):
                job.ticket.push(np.stack([row for _, row in sorted(job.rows.items())]))
        self.embedding = set()
        self._has_read(EMBED, [job.ticket for job, _ in taken], tokens, time.monotonic() - began)

    def _has_read(self, what: str, tickets: Sequence[Ticket], tokens: int, seconds: float) -> None:
        """Charge for a stream of texts, and choose the length of the next one by its speed."""
        self.shares.charge([ticket.client for ticket in tickets], seconds)
        self.metrics.batch(what, len(tickets), tokens)
        like_this = int(tokens * TURN / seconds)
        self.at_once = min(max(like_this, LEAST_TOKENS), self.most_tokens)

    def _write(self, clients: set[str]) -> None:
        writing = [i for i, w in enumerate(self.writers) if w.ticket.client in clients]
        if writing:
            self._step(writing)
        began = time.monotonic()
        new = self._joining(clients)
        if new:
            first = len(self.writers)
            self.writers += new
            texts = [writer.join(self.gem) for writer in new]
            logits_DV = self.batch.join(texts, [writer.final for writer in new])
            tickets = [writer.ticket for writer in new]
            self._has_read("read", tickets, sum(map(len, texts)), time.monotonic() - began)
            self._advance(range(first, len(self.writers)), logits_DV)
        elif not writing and self.writers:  # who is behind waits for a place of these
            self._step(range(len(self.writers)))

    def _step(self, numbers: Sequence[int]) -> None:
        """A token more for the writers with these numbers."""
        began = time.monotonic()
        writers = [self.writers[i] for i in numbers]
        logits_BV = self.batch.step([writer.job.tokens[-1] for writer in writers], numbers)
        self.shares.charge([w.ticket.client for w in writers], time.monotonic() - began)
        self.metrics.batch(WRITE, len(writers), len(writers))
        self._advance(numbers, logits_BV)

    def _joining(self, clients: set[str]) -> list[Writer]:
        """Who of those that wait has room beside the others, or is given it."""
        new: list[Writer] = []
        budget = self.at_once
        more = True
        while more:
            more = False
            for texts in self.to_write.waiting(clients):
                for text in texts:
                    if new and text.length > budget:
                        return new
                    if self._has_room(text, new):
                        new.append(self.to_write.take(text.ticket))
                        budget -= text.length
                        more = True
                        break
                    others = [writer.ticket for writer in (*self.writers, *new)]
                    if text.ticket.client not in {ticket.client for ticket in others}:
                        return new  # it is given room in a while, unless others come before it
                    if text.ticket not in others:
                        break
        return new

    def _has_room(self, text: Writer, new: Sequence[Writer]) -> bool:
        """Whether a text has room beside the batch and those that join it. Who of the batch gives
        way for it waits again."""
        stay = list(self.writers)
        while not self._fit(together := [*stay, *new, text]):
            giving = gives_way(text.ticket, stay, [one.ticket for one in together[:-1]])
            if giving is None:
                return False
            stay.remove(giving)
        leaving = [i for i, writer in enumerate(self.writers) if writer not in stay]
        for i in leaving:
            self.to_write.add(self.writers[i].ticket, self.writers[i], first=True)
        self._leave(leaving)
        return True

    def _fit(self, texts: Sequence[Writer]) -> bool:
        """Whether so many texts can be written together; one always can."""
        taken = places([text.final for text in texts])
        few = len(texts) <= self.config.max_together and taken <= self.config.max_cache_tokens
        return few or len(texts) == 1

    def _advance(self, numbers: Sequence[int], logits: Tensor) -> None:
        """Give the writers with these numbers their next tokens."""
        writers = [self.writers[i] for i in numbers]
        tokens = generation.choose([writer.chooser for writer in writers], logits)
        done = [
            i
            for i, writer, token in zip(numbers, writers, tokens, strict=True)
            if writer.take(token, self.ends)
        ]
        self._leave(done)

    def _leave(self, gone: Sequence[int]) -> None:
        if gone:
            self.batch.leave(gone)
            self.writers = [w for i, w in enumerate(self.writers) if i not in set(gone)]


def _failure() -> ApiError:
    return ApiError(500, "the model failed; see the server's log", kind="server_error")
