"""The bytes of a stretch of a file, decompressed, and the lines and paragraphs in it.

Which stretches there are, `shards.work_plan` says; what a line holds, `records` decodes.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from gem_ds.errors import InputError
from gem_ds.inputs import compression, filesystem
from gem_ds.inputs.records import MAX_RECORD, OFFSET_BITS, is_blank

BLOCK_BYTES = 1 << 18  # read at once
BOM = b"\xef\xbb\xbf"


class Raw(NamedTuple):
    """A record as it was read: its line or row (1-based, in the part), its place, its content."""

    line: int
    offset: int
    item: Any


class Stream:
    """Reads bytes ``[start, end)`` of a file; of a compressed one, all of it.

    `n_lines` line breaks and `n_read` stored bytes have been read so far.
    """

    def __init__(self, path: str, compressed: str | None, start: int, end: int) -> None:
        self.path = path
        self.compression = compressed
        self.start = start
        self.end = end
        self.n_lines = 0
        self.n_read = 0

    def chunks(self) -> Iterator[bytes]:
        """The bytes, decompressed, without a byte-order mark taken away.

        Raises `InputError` for a file that is not what its name says, or whose text is not UTF-8
        but UTF-16; `EOFError` for one that ends before `end`.
        """
        if self.end == self.start:
            return
        named = None if self.compression == filesystem.ZIPPED else self.compression
        with filesystem.opened(self.path) as file:
            if not self.start:
                compression.check_head(self.path, file.read(8), named)
            file.seek(self.start)
            at = self.start
            for chunk in compression.decompressed(file, named, BLOCK_BYTES):
                if at == 0:
                    compression.check_text(self.path, chunk)
                if not self.compression:
                    chunk = chunk[: self.end - at]
                at += len(chunk)
                self.n_lines += chunk.count(b"\n")
                self.n_read = min(file.tell(), self.end) - self.start
                yield chunk
                if at >= self.end and not self.compression:
                    return
        if at < self.end and not self.compression:
            raise EOFError(f"it ends after {at:,} bytes, but had {self.end:,} at first")

    def lines(self) -> Iterator[Raw]:
        """Lines without their newline, a byte-order mark removed; None for one too long."""
        line, offset = 1, self.start
        rest: list[bytes] = []  # the beginning of a line that goes on in the next chunk
        size = 0

        def line_whole() -> bytes | None:
            text = b"".join(rest) if size <= MAX_RECORD else None
            return text.removeprefix(BOM) if text and offset == 0 else text

        for chunk in self.chunks():
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
            raise InputError(f"{self.path} has more text than 16 TiB; split it")

    def paragraphs(self) -> Iterator[Raw]:
        """What lies between blank lines, newlines inside kept."""
        paragraph: list[bytes] = []
        line, offset, size = 0, 0, 0

        def paragraph_whole() -> bytes | None:
            return b"\n".join(paragraph).removesuffix(b"\r") if size <= MAX_RECORD else None

        for raw in self.lines():
            if is_blank(raw.item):
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

    def whole(self) -> Iterator[Raw]:
        """All of the file as one record."""
        pieces: list[bytes] = []
        size = 0
        for chunk in self.chunks():
            size += len(chunk)
            if size <= MAX_RECORD:
                pieces.append(chunk)
        if size:
            text = b"".join(pieces).removeprefix(BOM) if size <= MAX_RECORD else None
            yield Raw(1, 0, text)
