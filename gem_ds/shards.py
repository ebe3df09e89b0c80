"""Packed rows on disk: the schema, the writer, the reader and the checks between them.

A folder of shards holds ``shard-00000.parquet`` …, the tokenizer they were written with in
``tokenizer/`` and ``manifest.json``, which is written last: a folder with a manifest is complete.
What is in a row is decided by `prepare`; in which order rows are read, by `data`.

Shapes: n tokens in a row, D documents.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gem_ds import layout
from gem_ds.errors import InputError

SCHEMA_VERSION = 1
GROUP = 16  # rows in a Parquet row group: what is read to get at one row
FILE_TOKENS = 1 << 24  # tokens of full rows a file holds at most: 64 MiB before compression
OPEN_FILES = 64  # kept open by a reader
CACHED_GROUPS = 8
AGAIN = "remove the folder and run python data_prep/shard.py again"
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
COLUMNS = {"input_ids": pa.int32(), "bounds": pa.int32(), "records": pa.int64()}
SCHEMA = pa.schema([(name, pa.list_(pa.field("element", t))) for name, t in COLUMNS.items()])


class Row(NamedTuple):
    """A packed row, not padded.

    input_ids (n,) int32; bounds (D, 4) int32, see `layout`, the documents tile ``[0, n)``;
    records (D,) int64, the ordinal in the corpus of the record each document came from.
    """

    input_ids: npt.NDArray[np.int32]
    bounds: npt.NDArray[np.int32]
    records: npt.NDArray[np.int64]


class FileEntry(TypedDict):
    """What the manifest says of one file. `footer_sha256` is of the Parquet footer alone."""

    name: str
    n_rows: int
    n_documents: int
    n_tokens: int
    n_targets: int
    bytes: int
    sha256: str
    footer_sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds and how it came about.

    `summary_tokens` are the k ids; `vocab_size` is one more than the highest id; the tokenizer's
    fingerprint is given without the summary tokens (base) and with them. `kinds` are the shares
    asked for; `counts` the records in, written and skipped by reason, and the documents by kind;
    `config` is all that the shards depend on, which tells a repeated command from another one.
    """

    row_length: int
    n_rows: int
    n_documents: int
    n_tokens: int
    n_targets: int
    summary_tokens: list[int]
    bos_token_id: int | None
    eos_token_id: int | None
    vocab_size: int
    base_tokenizer_sha256: str
    tokenizer_sha256: str
    seed: int
    kinds: dict[str, float]
    counts: dict[str, Any]
    files: list[FileEntry]
    config: dict[str, Any]
    versions: dict[str, str]
    schema_version: int = SCHEMA_VERSION

    @property
    def digest(self) -> str:
        """sha256 of the content: two folders with the same digest hold the same rows."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write ``manifest.json``, atomically and with its digest; to be called last."""
        content = asdict(self) | {"digest": self.digest}
        with replacing(folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Manifest":
        """Read a folder's manifest. Raises `InputError` if it is missing, damaged or too new."""
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise InputError(
                f"there is no {MANIFEST} in {folder}: sharding did not finish, or this is not a "
                "folder of shards; run python data_prep/shard.py again with the same --output"
            )
        damaged = f"{path} is damaged or was edited; remove {folder} and shard again"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{damaged} ({error})") from error
        if not isinstance(content, dict):
            raise InputError(damaged)
        version = content.get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}; "
                "shard again with this version"
            )
        digest = content.pop("digest", None)
        if set(content) == {field.name for field in fields(cls)}:
            manifest = cls(**content)
            if manifest.digest == digest:
                return manifest
        raise InputError(damaged)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name for writing `path`: synced and renamed on success, removed on failure."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def rows_per_file(row_length: int) -> int:
    """How many rows a file holds: whole row groups, `FILE_TOKENS` tokens at most."""
    return max(1, FILE_TOKENS // (row_length * GROUP)) * GROUP


def write_file(path: Path, rows: Sequence[Row]) -> FileEntry:
    """Write one Parquet file of rows, atomically. The same rows give the same bytes."""
    columns = []
    for name, kind in COLUMNS.items():
        parts = [getattr(row, name).reshape(-1) for row in rows]
        ends = np.cumsum([0, *(len(part) for part in parts)])
        assert ends[-1] < 2**31, "offsets in an Arrow list are 32-bit"
        values = pa.array(np.concatenate(parts), type=kind)
        columns.append(pa.ListArray.from_arrays(pa.array(ends, type=pa.int32()), values))
    table = pa.Table.from_arrays(columns, schema=SCHEMA)
    with replacing(path) as temporary:
        pq.write_table(
            table,
            temporary,
            row_group_size=GROUP,
            compression="zstd",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )
    return FileEntry(
        name=path.name,
        n_rows=len(rows),
        n_documents=sum(len(row.bounds) for row in rows),
        n_tokens=sum(len(row.input_ids) for row in rows),
        n_targets=sum(layout.n_targets(row.bounds) for row in rows),
        bytes=path.stat().st_size,
        sha256=_file_sha256(path),
        footer_sha256=_footer_sha256(path),
    )


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
                raise InputError(f"{path} {what}, {file['bytes']} were written; {AGAIN}")
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
            group = self._group(index, in_file // GROUP)
        row = group[in_file % GROUP]
        return Row(row.input_ids.copy(), row.bounds.copy(), row.records.copy())

    def _read_group(self, index: int, group: int) -> list[Row]:
        path = self.folder / self.manifest.files[index]["name"]
        n_rows = min(GROUP, self.manifest.files[index]["n_rows"] - group * GROUP)
        columns = []
        try:
            table = self._file(index).read_row_group(group, use_threads=False)
            for name, kind in COLUMNS.items():
                column = table.column(name).combine_chunks()
                values = column.values.to_numpy().astype(kind.to_pandas_dtype(), casting="no")
                columns.append(np.split(values, column.offsets.to_numpy()[1:-1]))
            rows = [Row(t, b.reshape(-1, 4), r) for t, b, r in zip(*columns, strict=True)]
        except InputError:
            raise
        except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
            reason = str(error).split("\n")[0]
            raise InputError(f"{path} is damaged or unreadable ({reason}); {AGAIN}") from error
        if len(rows) != n_rows:
            raise InputError(f"{path}: row group {group} does not have {n_rows} rows; {AGAIN}")
        first = group * GROUP
        return [self._checked(row, f"{path}, row {first + i}") for i, row in enumerate(rows)]

    def _checked(self, row: Row, name: str) -> Row:
        manifest = self.manifest
        layout.check(row.bounds, len(row.input_ids), len(manifest.summary_tokens), name)
        ids = row.input_ids
        wrong = {
            f"has more than {manifest.row_length} tokens": len(ids) > manifest.row_length,
            "has ids outside the vocabulary": ids.min() < 0 or ids.max() >= manifest.vocab_size,
            "does not name a record for each document": len(row.records) != len(row.bounds),
        }
        for what in (what for what, found in wrong.items() if found):
            raise InputError(f"{name} {what}; {AGAIN}")
        return row

    def _open(self, index: int) -> Any:
        entry = self.manifest.files[index]
        path = self.folder / entry["name"]
        if _footer_sha256(path) != entry["footer_sha256"]:
            raise InputError(f"{path} is damaged: its footer is not what was written; {AGAIN}")
        return pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)

    def verify(self) -> None:
        """Hash every file. Raises `InputError` if one is not, byte for byte, what was written."""
        for file in self.manifest.files:
            path = self.folder / file["name"]
            if _file_sha256(path) != file["sha256"]:
                raise InputError(f"{path} is damaged: its sha256 is not what was written; {AGAIN}")
