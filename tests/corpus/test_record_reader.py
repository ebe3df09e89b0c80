import gzip
import json
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from reading import TEXTS, jsonl, read, save_every_format, texts

from gem_ds.corpus import discovery, record_reader, records, streams
from gem_ds.corpus.discovery import Input
from gem_ds.corpus.record_reader import Part
from gem_ds.corpus.records import record_id
from gem_ds.errors import InputError

LINES = jsonl(TEXTS)


def save(path: Path, content: bytes) -> list[Input]:
    path.write_bytes(content)
    return discovery.find([str(path)])


def test_every_format_gives_the_same_texts(tmp_path: Path) -> None:
    for name in save_every_format(tmp_path):
        found = discovery.find([str(tmp_path / name)])
        assert texts(found) == TEXTS, name


def test_identity_is_the_input_and_where_the_record_begins(tmp_path: Path) -> None:
    names = save_every_format(tmp_path)
    found = discovery.find([str(tmp_path / name) for name in names])
    places: list[list[int]] = [[] for _ in found]
    lines: list[list[int]] = [[] for _ in found]
    for identity, line, _ in read(found):
        number, offset = records.place_of(identity)
        assert identity == record_id(number, offset)
        places[number].append(offset)
        lines[number].append(line)
    begin = [LINES.index(json.dumps({"id": i, "text": t}).encode()) for i, t in enumerate(TEXTS)]
    plain = (tmp_path / "e.txt").read_bytes()
    assert places == [
        begin,
        [0, *(place + 3 + i for i, place in enumerate(begin[1:], 1))],  # a mark, carriage returns
        begin,
        begin,
        [plain.index(text.encode()) for text in TEXTS],
        [plain.index(text.encode()) - 4 for text in TEXTS],
        *[[0, 1, 2, 3]] * 5,
    ]
    assert lines == [*[[1, 2, 3, 4]] * 4, [2, 4, 6, 9], [1, 3, 5, 8], *[[1, 2, 3, 4]] * 5]


def test_a_text_file_may_be_one_record(tmp_path: Path) -> None:
    found = save(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\n\r\ntwo\n")
    assert read(found, unit="file") == [(0, 1, "one\r\n\r\ntwo\n")]
    assert read(found) == [(0, 1, "one"), (10, 3, "two")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz"])
@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\xef\xbb\xbf", b" \r\n\n\t\n \n  ", b"\xef\xbb\xbf\n"]
)
def test_blank_files_hold_no_record(tmp_path: Path, name: str, content: bytes) -> None:
    content = gzip.compress(content) if name.endswith("gz") else content
    assert read(save(tmp_path / name, content)) == []


def test_a_bad_record_costs_itself_only(tmp_path: Path) -> None:
    lines = {
        b'{"text": "good"}': "good",
        b'{"text": "b\xffd"}': "skipped: invalid UTF-8",
        b'{"text": "half': "skipped: invalid JSON",
        b"[" * 100_000: "skipped: invalid JSON",
        b'["text"]': "skipped: not a JSON object",
        b'{"txt": "x"}': "skipped: missing field 'text'",
        b'{"text": null}': "skipped: missing field 'text'",
        b'{"text": 5}': "skipped: not a string",
        b'{"text": " \\n"}': "skipped: empty text",
        b'{"text": "\\ud800"}': "skipped: lone surrogate",
        b'{"text": "\\ud83d\\ude00 \\u0000"}': "😀 \0",
        b'{"text": "\xef\xbb\xbfmark"}\r': "\ufeffmark",
        b'\0{"text": "x"}': "skipped: invalid JSON",
        b'\xef\xbb\xbf{"text": "x"}': "skipped: invalid JSON",  # a mark that is not the file's
    }
    assert texts(save(tmp_path / "a.jsonl", b"\n".join(lines))) == list(lines.values())
    assert texts(save(tmp_path / "a.txt", b"a\0b\n\n\xff\n\nc")) == [
        "a\0b",
        "skipped: invalid UTF-8",
        "c",
    ]


def test_over_long_records_are_left_out_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_RECORD", 100)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 64)
    lines = save(tmp_path / "a.jsonl", b'{"text": "a"}\n' + b"x" * 1000 + b'\n{"text": "b"}')
    long = f"skipped: {records.TOO_LONG}"
    assert read(lines) == [(0, 1, "a"), (14, 2, long), (1015, 3, "b")]
    text = b"a\n\n" + b"line\n" * 50 + b"\n" + b"x" * 500 + b"\n\nb"
    expected = [(0, 1, "a"), (3, 3, long), (254, 54, long), (756, 56, "b")]
    assert read(save(tmp_path / "a.txt", text)) == expected
    one = save(tmp_path / "b.txt", b"x" * 1000)
    assert read(one) == read(one, unit="file") == [(0, 1, long)]


def test_block_size_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_every_format(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    found = discovery.find([str(tmp_path)])
    whole = read(found)
    for size in (1, 7, 50, 1000):
        monkeypatch.setattr(streams, "BLOCK_BYTES", size)
        assert read(found) == whole
    for n in (1, 3):
        monkeypatch.setattr(record_reader, "BLOCK_RECORDS", n)
        assert read(found) == whole
        held = [
            len(b.records)
            for b in record_reader.blocks(found, record_reader.whole(found), lambda _: [])
        ]
        assert max(held) == n
    parts = record_reader.whole(found)
    reached = [0] * len(parts)
    ordinals: list[list[int]] = [[] for _ in parts]
    for block in record_reader.blocks(found, parts, lambda _: ["text"]):
        assert reached[block.part] <= block.position <= parts[block.part].n_bytes
        reached[block.part] = block.position
        ordinals[block.part] += [record.ordinal for record in block.records]
    assert reached == [item.size for item in found]
    assert ordinals == [[0, 1, 2, 3] if item.size else [] for item in found]


def test_streams_of_several_members_are_read_whole(tmp_path: Path) -> None:
    """As concatenation and parallel compressors write them."""
    halves = LINES[:60], LINES[60:]
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0size"
    frames = [skippable + zstandard.compress(half) for half in halves]
    assert texts(save(tmp_path / "a.jsonl.zst", b"".join(frames) + skippable)) == TEXTS
    members = [gzip.compress(half) + gzip.compress(b"") for half in halves]
    assert texts(save(tmp_path / "a.jsonl.gz", b"".join(members))) == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl.gz",
            gzip.compress(LINES, mtime=0)[:-4],
            "is damaged or cut short after line [34] ",
        ),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-20], "is damaged or cut short after"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0) + b"more", "is damaged or cut short after"),
        ("a.jsonl.zst", zstandard.compress(LINES)[:-5], "is damaged or cut short "),
        ("a.jsonl.zst", LINES, "is not zstd, whatever its name says; rename it"),
        ("a.parquet", b"PAR1 no", "is damaged or cut short "),
        ("a.parquet", b"", "is damaged or cut short "),
    ],
)
def test_damaged_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, message: str
) -> None:
    monkeypatch.setattr(streams, "BLOCK_BYTES", 8)
    with pytest.raises(InputError, match=rf"{name} {message}"):
        read(save(tmp_path / name, content))


def test_a_damaged_page_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": [f"{i:0200}" for i in range(600)]}),
        path,
        row_group_size=256,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    content = bytearray(path.read_bytes())
    content[content.index(f"{400:0200}".encode()) + 5] ^= 1
    found = save(path, content)
    with pytest.raises(InputError, match=r"a\.parquet is damaged or cut short after row 256 .*CRC"):
        read(found)


def test_a_file_that_changes_after_the_plan_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    found = save(path, LINES)
    path.write_bytes(LINES + b'{"text": "more"}\n')
    assert texts(found) == TEXTS  # a part ends where it did; `corpus.discovery.unchanged` tells
    path.write_bytes(LINES[:-20])
    message = rf"short after line 3 \(EOFError: it ends after {len(LINES) - 20} bytes, but had"
    with pytest.raises(InputError, match=rf"a\.jsonl is damaged or cut {message}"):
        read(found)
    begin = LINES.index(b"\n") + 1
    with pytest.raises(InputError, match=rf"after line 2 from byte {begin} on"):
        read(found, [Part(0, begin, len(LINES), len(LINES) - begin)])
    path.unlink()
    with pytest.raises(InputError, match=r"a\.jsonl cannot be read at the start .*No such file"):
        read(found)


def test_a_name_need_not_be_unicode(tmp_path: Path) -> None:
    assert texts(save(tmp_path / os.fsdecode(b"\xff.jsonl"), LINES)) == TEXTS


def test_hard_lines_take_linear_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million blank lines, and a line of 5,000 chunks."""
    monkeypatch.setattr(streams, "BLOCK_BYTES", 1 << 12)
    n = 5000 << 12
    line = save(tmp_path / "a.jsonl", b'{"text": "' + b"x" * n + b'"}')
    blank = save(tmp_path / "b.txt", b"\n" * 1_000_000 + b"a")
    began = time.process_time()
    assert [len(text) for text in texts(line)] == [n]
    assert read(blank) == [(1_000_000, 1_000_001, "a")]
    assert time.process_time() - began < 8
