"""Every text of a file counts, in its order, whatever the format; what is no text is refused."""

import gzip
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gem_ds.errors import InputError
from gem_ds.text_files import TextFile

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
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
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
    with pytest.raises(InputError, match=r"a\.csv is of no known format"):
        TextFile.find(str(folder / "a.csv"))
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        TextFile.find(str(folder / "nowhere.txt"), "text")


@pytest.mark.parametrize("form", [None, "jsonl"])
def test_standard_input(monkeypatch: pytest.MonkeyPatch, form: str | None) -> None:
    lines = [json.dumps({"text": t}) for t in TEXTS] if form else TEXTS
    given = "\r\n".join([*lines, ""]).encode()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(given)))
    file = TextFile.find("-", form)
    assert [text.text for text in file.texts()] == TEXTS
    assert [text.text for text in file.texts()] == TEXTS, "again"
    with pytest.raises(InputError, match="a table cannot be read from standard input"):
        TextFile.find("-", "parquet")


def test_what_is_no_text_is_named(folder: Path) -> None:
    (folder / "bad.txt").write_bytes(b"fine\n\xff\xfe\n")
    (folder / "bad.jsonl").write_text('{"text": "a"}\n{"text": "\\ud800"}\n')
    (folder / "null.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
    (folder / "empty.txt").write_bytes(b"")
    for name, said in {
        "bad.txt": r"bad\.txt, line 2: invalid UTF-8; mend or remove the line",
        "bad.jsonl": r"bad\.jsonl, line 2: lone surrogate",
        "null.jsonl": r"null\.jsonl, line 2: not a string \(text\)",
        "empty.txt": r"empty\.txt has no lines",
    }.items():
        with pytest.raises(InputError, match=said):
            list(TextFile.find(str(folder / name)).texts())
    for name, said in {
        "a.jsonl": r"line 1: missing field \(body\)",
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
