"""Every text of a file counts, in its order, whatever the format; what is no text is refused."""

import bz2
import gzip
import io
import json
import lzma
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from gem_ds.errors import InputError
from gem_ds.inference.text_files import TextFile

TEXTS = ["one", "", "Töxt\u2028 drei", "last"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = "\n".join(TEXTS)
    (tmp_path / "a.txt").write_text(lines)
    (tmp_path / "crlf.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*TEXTS, ""]).encode())
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(lines.encode()))
    rows = [{"text": t, "id": f"n{i}", "n": i} for i, t in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    (tmp_path / "a.csv").write_text(lines)
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as arrow:
        arrow.write_table(table)
    return tmp_path


@pytest.mark.parametrize("name", ["a.txt", "crlf.txt", "a.txt.gz", "a.jsonl", "a.parquet"])
def test_all_texts_in_order(folder: Path, name: str) -> None:
    file = TextFile.find(str(folder / name))
    assert [text.text for text in file.texts()] == TEXTS
    assert [text.id for text in file.texts()] == ["0", "1", "2", "3"]
    if file.format != "text":
        ids = [text.id for text in TextFile.find(file.path, id_field="id").texts()]
        assert ids == ["n0", "n1", "n2", "n3"]
        assert [t.id for t in TextFile.find(file.path, id_field="n").texts()] == [
            "0",
            "1",
            "2",
            "3",
        ]


def test_a_format_can_be_forced(folder: Path) -> None:
    assert [t.text for t in TextFile.find(str(folder / "a.csv"), "text").texts()] == TEXTS
    (folder / "a.rtf").touch()
    with pytest.raises(InputError, match=r"a\.rtf is of no known format"):
        TextFile.find(str(folder / "a.rtf"))
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        TextFile.find(str(folder / "nowhere.txt"), "text")


def give(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Put bytes on standard input."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def outcome(path: str, form: str | None) -> list[tuple[str, str]] | str:
    """The texts of a file, or the message that there are none, without the file's name."""
    try:
        return list(TextFile.find(path, form, id_field="id" if form else None).texts())
    except InputError as error:
        return str(error).replace("standard input" if path == "-" else path, "FILE")


@pytest.mark.parametrize(
    ("form", "name"),
    [
        *((None, name) for name in ("a.txt", "crlf.txt", "a.txt.gz", "bad.txt", "utf16.txt")),
        *((None, name) for name in ("a.txt.zst", "a.txt.bz2", "a.txt.xz", "cut.txt.gz")),
        *(("jsonl", name) for name in ("a.jsonl", "array.json", "marked.jsonl", "bad.jsonl")),
        *((form, f"a.{form}") for form in ("csv", "parquet", "arrow")),
        *((None, "empty.txt"), ("jsonl", "lacking.jsonl")),
    ],
)
def test_standard_input_reads_as_a_file_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch, form: str | None, name: str
) -> None:
    lines, rows = (folder / "a.txt").read_bytes(), (folder / "a.jsonl").read_text().split("\n\n")
    contents = {
        "bad.txt": b"fine\nb\xffd\n",
        "utf16.txt": "\n".join(TEXTS).encode("utf-16"),
        "a.txt.zst": zstandard.compress(lines),
        "a.txt.bz2": bz2.compress(lines),
        "a.txt.xz": lzma.compress(lines),
        "cut.txt.gz": gzip.compress(lines)[:-9],
        "array.json": f"[{', '.join(rows)}]".encode(),
        "marked.jsonl": b"\xef\xbb\xbf" + "\r\n".join(rows).encode(),
        "bad.jsonl": b'{"id": "a", "text": "a"}\n{"id": "b", "text": "b\xff"}\n',
        "lacking.jsonl": b'{"id": "a", "txt": "a"}\n',
        "a.csv": b"id,text\n" + "\n".join(f'n{i},"{t}"' for i, t in enumerate(TEXTS)).encode(),
        "empty.txt": b"",
    }
    if name in contents:
        (folder / name).write_bytes(contents[name])
    expected = outcome(str(folder / name), form)
    assert isinstance(expected, str) == (
        name in ("bad.txt", "utf16.txt", "cut.txt.gz", "bad.jsonl", "empty.txt", "lacking.jsonl")
    )
    if not isinstance(expected, str):
        assert [text for _, text in expected] == TEXTS
    give(monkeypatch, (folder / name).read_bytes())
    assert outcome("-", form) == expected
    assert outcome("-", form) == expected, "again"


def test_what_is_no_text_is_named(folder: Path) -> None:
    (folder / "bad.txt").write_bytes(b"fine\n\xff\xfe\n")
    (folder / "bad.jsonl").write_text('{"text": "a"}\n{"text": "\\ud800"}\n')
    (folder / "null.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
    (folder / "empty.txt").write_bytes(b"")
    for name, said in {
        "bad.txt": r"bad\.txt, line 2: invalid UTF-8; correct or remove the line",
        "bad.jsonl": r"bad\.jsonl, line 2: lone surrogate",
        "null.jsonl": r"null\.jsonl, line 2: not a string \(text\)",
        "empty.txt": r"empty\.txt has no lines",
    }.items():
        with pytest.raises(InputError, match=said):
            list(TextFile.find(str(folder / name)).texts())
    for name, said in {
        "a.jsonl": r"line 1: missing field 'body' \(it has text, id, n; name .* \(--field",
        "a.parquet": r"has no column 'body' but .* \(--field",
    }.items():
        with pytest.raises(InputError, match=said):
            list(TextFile.find(str(folder / name), field="body").texts())


def test_an_identity_changes_with_the_texts(folder: Path) -> None:
    file = TextFile.find(str(folder / "a.txt"))
    before = file.identity()
    assert before == TextFile.find(str(folder / "a.txt")).identity()
    (folder / "a.txt").write_text("other\n")
    assert file.identity() != before
    assert TextFile.find(str(folder / "a.jsonl"), field="x").identity() != (
        TextFile.find(str(folder / "a.jsonl")).identity()
    )
