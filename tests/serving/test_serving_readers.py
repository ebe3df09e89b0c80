"""Processes that read requests: what costs much keeps nobody waiting, what is stuck is killed."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import POSITIONS, export_to_serve

from gem_ds.corpus import tokenization
from gem_ds.serving.config import ServeConfig
from gem_ds.serving.reader_processes import SMALL, Readers
from gem_ds.serving.request_tokens import ModelSizes
from gem_ds.serving.schemas import ApiError, ChatRequest, CompletionRequest, EmbeddingRequest


@pytest.fixture(scope="module")
def sizes(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelSizes:
    folder = export_to_serve(tokenizer_dir, tmp_path_factory.mktemp("readers")) / "model"
    summary = tokenization.summary_ids(tokenization.load(folder))
    return ModelSizes(folder, np.array(summary, dtype=np.int32), POSITIONS - 2, POSITIONS, 32)


@pytest.fixture
def readers(sizes: ModelSizes) -> Iterator[Readers]:
    with closing(Readers(ServeConfig(model="m", timeout_seconds=2.0))) as made:
        made.seconds = 60.0  # until they have started
        made.begin(sizes)
        yield made


def body(**more: Any) -> bytes:
    return json.dumps({"model": "m", **more}).encode()


def test_requests_come_as_ids_and_refusals_as_errors(readers: Readers) -> None:
    async def ask() -> None:
        asked = await readers.read(EmbeddingRequest, body(input=["a text", "b"]))
        assert len(asked.documents) == 2
        assert asked.call.input is None
        assert not asked.gave_ids
        asked = await readers.read(CompletionRequest, body(prompt=[5, 6], max_tokens=7))
        assert asked.n_new == [7]
        assert asked.gave_ids
        asked = await readers.read(
            ChatRequest, body(messages=[{"role": "user", "content": "a"}], stream=True)
        )
        assert asked.call.stream
        with pytest.raises(ApiError, match="there is no model 'x'") as error:
            await readers.read(EmbeddingRequest, body(model="x", input="a"))
        assert error.value.status == 404
        assert error.value.body["error"]["code"] == "model_not_found"

    asyncio.run(ask())


def test_small_requests_do_not_wait_for_large_ones(readers: Readers) -> None:
    async def ask() -> list[str]:
        done: list[str] = []

        async def one(name: str, text: bytes) -> None:
            with suppress(ApiError):
                await readers.read(EmbeddingRequest, text)
            done.append(name)

        await one("warm", body(input="a"))
        large = body(input=[[5] * 400] * 2048)
        assert len(large) > 10 * SMALL
        tasks = [asyncio.ensure_future(one("large", large)) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.gather(*tasks, *(one("small", body(input="a")) for _ in range(5)))
        return done

    done = asyncio.run(ask())
    assert done.index("large") > 5, done


def test_a_stuck_reader_is_noticed_killed_and_replaced(readers: Readers) -> None:
    async def ask() -> None:
        await asyncio.gather(*(readers.read(EmbeddingRequest, body(input="a")) for _ in range(2)))
        readers.seconds = 0.6
        first = {reader.process.pid for reader in readers.all}
        for pid in first:
            os.kill(pid, signal.SIGSTOP)  # as stuck as can be
        assert not readers.stuck()
        asked = asyncio.ensure_future(readers.read(EmbeddingRequest, body(input="a")))
        await asyncio.sleep(0.4)
        assert readers.stuck()
        with pytest.raises(ApiError, match=r"longer than 0.6 seconds; send less") as error:
            await asked
        assert error.value.status == 504
        readers.seconds = 60.0
        assert not readers.stuck()
        assert (await readers.read(EmbeddingRequest, body(input="a"))).documents
        assert len({reader.process.pid for reader in readers.all} - first) == 1

    asyncio.run(ask())
    began = time.monotonic()
    readers.close()  # one of them is stopped
    assert time.monotonic() - began < 5


def test_who_leaves_does_not_cost_a_reader(readers: Readers) -> None:
    async def ask() -> None:
        await readers.read(EmbeddingRequest, body(input="a"))
        pids = [reader.process.pid for reader in readers.all]
        for _ in range(4):
            asked = asyncio.ensure_future(readers.read(EmbeddingRequest, body(input="b")))
            await asyncio.sleep(0)
            asked.cancel()
        assert (await readers.read(EmbeddingRequest, body(input="a"))).documents
        assert [reader.process.pid for reader in readers.all] == pids

    asyncio.run(ask())


def test_a_reader_that_died_is_replaced(readers: Readers) -> None:
    async def ask() -> None:
        await readers.read(EmbeddingRequest, body(input="a"))
        dead = readers.all[0].process
        dead.kill()
        dead.join()
        assert (await readers.read(EmbeddingRequest, body(input="a"))).documents
        asked = asyncio.ensure_future(readers.read(EmbeddingRequest, body(input="a")))
        readers.all[0].process.kill()
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="the server failed"):
            await asked
        assert (await readers.read(EmbeddingRequest, body(input="a"))).documents

    asyncio.run(ask())
