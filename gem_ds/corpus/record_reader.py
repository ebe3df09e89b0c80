"""Reading parts of a corpus: blocks of raw records.

A part is what can be read by itself: a stretch of a file between line breaks, row groups, rows.
Each record has the place where it begins, which names it whatever the parts are. `records` decodes
one, so one bad byte costs its record, never its file. `corpus.discovery` says what inputs there are
and `shards.work_plan` how they are cut into parts; `corpus.streams`, `corpus.json_documents`,
`corpus.tables` and `tables` read the formats.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gem_ds.corpus import filesystem, json_documents, streams, tables
from gem_ds.corpus.discovery import ARROW, CSV, JSON, JSONL, STREAMED, TEXT, Input
from gem_ds.corpus.records import Record, is_blank, record_id
from gem_ds.corpus.streams import Raw, Stream

BLOCK_RECORDS = 1 << 14
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
    """All records of some parts, in order, in blocks of about `corpus.streams.BLOCK_BYTES`.

    `columns` says which fields of an input will be asked for; a table without one of them raises
    `InputError`, as does a damaged file. A record of plain text is a paragraph (what lies between
    blank lines) or a file, as `text_unit` says. Blank lines are no records.
    """
    for number, part in enumerate(parts):
        item = found[part.input]
        reader = Reader(item, part)
        records: list[Record] = []
        size = ordinal = 0
        with filesystem.faults_named(item.path, reader.where):
            for raw in reader.records(columns(item), text_unit):
                reader.line = raw.line
                identity = record_id(part.input, raw.offset)
                is_json = item.format in (JSONL, JSON)
                records.append(Record(identity, number, raw.line, ordinal, is_json, raw.item))
                ordinal += 1
                size += _size(raw.item)
                if size >= streams.BLOCK_BYTES or len(records) >= BLOCK_RECORDS:
                    yield Block(number, records, reader.n_lines, reader.position)
                    records, size = [], 0
        yield Block(number, records, reader.n_lines, part.n_bytes)


def whole(found: Sequence[Input]) -> list[Part]:
    """A part for each input, all of it."""
    parts = []
    for i, item in enumerate(found):
        with filesystem.faults_named(item.path):
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


class Reader(Stream):
    """Reads one part. `line` is to be the line of the last record that was used."""

    def __init__(self, item: Input, part: Part) -> None:
        super().__init__(item.path, item.compression, part.start, part.end)
        self.item = item
        self.part = part
        self.n_rows_read = 0
        self.n_rows = 0
        self.line = 0

    @property
    def position(self) -> int:
        """How far it is, in bytes of the part's weight."""
        if self.item.format in tables.FORMATS:
            return self.part.n_bytes * self.n_rows_read // self.n_rows if self.n_rows else 0
        return self.part.n_bytes * self.n_read // max(1, self.end - self.start)

    def where(self) -> str:
        """How far it is, for people."""
        is_table = self.item.format in tables.FORMATS
        at = f"after {'row' if is_table else 'line'} {self.line:,}" if self.line else "at the start"
        begin = "" if is_table or not self.part.start else f" from byte {self.part.start:,} on"
        return f" {at}{begin}"

    def records(self, columns: Sequence[str], text_unit: str) -> Iterator[Raw]:
        """The records of the part, whatever its format."""
        form = self.item.format
        if form in tables.FORMATS:
            return self._rows(columns)
        if form == JSON:
            return json_documents.records(self, columns)
        if form == CSV:
            return tables.csv_rows(self, columns)
        if form == TEXT:
            return self.whole() if text_unit == "file" else self.paragraphs()
        return (raw for raw in self.lines() if not is_blank(raw.item))

    def _rows(self, columns: Sequence[str]) -> Iterator[Raw]:
        """Rows as dicts by column."""
        if self.item.format != ARROW:  # whose rows only reading it would tell
            self.n_rows = tables.n_rows(self.item, self.part.start, self.part.end)
        rows = tables.rows(self.item, self.part.start, self.part.end, columns)
        for i, (place, cells) in enumerate(rows, 1):
            self.n_rows_read = i
            if self.item.format == STREAMED:
                self.n_lines = i
            yield Raw(self.n_lines or place + 1, place, cells)
