"""Fixtures of modules that name this one in `pytest_plugins`: a model, and threads that own it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import export_to_serve

from gem_ds.inference.gem_model import GemModel
from gem_ds.serving.config import ServeConfig
from gem_ds.serving.metrics import Metrics
from gem_ds.serving.scheduler import Worker


@pytest.fixture(scope="module")
def gem(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> GemModel:
    folder = export_to_serve(tokenizer_dir, tmp_path_factory.mktemp("batches"))
    return GemModel.from_pretrained(folder, device="cpu")


@pytest.fixture
def made(gem: GemModel) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def make(**flags: Any) -> Worker:
        config = ServeConfig(model="x", **flags)
        workers.append(Worker(gem, config, Metrics()))
        return workers[-1]

    yield make
    for worker in workers:
        if worker.is_alive():
            worker.close()
