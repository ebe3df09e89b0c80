import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from gem_ds import records, sources
from gem_ds.errors import InputError

TEXTS = ["first", "zweiter é 😀", "third\nin two lines", "fourth"]
JSONL = "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(TEXTS)).encode()


def read(path: Path, field: str = "text", unit: str = "paragraph") -> list[tuple[int, int, str]]:
    """Ordinal, line and text (or why there is none) of each record."""
    found = []
    for block in sources.blocks(sources.find([str(path)]), [field], unit):
        for record in block.records():
            try:
                found.append((record.ordinal, record.line, record.text(field)))
            except records.Skip as skip:
                found.append((record.ordinal, record.line, f"skipped: {skip}"))
    return found


def test_every_format_gives_the_same_texts(tmp_path: Path) -> None:
    plain = "\n\n".join(TEXTS).encode()
    strings = pa.array(TEXTS)
    contents = {
        "a.jsonl": JSONL,
        "b.json": b"\xef\xbb\xbf" + JSONL.replace(b"\n", b"\r\n"),
        "c.jsonl.gz": gzip.compress(JSONL[:60]) + gzip.compress(JSONL[60:]),
        "d.ndjson.zst": zstandard.compress(JSONL.rstrip()),
        "e.txt": b"\xef\xbb\xbf\n" + plain + b"\n\n \r\n\n",
        "f.txt.gz": gzip.compress(plain),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name, column in {
        "g.parquet": strings,
        "h.parquet": strings.cast(pa.large_string()),
        "i.parquet": strings.dictionary_encode(),
    }.items():
        pq.write_table(pa.table({"other": range(4), "text": column}), tmp_path / name)
    for name in [*contents, "g.parquet", "h.parquet", "i.parquet"]:
        found = read(tmp_path / name)
        assert [text for _, _, text in found] == TEXTS, name
        assert [ordinal for ordinal, _, _ in found] == [0, 1, 2, 3]
    assert [line for _, line, _ in read(tmp_path / "a.jsonl")] == [1, 2, 3, 4]
    assert [line for _, line, _ in read(tmp_path / "e.txt")] == [2, 4, 6, 9]


def test_a_text_file_may_be_one_record(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\n\r\ntwo\n")
    assert read(path, unit="file") == [(0, 1, "one\r\n\r\ntwo\n")]
    assert read(path) == [(0, 1, "one"), (1, 3, "two")]


def test_a_bad_record_costs_itself_only(tmp_path: Path) -> None:
    lines = {
        b'{"text": "good"}': "good",
        b'{"text": "b\xffd"}': "skipped: invalid UTF-8",
        b'{"text": "half': "skipped: invalid JSON",
        b"[" * 100_000: "skipped: invalid JSON",
        b'["text"]': "skipped: not a JSON object",
        b'{"txt": "x"}': "skipped: missing field",
        b'{"text": null}': "skipped: missing field",
        b'{"text": 5}': "skipped: not a string",
        b'{"text": " \\n"}': "skipped: empty text",
        b"": "skipped: empty text",
        b'{"text": "\\ud800"}': "skipped: lone surrogate",
        b'{"text": "\\ud83d\\ude00 \\u0000"}': "😀 \0",
    }
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    assert [text for _, _, text in read(path)] == list(lines.values())


def test_parquet_strings_are_checked_one_by_one(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"b\xffd", None, b""], type=pa.binary())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": raw.view(pa.string())}), path)
    texts = [text for _, _, text in read(path)]
    reasons = ["skipped: invalid UTF-8", "skipped: missing field", "skipped: empty text"]
    assert texts == ["good", *reasons]


def test_over_long_records_are_left_out_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_RECORD", 100)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 64)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + b"x" * 1000 + b'\n{"text": "b"}')
    (tmp_path / "a.txt").write_bytes(b"a\n\n" + b"line\n" * 50 + b"\n" + b"x" * 500 + b"\n\nb")
    (tmp_path / "b.txt").write_bytes(b"x" * 1000)
    long = f"skipped: {records.TOO_LONG}"
    assert [text for *_, text in read(tmp_path / "a.jsonl")] == ["a", long, "b"]
    assert read(tmp_path / "a.txt") == [(0, 1, "a"), (1, 3, long), (2, 54, long), (3, 56, "b")]
    assert read(tmp_path / "b.txt") == [(0, 1, long)]
    assert read(tmp_path / "b.txt", unit="file") == [(0, 1, long)]


def test_block_size_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(JSONL)
    whole = read(path)
    for size in (1, 7, 50):
        monkeypatch.setattr(sources, "BLOCK_BYTES", size)
        assert read(path) == whole
    positions = [b.position for b in sources.blocks([path, path], ["text"])]
    assert positions == sorted(positions)
    assert positions[-1] == 2 * len(JSONL)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", gzip.compress(JSONL, mtime=0)[:-20], "damaged or cut short"),
        ("a.jsonl.zst", zstandard.compress(JSONL)[:-5], "damaged or cut short"),
        ("a.jsonl.zst", JSONL, "damaged or cut short at its beginning"),
        ("a.parquet", b"PAR1 no", "damaged or cut short"),
        ("a.csv", b"text", "no known format"),
        ("a.parquet.gz", b"", "no known format"),
    ],
)
def test_damaged_and_unknown_files_are_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}.*{message}|{name} is of {message}"):
        read(tmp_path / name)


def test_missing_files_and_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no corpus file .*nowhere"):
        sources.find([str(tmp_path / "nowhere.jsonl")])
    with pytest.raises(InputError, match="holds no corpus file"):
        sources.find([str(tmp_path)])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), path)
    with pytest.raises(InputError, match="no column 'text' but body, n"):
        read(path)
    with pytest.raises(InputError, match=r"column 'n' of .* holds int64"):
        read(path, field="n")


def test_a_folder_stands_for_its_corpus_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.txt", "sub/c.jsonl.gz", "info.json", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in sources.find([str(tmp_path)])]
    assert found == ["a.txt", "b.jsonl", "sub/c.jsonl.gz"]
    assert read(tmp_path) == []
