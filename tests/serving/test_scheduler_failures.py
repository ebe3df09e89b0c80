"""The model's thread when the model fails: who is told, who goes on, and when it ends."""

from typing import Any

import numpy as np
import pytest
from serving import documents, go, to_write, whole

from gem_ds.inference.gem_model import GemModel
from gem_ds.serving.jobs import Ticket, ToEmbed
from gem_ds.serving.scheduler import Worker
from gem_ds.serving.schemas import ApiError

pytest_plugins = ["workers"]


def test_a_failure_is_told_and_the_others_go_on(
    gem: GemModel, made: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def do() -> Any:
        worker = made()
        worker.start()
        bad = Ticket()
        worker.submit([ToEmbed([np.array([0, 10**6, 400], dtype=np.int32)], bad)])
        with pytest.raises(ApiError, match="the model failed") as error:
            await bad.next()
        assert error.value.status == 500
        wrong = Ticket()
        job = to_write(gem, "x", 5, wrong)
        job.prompt = np.array([0, 10**6], dtype=np.int32)
        worker.submit([job])
        with pytest.raises(ApiError, match="the model failed"):
            await wrong.next()
        good, text = Ticket(), Ticket()
        worker.submit([ToEmbed(documents(gem, ["fine"]), good), to_write(gem, "The", 8, text)])
        assert worker.answers(60)
        return await good.next(), await whole(text)

    vectors, (text, *_) = go(do)
    expected = gem.encode(["fine"], normalize=False)
    assert np.allclose(vectors, expected, atol=1e-4)
    assert text == gem.generate("The", max_new_tokens=8)
    assert "IndexError" in caplog.text


def test_a_failure_of_what_leaves_is_survived(
    gem: GemModel, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU that is out of memory raises."""

    async def do() -> Any:
        worker = made()
        gone, stays = Ticket(), Ticket()
        worker.submit([to_write(gem, "The", 400, gone), to_write(gem, "A", 400, stays)])
        worker.start()
        await gone.next()
        with monkeypatch.context() as broken:
            broken.setattr(type(worker.batch), "leave", _fails)
            gone.cancelled = True
            with pytest.raises(ApiError, match="the model failed"):
                await whole(stays)
        worker.submit([to_write(gem, "The", 8, text := Ticket())])
        return await whole(text)

    assert go(do)[0] == gem.generate("The", max_new_tokens=8)


def test_a_model_that_fails_for_good_ends_and_says_so_to_all(
    gem: GemModel, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def do() -> Worker:
        worker = made(max_together=1)
        monkeypatch.setattr(worker.batch, "step", _fails)
        monkeypatch.setattr(gem, "encode", _fails)
        tickets = [Ticket() for _ in range(3)]
        worker.submit([to_write(gem, "The", 8, ticket) for ticket in tickets])
        worker.start()
        for ticket in tickets:
            with pytest.raises(ApiError, match="the model failed"):
                await whole(ticket)
        worker.join(10)
        worker.submit([to_write(gem, "The", 8, late := Ticket())])
        with pytest.raises(ApiError, match="the model failed"):
            await late.next()
        return worker

    worker = go(do)
    assert worker.failed
    assert not worker.answers(60)


def _fails(*_: Any) -> None:
    raise RuntimeError("CUDA error: out of memory")


def test_whether_it_answers(gem: GemModel, made: Any) -> None:
    worker = made()
    assert not worker.answers(60)  # not begun
    worker.start()
    assert worker.answers(60)
    worker.close()
    assert not worker.answers(60)
