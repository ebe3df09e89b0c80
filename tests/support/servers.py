"""Fixtures of modules that name this one in `pytest_plugins`: servers, and what they serve."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Served, served
from serving import KEY, export_to_serve


@pytest.fixture(scope="module")
def server_export(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export that is trained whole and chats."""
    return export_to_serve(tokenizer_dir, tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def server(server_export: Path) -> Iterator[Served]:
    with served(server_export) as running:
        yield running


@pytest.fixture(scope="module")
def adapter_export(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with an adapter, without chats."""
    work = tmp_path_factory.mktemp("adapter")
    return export_to_serve(tokenizer_dir, work, template=None, adapter=True)


@pytest.fixture(scope="module")
def strict_server(adapter_export: Path) -> Iterator[Served]:
    """One with a key and small limits."""
    flags = ["--max-body-mb", "0.05", "--max-inputs", "4", "--max-queue", "3"]
    flags += ["--timeout-seconds", "60", "--max-new-tokens", "400", "--long-texts", "cut"]
    with served(adapter_export, *flags, GEM_API_KEY=KEY) as running:
        yield running
