"""Vectors of texts as files: an array for NumPy, or a table with ids.

Shapes: N texts, C dimensions.
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gem_ds.errors import InputError
from gem_ds.files import replacing

Vectors = npt.NDArray[Any]
NPY, PARQUET = ".npy", ".parquet"


def check(path: Path) -> None:
    """Raise `InputError` unless vectors can be written to a file of this ending."""
    if path.suffix not in (NPY, PARQUET):
        raise InputError(f"--output {path}: vectors are written as {NPY} or {PARQUET}; name one")
    if not path.parent.is_dir():
        raise InputError(f"--output {path}: there is no folder {path.parent}; make it")


def write(path: Path, ids: Sequence[str], vectors_NC: Vectors, suffix: str) -> None:
    """Write vectors to a file in the format of that ending; it appears whole or not at all."""
    with replacing(path) as partial:
        if suffix == NPY:
            with partial.open("wb") as file:
                np.save(file, vectors_NC)
        else:
            pq.write_table(_table(ids, vectors_NC), partial)


def join(parts: Sequence[Path], path: Path) -> None:
    """Write the vectors of files of one format, one after another, to one file of that format."""
    with replacing(path) as partial:
        if path.suffix == NPY:
            arrays = [np.load(part, mmap_mode="r") for part in parts]
            shape = sum(map(len, arrays)), *arrays[0].shape[1:]
            whole = np.lib.format.open_memmap(partial, "w+", arrays[0].dtype, shape)
            at = 0
            for array in arrays:
                whole[at : at + len(array)] = array
                at += len(array)
            whole.flush()
            return
        with pq.ParquetWriter(partial, pq.read_schema(parts[0])) as writer:
            for part in parts:
                writer.write_table(pq.read_table(part))


def to_stdout(vectors_NC: Vectors) -> None:
    """Write a .npy to standard output."""
    buffer = io.BytesIO()  # numpy writes to no pipe
    np.save(buffer, vectors_NC)
    sys.stdout.buffer.write(buffer.getbuffer())
    sys.stdout.buffer.flush()


def _table(ids: Sequence[str], vectors_NC: Vectors) -> pa.Table:
    """Columns ``id`` (string) and ``embedding`` (list of float, int8 or uint8)."""
    n, size = vectors_NC.shape
    offsets = np.arange(0, (n + 1) * size, size) if size else np.zeros(n + 1)
    flat = pa.array(np.ascontiguousarray(vectors_NC).ravel())
    embedding = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), flat)
    return pa.table({"id": pa.array(list(ids), pa.string()), "embedding": embedding})
