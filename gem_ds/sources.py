"""Reading parts of a corpus: blocks of raw records.

A part is what can be read by itself: a stretch of a file between line breaks, row groups, rows.
Each record has the place where it begins, which names it whatever the parts are. Decoding one is
left to `records`, so one bad byte costs its record, never its file. What inputs there are,
`inputs` says; how tables are read, `tables`; how inputs are cut into parts, `units`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from gem_ds import stores, tables
from gem_ds.errors import InputError
from gem_ds.inputs import JSONL, STREAMED, TEXT, Input
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
        with stores.faults_named(item.path, reader.where):
            for raw in reader.records(columns(item), text_unit):
                reader.line = raw.line
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
    """A part for each input, all of it."""
    parts = []
    for i, item in enumerate(found):
        with stores.faults_named(item.path):
            end = tables.extent(item) if item.format in tables.FORMATS else item.size
        parts.append(Part(i, 0, end, item.size))
    return parts


def _size(content: Any) -> int:
    """About how many bytes a record takes."""
    if isinstance(content, dict):
        return sum(map(_size, content.values()))
    if isinstance(content, list):
        return sum(map(_size, content))
    return len(content) if isinstance(content, str | bytes) else 0


class Reader:
    """Reads one part.

    `n_lines` and `position`, in bytes of its weight, say how far it is; `line` is to be the line of
    the last record that was used.
    """

    def __init__(self, item: Input, part: Part) -> None:
        self.item = item
        self.part = part
        self.n_lines = 0
        self.position = 0
        self.line = 0

    def where(self) -> str:
        """How far it is, for people."""
        is_table = self.item.format in tables.FORMATS
        at = f"after {'row' if is_table else 'line'} {self.line:,}" if self.line else "at the start"
        begin = "" if is_table or not self.part.start else f" from byte {self.part.start:,} on"
        return f" {at}{begin}"

    def records(self, columns: Sequence[str], text_unit: str) -> Iterator[Raw]:
        """The records of the part, whatever its format."""
        if self.item.format in tables.FORMATS:
            return self._rows(columns)
        if self.item.format == TEXT:
            return self._whole() if text_unit == "file" else self.paragraphs()
        return (raw for raw in self.lines() if not _is_blank(raw.item))

    def _chunks(self) -> Iterator[bytes]:
        """The bytes of a part, decompressed; Arrow notices when a stream is cut short."""
        part, item = self.part, self.item
        if part.end == part.start:
            return
        with stores.opened(item.path) as file:
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
        """Rows as dicts by column."""
        item, (_, start, end, n_bytes, _) = self.item, self.part
        n_rows = tables.n_rows(item, start, end)
        for i, (place, cells) in enumerate(tables.rows(item, start, end, columns), 1):
            if n_rows:
                self.position = n_bytes * i // n_rows
            if item.format == STREAMED:
                self.n_lines = i
            yield Raw(self.n_lines or place + 1, place, cells)


def _is_blank(text: bytes | None) -> bool:
    return text is not None and (not text or text.isspace())
