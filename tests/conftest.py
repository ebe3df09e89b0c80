"""Fixtures that several test modules use."""

from pathlib import Path

import pytest
from helpers import save_tokenizer


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small byte-level BPE tokenizer (<|bos|>, <|eos|>); do not write in it."""
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer") / "base")
