"""Fixtures that several test modules use."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import tokenizer_families
import torch
from helpers import save_tokenizer


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small byte-level BPE tokenizer (<|bos|>, <|eos|>); do not write in it."""
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer") / "base")


@pytest.fixture(scope="session", params=tokenizer_families.FAMILIES)
def family_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a family's tokenizer, by the family's name; do not write in it."""
    return tokenizer_families.save(request.param, tmp_path_factory.mktemp("family") / request.param)


@pytest.fixture(autouse=True)
def _no_rank_is_left() -> Iterator[None]:
    """A test that makes this process a rank would give its port to the runs of later tests."""
    yield
    assert "RANK" not in os.environ, "run what joins the ranks in a process of its own"


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Tests marked ``gpu`` skip themselves where there is none; the summary counts them."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
