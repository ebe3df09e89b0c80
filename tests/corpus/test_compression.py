"""Compressed files: several members, what is cut short, and names that do not tell the truth."""

import bz2
import gzip
import lzma
from pathlib import Path

import pytest
import zstandard
from reading import TEXTS, jsonl, texts

from gem_ds.corpus import discovery, streams
from gem_ds.errors import InputError

LINES = jsonl(TEXTS)
SQUEEZE = {
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def save(path: Path, content: bytes) -> list[discovery.Input]:
    path.write_bytes(content)
    return discovery.find([str(path)])


@pytest.mark.parametrize("ending", SQUEEZE)
def test_members_follow_one_another(tmp_path: Path, ending: str) -> None:
    squeeze = SQUEEZE[ending]
    members = squeeze(LINES[:60]), squeeze(b""), squeeze(LINES[60:])
    found = save(tmp_path / f"a.JSONL{ending.upper()}", b"".join(members))
    assert texts(found) == TEXTS


@pytest.mark.parametrize("ending", SQUEEZE)
def test_damage_between_members_is_noticed(tmp_path: Path, ending: str) -> None:
    squeeze = SQUEEZE[ending]
    content = squeeze(LINES[:60]) + b"junk" + squeeze(LINES[60:])
    with pytest.raises(InputError, match="is damaged or cut short"):
        texts(save(tmp_path / f"a.jsonl{ending}", content))


def test_xz_may_be_padded(tmp_path: Path) -> None:
    content = lzma.compress(LINES[:60]) + b"\0" * 8 + lzma.compress(LINES[60:]) + b"\0" * 4
    assert texts(save(tmp_path / "a.jsonl.xz", content)) == TEXTS


@pytest.mark.parametrize("ending", SQUEEZE)
def test_a_stream_that_is_cut_short_is_refused(tmp_path: Path, ending: str) -> None:
    whole = SQUEEZE[ending](LINES)
    for end in (len(whole) - 1, len(whole) // 2, 12):
        with pytest.raises(InputError, match="is damaged or cut short"):
            texts(save(tmp_path / f"a.jsonl{ending}", whole[:end]))


def test_a_window_of_2_gib_is_read(tmp_path: Path) -> None:
    """As `zstd --long=31` writes; Arrow takes no more than 128 MiB."""
    options = zstandard.ZstdCompressionParameters(window_log=31, write_content_size=False)
    stream = zstandard.ZstdCompressor(compression_params=options).compressobj()
    packed = stream.compress(LINES) + stream.flush()
    assert zstandard.get_frame_parameters(packed).window_size == 1 << 31
    assert texts(save(tmp_path / "a.jsonl.zst", packed)) == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", LINES, r"a\.jsonl\.gz is not gzip, whatever its name says"),
        ("a.jsonl.gz", zstandard.compress(LINES), r"a\.jsonl\.gz is zstd, whatever its name"),
        ("a.csv.xz", gzip.compress(LINES, mtime=0), r"a\.csv\.xz is gzip, whatever its name"),
        (
            "a.jsonl",
            gzip.compress(LINES, mtime=0),
            r"is compressed \(gzip\); let its name end in \.gz",
        ),
        ("a.txt", lzma.compress(LINES), r"is compressed \(xz\); let its name end in \.xz"),
        *(
            ("a.txt", "text of some words".encode(code), "is UTF-16 or UTF-32, not UTF-8; convert")
            for code in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be")
        ),
        (
            "a.csv.gz",
            gzip.compress("text\nwörter".encode("utf-16"), mtime=0),
            "is UTF-16 or UTF-32",
        ),
    ],
)
def test_a_file_is_what_its_name_says(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        texts(save(tmp_path / name, content))


def test_texts_that_only_look_odd_are_read(tmp_path: Path) -> None:
    assert texts(save(tmp_path / "a.txt", b"BZh is how it begins")) == ["BZh is how it begins"]
    assert texts(save(tmp_path / "b.txt", b"a\0b")) == ["a\0b"]
    assert texts(save(tmp_path / "c.txt", b"\0" * 20)) == ["\0" * 20]
    assert texts(save(tmp_path / "d.jsonl.gz", b"")) == []


def test_the_head_tells() -> None:
    found = [streams.of_head(squeeze(LINES)) for squeeze in SQUEEZE.values()]
    assert found == ["gzip", "zstd", "bz2", "xz"]
    assert streams.of_head(LINES) is None
