"""Files of tensors, and all of an export, have the mode that the umask gives."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from exports import TEXTS, export_adapter
from helpers import small_disk
from safetensors.torch import load_file

from gem_ds import GemModel
from gem_ds.model import lazy_tensors


@pytest.fixture(params=[0o022, 0o027, 0o002, 0o077])
def expected(request: pytest.FixtureRequest) -> Iterator[int]:
    """The mode of a file under an umask that holds meanwhile."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_a_file_has_the_mode_of_any_other(expected: int, tmp_path: Path) -> None:
    lazy_tensors.save({"x": torch.ones(3)}, tmp_path / "x.safetensors")
    assert mode(tmp_path / "x.safetensors") == expected
    assert load_file(tmp_path / "x.safetensors")["x"].tolist() == [1, 1, 1]


def test_all_files_of_an_export_and_memories_do(
    expected: int, tokenizer_dir: Path, tmp_path: Path
) -> None:
    _, folder = export_adapter(tokenizer_dir, tmp_path, k=2)
    GemModel.from_pretrained(folder).compress(TEXTS[0]).save(tmp_path / "m.safetensors")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert {str(path) for path in files if mode(path) != expected} == set()


def test_a_full_disk_is_the_error_of_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk, pytest.raises(OSError, match="No space left"):
        lazy_tensors.save({"x": torch.ones(10**6)}, disk / "x.safetensors")
