"""Vectors are read by NumPy and Arrow as they were written, part by part or at once."""

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from gem_ds.errors import InputError
from gem_ds.inference import resumable_parts

VECTORS = np.arange(12).reshape(4, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8])
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_parts_joined_are_the_whole(tmp_path: Path, suffix: str, dtype: type) -> None:
    vectors, parts = VECTORS.astype(dtype), [tmp_path / f"{i}{suffix}" for i in range(2)]
    ids = ["a", "é", "c", "d"]
    for part, rows in zip(parts, (slice(0, 3), slice(3, 4)), strict=True):
        resumable_parts.write(part, ids[rows], vectors[rows], suffix)
    output = tmp_path / f"out{suffix}"
    resumable_parts.join(parts, output)
    if suffix == ".npy":
        found = np.load(output)
    else:
        table = pq.read_table(output)
        assert table.column("id").to_pylist() == ids
        found = np.stack(table.column("embedding").combine_chunks().to_numpy(zero_copy_only=False))
    assert found.dtype == dtype
    assert np.array_equal(found, vectors)
    assert len(list(tmp_path.iterdir())) == 3


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    (tmp_path / "bad.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match="pickle"):
        resumable_parts.join([tmp_path / "bad.npy"], tmp_path / "out.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.npy"]


def test_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    resumable_parts.to_stdout(VECTORS)
    sys.stdout.flush()
    assert np.array_equal(np.load(io.BytesIO(capfdbinary.readouterr().out)), VECTORS)


def test_what_cannot_be_written_is_refused_before(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"vectors are written as \.npy or \.parquet"):
        resumable_parts.check(tmp_path / "out.txt")
    with pytest.raises(InputError, match="there is no folder"):
        resumable_parts.check(tmp_path / "nowhere" / "out.npy")
