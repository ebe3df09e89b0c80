"""Reading parts of a corpus: blocks of raw records.

A part is what can be read by itself: a stretch of a file between line breaks, row groups, rows.
Each record has the place where it begins, which names it whatever the parts are. Decoding one is
left to `records`, so one bad byte costs its record, never its file. What inputs there are, `inputs`
says; how they are cut into parts, `units`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gem_ds import inputs
from gem_ds.errors import InputError
from gem_ds.inputs import JSONL, PARQUET, Input
from gem_ds.records import MAX_RECORD, OFFSET_BITS, Record, record_id

BLOCK_BYTES = 1 << 18  # raw text in a block, unless one record is longer
BLOCK_RECORDS = 1 << 14
BOM = b"\xef\xbb\xbf"
UNITS = ("paragraph", "file")


class Part(NamedTuple):
    """Bytes ``[start, end)`` of a file; of a table, row groups; of a dataset, rows or shards.

    `input` is the number of the input; `n_bytes` what the part weighs; `first`, where it is known,
    how many records of its source come before it.
    """

    input: int
    start: int
    end: int
    n_bytes: int
    first: int | None = None


class Raw(NamedTuple):
    """A record as it was read: its line or row (1-based, in the part), its place, its content."""

    line: int
    offset: int
    item: Any


@dataclass(frozen=True)
class Block:
    """Records that follow each other in part number `part` of a list.

    `n_lines` and `position` are how many lines and bytes of the part had been read by then.
    """

    part: int
    records: list[Record]
    n_lines: int
    position: int


def blocks(
    found: Sequence[Input],
    parts: Sequence[Part],
    columns: Callable[[Input], Sequence[str]],
    text_unit: str = "paragraph",
) -> Iterator[Block]:
    """All records of some parts, in order, in blocks of about `BLOCK_BYTES`.

    `columns` says which fields of an input will be asked for; a table without one of them raises
    `InputError`, as does a damaged file. A record of plain text is a paragraph (what lies between
    blank lines) or a file, as `text_unit` says. Blank lines are no records.
    """
    for number, part in enumerate(parts):
        item = found[part.input]
        reader = Reader(item, part)
        records: list[Record] = []
        size = ordinal = 0
        with faults_named(item, reader):
            for raw in reader.records(columns(item), text_unit):
                identity = record_id(part.input, raw.offset)
                is_json = item.format == JSONL
                records.append(Record(identity, number, raw.line, ordinal, is_json, raw.item))
                ordinal += 1
                size += _size(raw.item)
                if size >= BLOCK_BYTES or len(records) >= BLOCK_RECORDS:
                    yield Block(number, records, reader.n_lines, reader.position)
                    records, size = [], 0
        yield Block(number, records, reader.n_lines, part.n_bytes)


def whole(found: Sequence[Input]) -> list[Part]:
    """A part for each file, all of it."""
    parts = []
    for i, item in enumerate(found):
        end = item.size
        if item.format == PARQUET:
            with parquet(item) as file:
                end = file.metadata.num_row_groups
        parts.append(Part(i, 0, end, item.size))
    return parts


def _size(content: Any) -> int:
    if isinstance(content, dict):
        return sum(map(_size, content.values()))
    return len(content) if isinstance(content, bytes | str | list) else 0


@contextmanager
def faults_named(item: Input, reader: "Reader | None" = None) -> Iterator[None]:
    """Faults of a file itself, reported as such."""
    try:
        yield
    except MemoryError:  # of Arrow too, which says nothing of the file
        raise
    except (pa.ArrowException, OSError, EOFError) as error:
        where = (
            f"after line {reader.n_lines:,}" if reader and reader.n_lines else "at its beginning"
        )
        reason = str(error).split("\n")[0]
        raise InputError(
            f"{item.path} is damaged or cut short {where} ({reason}); get it again or leave it out"
        ) from error


@contextmanager
def opened(item: Input) -> Iterator[Any]:
    """An Arrow file on the bytes of an input as they are stored."""
    if inputs.is_local(item.path):
        with pa.OSFile(item.path) as file:
            yield file
        return
    fs, path = inputs.filesystem(item.path)
    with fs.open(path, "rb") as stream, pa.PythonFile(stream, mode="r") as file:
        yield file


class Reader:
    """Reads one part; `n_lines` and `position`, in bytes of its weight, say how far it is."""

    def __init__(self, item: Input, part: Part) -> None:
        self.item = item
        self.part = part
        self.n_lines = 0
        self.position = 0

    def records(self, columns: Sequence[str], text_unit: str) -> Iterator[Raw]:
        """The records of the part, whatever its format."""
        match self.item.format:
            case inputs.PARQUET:
                return self._rows(columns)
            case inputs.SAVED | inputs.STREAMED:
                return self._examples(columns)
            case inputs.TEXT:
                return self._whole() if text_unit == "file" else self.paragraphs()
        return (raw for raw in self.lines() if not _is_blank(raw.item))

    def _chunks(self) -> Iterator[bytes]:
        """The bytes of a part, decompressed; Arrow notices when a stream is cut short."""
        part, item = self.part, self.item
        if part.end == part.start:
            return
        with opened(item) as file:
            file.seek(part.start)
            stream = pa.CompressedInputStream(file, item.compression) if item.compression else file
            at = part.start
            while at < part.end or item.compression:
                left = BLOCK_BYTES if item.compression else part.end - at
                chunk = stream.read(min(BLOCK_BYTES, left))
                if not chunk:
                    break
                at += len(chunk)
                self.n_lines += chunk.count(b"\n")
                self.position = (file.tell() - part.start) * part.n_bytes // (part.end - part.start)
                yield chunk
        if at < part.end and not item.compression:
            raise EOFError(f"it ends after {at:,} bytes, but had {item.size:,} at first")

    def lines(self) -> Iterator[Raw]:
        """Lines without their newline, a byte-order mark removed; None for one too long."""
        line, offset = 1, self.part.start
        rest: list[bytes] = []  # the beginning of a line that goes on in the next chunk
        size = 0

        def line_whole() -> bytes | None:
            text = b"".join(rest) if size <= MAX_RECORD else None
            return text.removeprefix(BOM) if text and offset == 0 else text

        for chunk in self._chunks():
            for i, piece in enumerate(chunk.split(b"\n")):
                if i:
                    yield Raw(line, offset, line_whole())
                    line, offset, rest, size = line + 1, offset + size + 1, [], 0
                size += len(piece)
                if size <= MAX_RECORD:
                    rest.append(piece)
        if size:
            yield Raw(line, offset, line_whole())
        if offset >= 1 << OFFSET_BITS:
            raise InputError(f"{self.item.path} has more text than 16 TiB; split it")

    def paragraphs(self) -> Iterator[Raw]:
        """What lies between blank lines, newlines inside kept."""
        paragraph: list[bytes] = []
        line, offset, size = 0, 0, 0

        def paragraph_whole() -> bytes | None:
            return b"\n".join(paragraph).removesuffix(b"\r") if size <= MAX_RECORD else None

        for raw in self.lines():
            if _is_blank(raw.item):
                if size:
                    yield Raw(line, offset, paragraph_whole())
                paragraph, size = [], 0
                continue
            if not size:
                line, offset = raw.line, raw.offset
            size += MAX_RECORD + 1 if raw.item is None else len(raw.item) + 1
            if size <= MAX_RECORD:
                paragraph.append(raw.item)
        if size:
            yield Raw(line, offset, paragraph_whole())

    def _whole(self) -> Iterator[Raw]:
        """All of the file as one record."""
        pieces: list[bytes] = []
        size = 0
        for chunk in self._chunks():
            size += len(chunk)
            if size <= MAX_RECORD:
                pieces.append(chunk)
        if size:
            text = b"".join(pieces).removeprefix(BOM) if size <= MAX_RECORD else None
            yield Raw(1, 0, text)

    def _rows(self, columns: Sequence[str]) -> Iterator[Raw]:
        """Rows as dicts by column, strings as bytes: Arrow does not check that they are UTF-8."""
        with parquet(self.item) as file:
            _check_columns(self.item, columns, file.schema_arrow.names)
            group = file.metadata.row_group
            row = sum(group(i).num_rows for i in range(self.part.start))
            groups = list(range(self.part.start, self.part.end))
            n_rows = sum(group(i).num_rows for i in groups)
            batches = file.iter_batches(
                batch_size=256, row_groups=groups, columns=list(columns), use_threads=False
            )
            done = 0
            for batch in batches:
                values = [_cells(batch.column(batch.schema.get_field_index(c))) for c in columns]
                for i, cells in enumerate(zip(*values, strict=True)):
                    place = row + done + i
                    yield Raw(place + 1, place, dict(zip(columns, cells, strict=True)))
                done += batch.num_rows
                self.position = self.part.n_bytes * done // n_rows

    def _examples(self, columns: Sequence[str]) -> Iterator[Raw]:
        """Examples as dicts by column: rows of a saved dataset, a shard of a streamed one."""
        part = self.part
        if self.item.format == inputs.SAVED:
            dataset = saved_dataset(self.item)
            _check_columns(self.item, columns, dataset.column_names)
            dataset = dataset.select_columns(list(columns))
            rows = ((i, dataset[i]) for i in range(part.start, part.end))
        else:  # rows are counted from 0 in each shard, whose number makes their places differ
            dataset = streamed_dataset(self.item)
            shard = dataset.shard(dataset.num_shards, part.start)
            rows = ((part.start << 26 | i, content) for i, content in enumerate(shard))
        for place, content in rows:
            yield Raw(place + 1, place, {column: content.get(column) for column in columns})


def _is_blank(text: bytes | None) -> bool:
    return text is not None and (not text or text.isspace())


def _check_columns(item: Input, columns: Sequence[str], there: Sequence[str]) -> None:
    for column in columns:
        if column not in there:
            raise InputError(
                f"{item.path} has no column {column!r} but {', '.join(there)}; name the right one "
                "(--text-field, --context-field, --answer-field, --messages-field)"
            )


@contextmanager
def parquet(item: Input) -> Iterator[Any]:
    """A Parquet file, its page checksums to be verified."""
    with ExitStack() as stack:
        with faults_named(item):
            file = stack.enter_context(opened(item))
            table = pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False)
        yield table


def _cells(array: Any) -> list[Any]:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        array = array.cast(pa.large_binary())
    try:
        cells: list[Any] = array.to_pylist()
    except (ValueError, OverflowError):  # of one cell: bad UTF-8 inside a list, a date too late
        return [_cell(value) for value in array]
    return cells


def _cell(value: Any) -> Any:
    """A table's cell; False, which is neither text nor messages, for what Python cannot hold."""
    try:
        return value.as_py()
    except (ValueError, OverflowError):
        return False


def saved_dataset(item: Input) -> Any:
    """The dataset that `datasets` saved in a folder."""
    import datasets

    return datasets.load_from_disk(item.path)


def streamed_dataset(item: Input) -> Any:
    """The dataset of a name, streamed, at the revision that was found."""
    import datasets

    name, config, split = inputs.dataset_parts(item.path)
    revision = None if "," in item.modified else item.modified
    try:
        return datasets.load_dataset(name, config, split=split, streaming=True, revision=revision)
    except Exception as error:  # no such split, no such configuration, no network
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{item.path} could not be opened ({reason})") from error
