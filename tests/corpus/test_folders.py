"""Every file of a folder, a zip file or a pattern is read, or named with the reason."""

import bz2
import zipfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.feather
import pytest
from reading import texts

from gem_ds.corpus import discovery
from gem_ds.corpus.folders import LeftOut
from gem_ds.errors import InputError

LINE = b'{"text": "a"}\n{"text": "b"}\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def save(folder: Path, *names: str, content: bytes = LINE) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def find(name: str, output: str = "") -> list[str]:
    return [Path(item.path).name for item in discovery.find([name], output=output)]


def test_all_that_can_be_read_is_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(folder, "a.jsonl", "c.JSONL", "d.json", "n.NDJSON")
    save(folder, "b.jsonl.BZ2", content=bz2.compress(LINE))
    save(folder, "e.csv", "f.tsv", content=b"text\na\nb\n")
    table = pa.table({"other": [1, 2], "text": ["a", "b"]})
    pyarrow.feather.write_feather(table, folder / "g.feather")
    with pa.ipc.new_stream(folder / "h.arrow", table.schema) as stream:
        stream.write_table(table)
    found = discovery.find([str(folder)])
    assert texts(found) == ["a", "b"] * 9
    assert not capsys.readouterr().err


def test_the_rest_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(folder, "a.jsonl", "README.md", "_SUCCESS", "x.xlsx", "b.jsonl.gz.1", "c", ".hidden.txt")
    save(folder, ".git/config", ".git/x/y.jsonl", "dataset_infos.json", "x.parquet.gz")
    assert find("data") == ["a.jsonl"]
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("warning: left out of the corpus: ")
    unknown, *_ = told.split(" (of no known format)")
    for name in ("README.md", "_SUCCESS", "x.xlsx", "b.jsonl.gz.1", "data/c", "x.parquet.gz"):
        assert name in told
    assert f"{folder}/.git (2 files), {folder}/.hidden.txt (hidden)" in told
    assert "dataset_infos.json (describes a dataset)" in told
    assert "README.md" in unknown


def test_many_names_are_counted() -> None:
    left = LeftOut()
    for i in range(30):
        left.add("of no known format", f"{i}.md")
    assert str(left).endswith("18.md, 19.md and 10 more (of no known format)")


def test_a_folder_without_a_corpus_file_says_what_it_has(folder: Path) -> None:
    save(folder, "a.docx")
    with pytest.raises(InputError, match=r"data holds no corpus file .*a\.docx \(of no known"):
        find("data")
    save(folder, "b.jsonl/c.docx")
    with pytest.raises(InputError, match=r"b\.jsonl holds no corpus file"):
        find("data/b.jsonl")


def test_folders_that_a_pattern_matches_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(folder, "a.jsonl", "sub/b.jsonl")
    assert find("data/*") == ["a.jsonl"]
    assert "data/sub/ (a folder; give it, or a pattern with **)" in capsys.readouterr().err
    assert find("data/**") == ["a.jsonl", "b.jsonl"]
    assert not capsys.readouterr().err


def test_shards_are_no_corpus(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither those of this run, nor those of another."""
    save(folder, "a.jsonl")
    for name in ("mine", "other"):
        save(folder, f"{name}/lock", f"{name}/tokenizer/tokenizer.json", f"{name}/quarantine.jsonl")
        save(folder, f"{name}/shard-00000.parquet", f"{name}/units/00000.json")
    for name in ("data", "data/**"):
        assert find(name, output="data/mine") == ["a.jsonl"]
        told = capsys.readouterr().err
        assert "data/mine (5 files) (in --output)" in told
        assert "data/other (5 files) (shards of another run)" in told
    (folder / "link").symlink_to(folder / "mine")
    assert find("data", output="data/link") == ["a.jsonl"]
    for name in ("data/mine", "data/mine/quarantine.jsonl"):
        with pytest.raises(InputError, match=f"--input {name} lies in --output data/mine; give"):
            find(name, output="data/mine")


def test_a_saved_dataset_in_a_folder_is_a_dataset(folder: Path) -> None:
    """Not the files of it: these may hold rows that were not chosen."""
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"]})
    rows.select([2, 0]).save_to_disk(folder / "saved")
    save(folder, "x.jsonl")
    found = discovery.find(["data"])
    assert [item.format for item in found] == [discovery.SAVED, discovery.JSONL]
    assert texts(found) == ["c", "a", "a", "b"]


def test_links(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file is read once, by the name that tells its format; a broken link is named."""
    save(folder, "blobs/0123", "a.jsonl")
    (folder / "snapshot.jsonl").symlink_to("blobs/0123")
    (folder / "again.jsonl").symlink_to("a.jsonl")
    assert find("data") == ["a.jsonl", "snapshot.jsonl"]
    (folder / "gone.md").symlink_to("nowhere")
    assert find("data") == ["a.jsonl", "snapshot.jsonl"]
    assert "gone.md (of no known format)" in capsys.readouterr().err
    (folder / "gone.jsonl").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"gone\.jsonl cannot be read .No such file"):
        find("data")


def test_a_zip_file_is_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(folder / "a.ZIP", "w", method) as archive:
            archive.writestr("b/c.jsonl", LINE)
            archive.writestr("a.csv.bz2", bz2.compress(b"text\na\nb\n"))
            archive.writestr("__MACOSX/._c.jsonl", b"x")
            archive.writestr("b/t.parquet", b"PAR1")
            archive.mkdir("empty")
        found = discovery.find(["data"])
        assert texts(found) == ["a", "b"] * 2
        assert found == discovery.find(["data/a.ZIP"])
        assert all(discovery.unchanged(item) for item in found)
        told = capsys.readouterr().err
        assert "t.parquet" in told
        assert "._c.jsonl" in told
        assert find(f"zip://b/c.jsonl::{folder}/a.ZIP") == ["a.ZIP"]
        with zipfile.ZipFile(folder / "a.ZIP", "w", method) as archive:
            archive.writestr("b/c.jsonl", LINE + LINE)
            archive.writestr("a.csv.bz2", bz2.compress(b"text\na\nb\n"))
        assert [discovery.unchanged(item) for item in found] == [True, False]


def test_zip_files_that_cannot_be_read(folder: Path) -> None:
    save(folder, "no.zip")
    with pytest.raises(InputError, match=r"no\.zip is damaged or cut short .*not a zip file"):
        find("data/no.zip")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("a.jsonl", LINE)
    whole = (folder / "a.zip").read_bytes()
    (folder / "a.zip").write_bytes(whole.replace(b'"b"', b'"x"'))
    with pytest.raises(InputError, match=r"a\.zip is damaged or cut short .*Bad CRC"):
        texts(discovery.find(["data/a.zip"]))
    local, central = whole.index(b"PK\3\4") + 6, whole.index(b"PK\1\2") + 8
    locked = bytearray(whole)
    locked[local] |= 1
    locked[central] |= 1
    (folder / "a.zip").write_bytes(locked)
    with pytest.raises(InputError, match=r"is encrypted; unpack .*a\.zip"):
        texts(discovery.find(["data/a.zip"]))
    zipfile.ZipFile(folder / "empty.zip", "w").close()
    with pytest.raises(InputError, match=r"empty\.zip holds no corpus file"):
        find("data/empty.zip")
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("a.docx", LINE)
    with pytest.raises(InputError, match=r"a\.zip holds no corpus file .*a\.docx"):
        find("data/a.zip")
