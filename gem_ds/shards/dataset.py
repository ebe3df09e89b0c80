"""Packed rows on disk: the schema, the writer, the reader and the checks between them.

A folder of shards holds ``shard-00000.parquet`` …, the tokenizer they were written with in
``tokenizer/`` and ``manifest.json``, which is written last: a folder with a manifest is complete.
What is in a row is decided by `prepare`; in which order rows are read, by `training.data_loader`.

Shapes: n tokens in a row, D documents.
"""

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gem_ds import layout
from gem_ds.errors import InputError
from gem_ds.files import replacing, sha256
from gem_ds.layout import START
from gem_ds.shards.documents import KINDS
from gem_ds.shards.manifest import FileEntry, Manifest

GROUP_TOKENS = 3 << 15  # of full rows in a Parquet row group, what is read for any row: 384 KiB
OPEN_FILES = 64  # kept open by a reader
CACHED_GROUPS = 8
AGAIN = "remove the folder and run python data_prep/shard.py again"
REDO = "remove that file and manifest.json, and run the same python data_prep/shard.py again"
COLUMNS = {
    "input_ids": pa.int32(),
    "bounds": pa.int32(),
    "records": pa.int64(),
    "kinds": pa.int8(),
}
SCHEMA = pa.schema(  # without nulls, which reads a quarter faster
    pa.field(name, pa.list_(pa.field("element", kind, nullable=False)), nullable=False)
    for name, kind in COLUMNS.items()
)
WRITING: dict[str, Any] = {
    "compression": "zstd",
    # High bytes by themselves: an eighth smaller than plain, nearly twice as fast to write.
    "column_encoding": {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in COLUMNS},
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
}


class Row(NamedTuple):
    """A packed row, not padded.

    input_ids (n,) int32; bounds (D, 4) int32, see `layout`, the documents tile ``[0, n)``;
    records (D,) int64, the record each document came from, see `corpus.records.place_of`; kinds
    (D,) int8, numbers in `documents.KINDS`.
    """

    input_ids: npt.NDArray[np.int32]
    bounds: npt.NDArray[np.int32]
    records: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int8]


@contextmanager
def writing(path: Path, row_length: int, epoch: int = 0) -> Iterator["Writer"]:
    """Writes a file, a row group at a time, which appears when the context ends without an error.

    The same rows give the same bytes. Without rows there is no file.
    """
    with ExitStack() as stack:
        writer = Writer(path, row_length, stack)
        yield writer
        writer.write_group()
    if writer.counts["rows"]:
        writer.entry = FileEntry(
            name=path.name,
            epoch=epoch,
            n_rows=writer.counts["rows"],
            n_documents=writer.counts["documents"],
            n_tokens=writer.counts["tokens"],
            n_targets=writer.counts["targets"],
            bytes=path.stat().st_size,
            sha256=sha256(path),
            footer_sha256=_footer_sha256(path),
        )


class Writer:
    """See `writing`; when that ends, `entry` is what the manifest says of the file, if any."""

    def __init__(self, path: Path, row_length: int, stack: ExitStack) -> None:
        self.entry: FileEntry | None = None
        self.counts: Counter[str] = Counter()
        self._path = path
        self._group = group_rows(row_length)
        self._rows: list[Row] = []
        self._file: Any = None
        self._stack = stack

    def add(self, row: Row) -> None:
        """Append a row."""
        self._rows.append(row)
        if len(self._rows) == self._group:
            self.write_group()

    def write_group(self) -> None:
        """Write the rows that wait for others."""
        if not self._rows:
            return
        if self._file is None:
            temporary = self._stack.enter_context(replacing(self._path))
            writer = pq.ParquetWriter(temporary, SCHEMA, **WRITING)
            self._file = self._stack.enter_context(writer)
        self._file.write_table(_table(self._rows), row_group_size=self._group)
        self.counts["rows"] += len(self._rows)
        for row in self._rows:
            self.counts["documents"] += len(row.bounds)
            self.counts["tokens"] += len(row.input_ids)
            self.counts["targets"] += layout.n_targets(row.bounds)
        self._rows = []


def group_rows(row_length: int) -> int:
    """Rows in a row group, what is read to get at one row: so many that short rows share one."""
    return max(1, GROUP_TOKENS // row_length)


def _table(rows: Sequence[Row]) -> Any:
    columns = []
    for name, kind in COLUMNS.items():
        parts = [getattr(row, name).reshape(-1) for row in rows]
        ends = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int32)
        values = np.concatenate(parts).astype(kind.to_pandas_dtype(), casting="safe", copy=False)
        columns.append(
            pa.ListArray.from_arrays(
                _array(ends, pa.int32()), _array(values, kind), type=SCHEMA.field(name).type
            )
        )
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _array(values: npt.NDArray[Any], kind: Any) -> Any:
    """The same memory as an Arrow array; ``pa.array`` would load pandas."""
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _within(values: npt.NDArray[Any], end: int) -> bool:
    return bool(values.min(initial=0) >= 0 and values.max(initial=0) < end)


def _footer_sha256(path: Path) -> str:
    """sha256 of the file's metadata, which Parquet's page checksums do not cover."""
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        tail = file.read(8)
        size = min(int.from_bytes(tail[:4], "little"), file.seek(0, os.SEEK_END) - 8)
        file.seek(-8 - size, os.SEEK_END)
        return hashlib.sha256(file.read()).hexdigest()


class Shards:
    """Random access to the rows of a finished folder.

    May be used from several threads, forked and pickled: each process opens its own files. Every
    row read is checked; what is damaged raises `InputError` with the file's name.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        self._ends = np.cumsum([file["n_rows"] for file in self.manifest.files])
        for file in self.manifest.files:
            path = self.folder / file["name"]
            size = path.stat().st_size if path.is_file() else None
            if size != file["bytes"]:
                what = "is missing" if size is None else f"has {size} bytes"
                raise InputError(f"{path} {what}, {file['bytes']} were written; {REDO}")
        self.group = group_rows(self.manifest.row_length)
        self._start_process()

    def _start_process(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._file = lru_cache(OPEN_FILES)(self._open)
        self._group = lru_cache(CACHED_GROUPS)(self._read_group)

    def __reduce__(self) -> tuple[type["Shards"], tuple[Path]]:
        return Shards, (self.folder,)

    def __len__(self) -> int:
        return self.manifest.n_rows

    def read(self, row_id: int) -> Row:
        """Row `row_id` of ``[0, len(self))``. Raises `InputError` if its file is damaged."""
        if not 0 <= row_id < len(self):
            raise IndexError(f"row {row_id} of {len(self)}")
        if self._pid != os.getpid():  # a fork shares file offsets and may copy a held lock
            self._start_process()
        index = int(np.searchsorted(self._ends, row_id, side="right"))
        in_file = row_id - int(self._ends[index] - self.manifest.files[index]["n_rows"])
        with self._lock:  # Arrow's readers are not made for several threads at once
            row = self._group(index, in_file // self.group)[in_file % self.group]
        ids, bounds = row.input_ids.copy(), row.bounds.copy()  # so that its group may go
        return Row(ids, bounds, row.records.copy(), row.kinds.copy())

    def _read_group(self, index: int, group: int) -> list[Row]:
        path = self.folder / self.manifest.files[index]["name"]
        n_rows = min(self.group, self.manifest.files[index]["n_rows"] - group * self.group)
        values: list[Any] = []
        ends: list[Any] = []
        try:
            table = self._file(index).read_row_group(group, use_threads=False)
            for name, kind in COLUMNS.items():
                column = table.column(name).combine_chunks()
                if column.type.value_type != kind:
                    raise TypeError(f"{name} is of type {column.type}")
                values.append(np.from_dlpack(column.values))  # to_numpy would load pandas
                ends.append(np.from_dlpack(column.offsets))
            values[1] = values[1].reshape(-1, 4)
            ends[1] = ends[1] // 4
        except InputError:
            raise
        except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(f"{path} is damaged or unreadable ({reason}); {REDO}") from error
        if table.num_rows != n_rows:
            raise InputError(f"{path}: row group {group} does not have {n_rows} rows; {REDO}")
        parts = (
            [x[start:end] for start, end in pairwise(of_rows.tolist())]
            for x, of_rows in zip(values, ends, strict=True)
        )
        rows = [Row(*row) for row in zip(*parts, strict=True)]
        try:
            self._check(Row(*values), ends, str(path))
        except InputError:
            for i, row in enumerate(rows, group * self.group):  # which one?
                alone = [np.array([0, len(column)]) for column in row]
                self._check(row, alone, f"{path}, row {i}")
            raise
        return rows

    def _check(self, rows: Row, ends: Sequence[npt.NDArray[Any]], name: str) -> None:
        """Raise `InputError` unless these rows, joined, can be.

        By column, `ends` holds where each begins, and where the last ends.
        """
        tokens, documents, *_ = ends
        n_tokens, n_documents, n_records, n_kinds = (x[1:] - x[:-1] for x in ends)
        ids, bounds, _, kinds = rows
        manifest = self.manifest
        wrong = {
            "has no document": (n_documents < 1).any(),
            f"has more than {manifest.row_length} tokens": n_tokens.max() > manifest.row_length,
            "does not name a record for each document": (n_records != n_documents).any(),
            "does not name a kind for each document": (n_kinds != n_documents).any(),
            "has kinds that there are not": not _within(kinds, len(KINDS)),
            "has ids outside the vocabulary": not _within(ids, manifest.vocab_size),
        }
        for what in (what for what, found in wrong.items() if found):
            raise InputError(f"{name} {what}; {REDO}")
        if bounds[documents[:-1], START].any():
            raise InputError(f"{name} does not begin with a document; {REDO}")
        joined = bounds + np.repeat(tokens[:-1], n_documents)[:, None]
        layout.check(joined, len(ids), len(manifest.summary_tokens), name)

    def _open(self, index: int) -> Any:
        entry = self.manifest.files[index]
        path = self.folder / entry["name"]
        if _footer_sha256(path) != entry["footer_sha256"]:
            raise InputError(f"{path} is damaged: its footer is not what was written; {REDO}")
        return pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
