"""The model's thread: who is next, who joins, who leaves, and what a failure takes with it."""

import asyncio
import time
from typing import Any

import numpy as np
import pytest
from serving import counts, documents, go, to_write, whole

from gem_ds.inference.gem_model import GemModel
from gem_ds.serving.jobs import Ticket, ToEmbed
from gem_ds.serving.scheduler import EMBED, LEAST_TOKENS, TURN, WRITE, Worker

pytest_plugins = ["workers"]


def test_what_is_written_together_is_what_is_written_alone(gem: GemModel, made: Any) -> None:
    prompts = ["The string", "def f", "x", "A list of words is", "é", "return the"]
    hows: list[Any] = [
        {},
        {"temperature": 0.8, "seed": 7},
        {"temperature": 1.0, "top_p": 0.5, "seed": 1},
    ]

    async def do() -> list[Any]:
        worker = made(max_together=4)  # so that some must wait for others
        tickets = [Ticket() for _ in prompts]
        jobs = [
            to_write(gem, text, 10 + 5 * i, tickets[i], **hows[i % 3])
            for i, text in enumerate(prompts)
        ]
        worker.submit(jobs)
        worker.start()
        return await asyncio.gather(*map(whole, tickets))

    for i, (text, reason, tokens) in enumerate(go(do)):
        expected = gem.generate(prompts[i], max_new_tokens=10 + 5 * i, **hows[i % 3])
        assert text == expected
        assert (reason, tokens) == ("length", 10 + 5 * i) or reason == "stop"


def test_a_stream_is_as_long_as_its_time_allows(
    gem: GemModel, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, lengths = gem.encoder.embed, []

    def slow(texts: Any) -> Any:
        lengths.append(sum(map(len, texts)))
        time.sleep(TURN * lengths[-1] / 200)  # 200 tokens a turn
        return embed(texts)

    monkeypatch.setattr(gem.encoder, "embed", slow)

    async def do() -> Any:
        worker = made()
        ticket = Ticket()
        worker.submit([ToEmbed(documents(gem, ["one two three four"] * 300), ticket)])
        worker.start()
        return await ticket.next()

    assert len(go(do)) == 300
    assert max(lengths) < 250
    assert np.median(lengths) > LEAST_TOKENS * 1.5, "it is found out how many it can be"


def test_a_small_request_does_not_wait_for_a_large_one(gem: GemModel, made: Any) -> None:
    async def do() -> tuple[float, float, Any, Any]:
        worker = made(max_batch_tokens=200)
        large, small = Ticket(), Ticket()
        many = documents(gem, [f"text number {i} of many" for i in range(200)])
        worker.submit([ToEmbed(many, large), ToEmbed(many[5:6], small)])
        worker.start()
        vector = await small.next()
        so_far = counts(worker, EMBED)
        vectors = await large.next()
        return so_far, counts(worker, EMBED), vector, vectors

    so_far, in_all, vector, vectors = go(do)
    assert so_far < 4 < in_all
    assert vectors.shape == (200, 32)
    assert np.allclose(vector[0], vectors[5], atol=1e-5)


@pytest.mark.parametrize("first", [EMBED, WRITE])
def test_neither_kind_starves_the_other(gem: GemModel, made: Any, first: str) -> None:
    async def do() -> tuple[float, float]:
        worker = made(max_batch_tokens=50)
        embedding, writing = Ticket(), Ticket()
        few = first == EMBED  # whose request is short
        many = documents(gem, ["a text to embed"] * (40 if few else 2000))
        worker.submit([ToEmbed(many, embedding)])
        worker.submit([to_write(gem, "The", 480 if few else 20, writing)])
        worker.start()
        await (embedding.next() if few else whole(writing))
        done = counts(worker, EMBED), counts(worker, WRITE)
        embedding.cancelled = writing.cancelled = True
        return done

    embedded, written = go(do)
    if first == EMBED:
        assert written < 300
    else:
        assert embedded < 300
    assert embedded > 1
    assert written > 1


def test_what_is_cancelled_ends(gem: GemModel, made: Any) -> None:
    async def do() -> Worker:
        worker = made(max_batch_tokens=100)
        gone, stays, embedding = Ticket(), Ticket(), Ticket()
        worker.submit([to_write(gem, "The", 490, gone), to_write(gem, "A", 60, stays)])
        worker.submit([ToEmbed(documents(gem, ["some text"] * 2000), embedding)])
        worker.start()
        await gone.next()
        gone.cancelled = embedding.cancelled = True
        await whole(stays)
        return worker

    worker = go(do)
    worker.close()
    assert counts(worker, WRITE) < 200
    assert counts(worker, EMBED) < 200
    assert not worker.batch.kept


def test_the_cache_holds_no_more_than_it_may(gem: GemModel, made: Any) -> None:
    async def do() -> Worker:
        worker = made(max_cache_tokens=256)  # two texts of up to 128 tokens
        tickets = [Ticket() for _ in range(6)]
        worker.submit([to_write(gem, f"Text {i}", 80, ticket) for i, ticket in enumerate(tickets)])
        worker.submit([to_write(gem, "Long", 400, last := Ticket())])  # more, so alone
        worker.start()
        await asyncio.gather(*map(whole, [*tickets, last]))
        return worker

    worker = go(do)
    for most, all_of_them in (("1.0", False), ("2.0", True)):
        about = {"kind": WRITE, "le": most}
        found = worker.metrics.registry.get_sample_value("gem_batch_texts_bucket", about)
        assert (found == counts(worker, WRITE)) == all_of_them


@pytest.mark.parametrize("requests", [1, 40])
def test_a_short_text_does_not_wait_for_many_long_ones(
    gem: GemModel, made: Any, requests: int
) -> None:
    """Of one request, or of as many clients as there are texts."""

    async def do() -> tuple[float, str]:
        worker = made(max_together=8)
        many = [Ticket(str(i)) for i in range(requests)]
        worker.submit(
            [to_write(gem, "The", 480, many[i % requests], temperature=1.0) for i in range(40)]
        )
        worker.start()
        await many[0].next()
        before = counts(worker, WRITE)
        short = Ticket("new")
        worker.submit([to_write(gem, "A list", 2, short)])
        text, *_ = await whole(short)
        for ticket in many:
            ticket.cancelled = True
        return counts(worker, WRITE) - before, text

    steps, text = go(do)
    assert steps < (20 if requests == 1 else 480)
    assert text == gem.generate("A list", max_new_tokens=2)


def test_texts_that_gave_way_go_on_where_they_were(gem: GemModel, made: Any) -> None:
    how: Any = {"temperature": 0.9, "seed": 5}

    async def do() -> tuple[list[Any], float]:
        worker = made(max_together=2)
        many = [Ticket("one") for _ in range(2)]
        worker.submit([to_write(gem, f"Text {i}", 150, t, **how) for i, t in enumerate(many)])
        worker.start()
        began = [await ticket.next() for ticket in many]
        worker.submit([to_write(gem, "Text 2", 150, other := Ticket("two"), **how)])
        texts = [*await asyncio.gather(*map(whole, [*many, other]))]
        for i, piece in enumerate(began):
            texts[i] = (piece.text + texts[i][0], *texts[i][1:])
        read = worker.metrics.registry.get_sample_value("gem_batch_texts_sum", {"kind": "read"})
        return texts, read

    texts, read = go(do)
    assert read > 3, "somebody gave way, and was read again"
    for i, (text, *_) in enumerate(texts):
        assert text == gem.generate(f"Text {i}", max_new_tokens=150, **how)


def test_a_text_that_needs_all_places_gets_them(gem: GemModel, made: Any) -> None:
    async def do() -> None:
        worker = made(max_cache_tokens=512)
        small = [Ticket("many") for _ in range(6)]
        worker.submit([to_write(gem, "Text", 100, ticket, temperature=1.0) for ticket in small])
        worker.start()
        await small[0].next()
        large = Ticket("one")
        worker.submit([to_write(gem, "Long", 480, large, temperature=1.0)])
        more = asyncio.ensure_future(asyncio.gather(*map(whole, small[1:])))
        await whole(large)
        await more

    go(do)
