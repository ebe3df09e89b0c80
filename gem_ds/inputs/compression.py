"""Compressed streams: which compression a file has, and its bytes decompressed.

A stream may consist of several members, as concatenation and parallel compressors write them. One
that is cut short raises; nothing ends early without an error.
"""

import bz2
import contextlib
import lzma
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import zstandard

from gem_ds.errors import InputError

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
