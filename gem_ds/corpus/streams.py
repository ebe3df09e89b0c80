"""The bytes of a stretch of a file, decompressed, and the lines and paragraphs in it.

A compressed stream may consist of several members, as concatenation and parallel compressors write
them. One that is cut short raises; nothing ends early without an error. Which stretches there are,
`shards.work_plan` says; what a line holds, `records` decodes.
"""

import bz2
import contextlib
import lzma
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import zstandard

from gem_ds.corpus import filesystem
from gem_ds.corpus.records import MAX_RECORD, OFFSET_BITS, is_blank
from gem_ds.errors import InputError

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
                check_head(self.path, file.read(8), named)
            file.seek(self.start)
            at = self.start
            for chunk in decompressed(file, named, BLOCK_BYTES):
                if at == 0:
                    check_text(self.path, chunk)
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


COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
MAGIC = {  # a file's first bytes
    "gzip": (b"\x1f\x8b",),
    "zstd": (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + i, 0x2A, 0x4D, 0x18]) for i in range(16))),
    "bz2": (b"BZh",),
    "xz": (b"\xfd7zXZ\0",),
}
LONGEST_WINDOW = 1 << 31  # of zstd: what `zstd --long=31` writes
STEP = 1 << 13  # compressed bytes at a time; of zstd, 4 of them may become 128 KiB


def of_head(head: bytes) -> str | None:
    """The compression that a file's first bytes show."""
    return next((name for name, magic in MAGIC.items() if head.startswith(magic)), None)


def check_head(path: str, head: bytes, named: str | None) -> None:
    """Raise `InputError` if a file is not what its name says, by its first stored bytes."""
    found = of_head(head)
    if named and head and found != named:
        what = f"is {found}" if found else f"is not {named}"
        raise InputError(f"{path} {what}, whatever its name says; rename it after what it is")
    if not named and found in ("gzip", "zstd", "xz"):  # a text may begin with BZh
        ending = next(suffix for suffix, name in COMPRESSIONS.items() if name == found)
        raise InputError(f"{path} is compressed ({found}); let its name end in {ending}")


def check_text(path: str, head: bytes) -> None:
    """Raise `InputError` if text, by its first bytes, is UTF-16 or UTF-32."""
    marked = head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))
    zeros = [head[i:64:2] for i in (0, 1)]
    unmarked = len(head) >= 8 and any(not any(each) for each in zeros) and any(head[:64])
    if marked or unmarked:
        raise InputError(
            f"{path} is UTF-16 or UTF-32, not UTF-8; convert it, for example with "
            "iconv -f UTF-16 -t UTF-8"
        )


def decompressed(file: Any, compression: str | None, size: int) -> Iterator[bytes]:
    """The bytes of an Arrow file from where it stands, in chunks of about `size`."""
    if compression in MEMBER:
        yield from _members(file, MEMBER[compression])
        return
    with contextlib.ExitStack() as stack:
        stream = file
        if compression:
            stream = stack.enter_context(pa.CompressedInputStream(file, compression))
        while chunk := stream.read(size):
            yield chunk


def _zstd() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=LONGEST_WINDOW).decompressobj()


# What Arrow cannot read (xz, zstd with windows of more than 128 MiB, bzip2 with empty members), and
# of what the readers of files in `lzma`, `bz2` and `zstandard` notice no damage between members.
MEMBER: dict[str | None, Callable[[], Any]] = {
    "zstd": _zstd,
    "bz2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
}


def _members(file: Any, begin: Callable[[], Any]) -> Iterator[bytes]:
    """The content of members, which follow one another."""
    member = None
    while data := file.read(STEP):
        while data:
            if member is None:
                data = data.lstrip(b"\0")  # as xz may pad
                if not data:
                    break
                member = begin()
            if chunk := member.decompress(data):
                yield chunk
            data = b""
            if member.eof:
                data, member = member.unused_data, None
    if member:
        raise EOFError("its last part is cut short")
