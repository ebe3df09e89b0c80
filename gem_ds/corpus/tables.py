"""Rows of tables: Parquet and Arrow files, datasets that `datasets` saved, those that it streams,
CSV and TSV.

Arrow does not check that text is UTF-8. One bad byte costs its record here, not its table. A CSV
file begins with a line of the columns' names. Cells may be quoted, and then hold line breaks and
separators. What separates them is the first of `SEPARATORS` with which the first line has every
column that is asked for.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gem_ds.corpus import discovery, filesystem
from gem_ds.corpus.discovery import ARROW, PARQUET, SAVED, STREAMED, Input
from gem_ds.corpus.records import MAX_RECORD, NOT_CSV, OFFSET_BITS, Skip, check_columns
from gem_ds.corpus.streams import Raw, Stream
from gem_ds.errors import InputError

FORMATS = (PARQUET, ARROW, SAVED, STREAMED)
ARROW_FILE = b"ARROW1"  # how one in the format of files begins
BATCH = 256  # rows decoded at once
# Rows of a streamed dataset are counted in each shard from 0; its number goes before them.
ROW_BITS = 28
NOT_UTF8 = b"\xff"  # stands for a cell that cannot be decoded: it cannot either


def extent(item: Input) -> int:
    """Into how many pieces a table can be cut: row groups, rows or shards; an Arrow file is one."""
    if item.format == ARROW:
        return 1
    if item.format == PARQUET:
        with parquet(item) as file:
            return int(file.metadata.num_row_groups)
    if item.format == SAVED:
        return len(_saved(item))
    n = int(_streamed(item).num_shards)
    if n > 1 << (OFFSET_BITS - ROW_BITS):
        raise InputError(f"{item.path} has {n:,} shards; give its files in several inputs")
    return n


def n_rows(item: Input, start: int, end: int) -> int:
    """The rows in pieces ``[start, end)``; 0 where only a download would tell."""
    if item.format == ARROW:
        with _batches(item) as (_, batches):
            return sum(batch.num_rows for batch in batches)
    if item.format == PARQUET:
        with parquet(item) as file:
            return sum(file.metadata.row_group(g).num_rows for g in range(start, end))
    return end - start if item.format == SAVED else 0


def rows(
    item: Input, start: int, end: int, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Place and cells by column of each row in pieces ``[start, end)``.

    Raises `InputError` for a table without one of the columns.
    """
    read: dict[str, Callable[..., Iterator[tuple[int, dict[str, Any]]]]] = {
        PARQUET: _parquet_rows,
        ARROW: _arrow_rows,
        SAVED: _saved_rows,
        STREAMED: _streamed_rows,
    }
    return read[item.format](item, start, end, columns)


@contextmanager
def parquet(item: Input) -> Iterator[Any]:
    """A Parquet file, its page checksums to be verified."""
    with filesystem.opened(item.path) as file:
        yield pq.ParquetFile(
            file,
            page_checksum_verification=True,
            pre_buffer=False,
            buffer_size=1 << 20,  # pages as they are needed, not a column of a row group at once
            binary_type=pa.large_binary(),  # so that dictionaries are decoded, and not checked
        )


def _parquet_rows(
    item: Input, start: int, end: int, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    with parquet(item) as file:
        check_columns(item.path, columns, file.schema_arrow.names)
        place = sum(file.metadata.row_group(g).num_rows for g in range(start))
        batches = file.iter_batches(
            batch_size=BATCH,
            row_groups=list(range(start, end)),
            columns=list(columns),
            use_threads=False,
        )
        for batch in batches:
            yield from enumerate(_dicts(batch, columns), place)
            place += batch.num_rows


@contextmanager
def _batches(item: Input) -> Iterator[tuple[list[str], Iterator[Any]]]:
    """The columns of an Arrow file and its batches, in the format of files or that of streams."""
    with filesystem.opened(item.path) as file:
        is_file = file.read(len(ARROW_FILE)) == ARROW_FILE
        file.seek(0)
        if not is_file:
            reader = pa.ipc.open_stream(file)
            yield reader.schema.names, iter(reader)
            return
        reader = pa.ipc.open_file(file)
        yield reader.schema.names, map(reader.get_batch, range(reader.num_record_batches))


def _arrow_rows(
    item: Input, start: int, end: int, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    with _batches(item) as (names, batches):
        check_columns(item.path, columns, names)
        place = 0
        for batch in batches:
            for at in range(0, batch.num_rows, BATCH):
                piece = batch.slice(at, BATCH)
                yield from enumerate(_dicts(piece, columns), place)
                place += piece.num_rows


def _saved_rows(
    item: Input, start: int, end: int, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    dataset = _saved(item)
    check_columns(item.path, columns, dataset.column_names)
    dataset = dataset.select_columns(list(columns)).with_format("arrow")
    for a, b in pairwise([*range(start, end, BATCH), end]):
        for batch in dataset[a:b].to_batches():
            yield from enumerate(_dicts(batch, columns), a)
            a += batch.num_rows


def _streamed_rows(
    item: Input, start: int, end: int, columns: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    dataset = _streamed(item)
    for number in range(start, end):
        for i, cells in enumerate(dataset.shard(dataset.num_shards, number)):
            if i == 0:
                check_columns(item.path, columns, list(cells))
            if i >= 1 << ROW_BITS:
                raise InputError(f"{item.path} has a shard of more than {i:,} rows; split it")
            yield number << ROW_BITS | i, {column: cells.get(column) for column in columns}


def _dicts(batch: Any, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    values = [_cells(batch.column(name)) for name in columns]
    return (dict(zip(columns, cells, strict=True)) for cells in zip(*values, strict=True))


def _cells(array: Any) -> list[Any]:
    try:
        cells: list[Any] = array.to_pylist()
    except (ValueError, OverflowError):  # of one cell: bad UTF-8, a date that Python cannot hold
        cells = [_cell(scalar) for scalar in array]
    return cells


def _cell(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return NOT_UTF8
    except (ValueError, OverflowError):
        return False  # neither text nor messages


def _saved(item: Input) -> Any:
    import datasets

    return datasets.load_from_disk(item.path)


@lru_cache(8)
def _streamed(item: Input) -> Any:
    """The dataset of a name, at the commit that was found."""
    import datasets

    name, config, split = discovery.dataset_parts(item.path)
    commit = None if item.size else item.modified  # what the hub has is of no known size
    return datasets.load_dataset(name, config, split=split, streaming=True, revision=commit)


SEPARATORS = (",", ";", "\t", "|")
LONGEST = MAX_RECORD >> 2  # characters of a cell, of four bytes each while it is read


def csv_rows(stream: Stream, columns: Sequence[str]) -> Iterator[Raw]:
    """Each row as its cells by column; blank lines are none.

    With no `columns`, all are given. A row that has more or fewer cells than the first line, or
    wrong quotes, is a `Skip`. Raises `InputError` for a file without one of the columns, or whose
    quotes do not end.
    """
    begin: Raw | None = None

    def texts() -> Iterator[str]:
        nonlocal begin
        for raw in stream.lines():
            begin = begin or raw
            if raw.item is None:
                raise InputError(f"{stream.path}, line {raw.line} is too long; split the file")
            # Bytes that are no UTF-8 come back in `_cells`, to cost their row alone.
            yield raw.item.decode("utf-8", "surrogateescape") + "\n"

    lines = texts()
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        return
    begin = None
    csv.field_size_limit(LONGEST)
    separator, names = _head(stream.path, first, columns)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        cells: list[str] | None = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            assert begin
            if "unexpected end" in str(error) or "limit" in str(error):
                raise InputError(
                    f"{stream.path}, line {begin.line}: a quoted cell does not end; correct its "
                    'quotes (inside a cell, " is written twice)'
                ) from error
        assert begin
        at, begin = begin, None
        if cells == []:
            continue
        if cells is None or len(cells) != len(names):
            yield at._replace(item=Skip(NOT_CSV))
            continue
        whole = dict(zip(names, map(_csv_cell, cells), strict=True))
        yield at._replace(item={name: whole[name] for name in columns or names})


def _head(path: str, first: str, columns: Sequence[str]) -> tuple[str, list[str]]:
    """What separates cells, and the columns' names. Raises `InputError`."""
    is_tabbed = ".tsv" in (suffix.lower() for suffix in PurePosixPath(path).suffixes)
    likely = sorted(SEPARATORS, key=lambda sign: (is_tabbed and sign != "\t", -first.count(sign)))
    try:
        names = {sign: next(csv.reader([first], delimiter=sign)) for sign in likely}
    except csv.Error as error:  # a carriage return, where old lines end; a name without an end
        raise InputError(
            f"{path}: its first line cannot be read ({error}); lines are to end in line feeds"
        ) from error
    found = next((sign for sign in likely if set(columns) <= set(names[sign])), likely[0])
    check_columns(f"{path} (first line)", columns or names[found], names[found])
    return found, names[found]


def _csv_cell(text: str) -> Any:
    """A cell's text, or its bytes where those are no UTF-8."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape")
    return text
