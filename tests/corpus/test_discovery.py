import gzip
import os
from collections.abc import Sequence
from pathlib import Path

import datasets
import huggingface_hub
import pytest
import zstandard

from gem_ds.corpus import discovery
from gem_ds.corpus.discovery import JSONL, PARQUET, SAVED, STREAMED, TEXT, Input
from gem_ds.errors import InputError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, which looks like a pattern itself."""
    folder = tmp_path / "a [b] c=d"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def save(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        content = b"{}\n{}\n"
        if name.endswith((".gz", ".zst")):
            content = (gzip if name.endswith(".gz") else zstandard).compress(content)
        Path(name).write_bytes(content)


def find(*names: str, sources: Sequence[str] = ()) -> list[str]:
    """Paths of what is found in the working directory, with the source's name if there is one."""
    return [
        f"{item.source}={os.path.relpath(item.path)}" if sources else os.path.relpath(item.path)
        for item in discovery.find(names, sources)
    ]


def test_a_file_is_looked_at(folder: Path) -> None:
    for name, form, compression in [
        ("a.jsonl", JSONL, None),
        ("a.json", JSONL, None),
        ("b.json.gz", JSONL, "gzip"),
        ("c.ndjson.zst", JSONL, "zstd"),
        ("d.parquet", PARQUET, None),
        ("e.txt.gz", TEXT, "gzip"),
    ]:
        save(name)
        changed = str(os.stat(name).st_mtime_ns)
        size = os.stat(name).st_size
        expected = Input(str(folder / name), form, compression, size, changed)
        assert discovery.find([name]) == [expected]
        assert discovery.unchanged(expected)
        Path(name).write_bytes(b"{}")
        assert not discovery.unchanged(expected)
    Path("a.jsonl").unlink()
    with pytest.raises(InputError, match=r"a\.jsonl cannot be read .No such file"):
        discovery.unchanged(expected.__class__(str(folder / "a.jsonl"), JSONL, None, 3, "0"))


def test_a_folder_stands_for_its_corpus_files(folder: Path) -> None:
    save("b.jsonl", "a.txt", "sub/c.jsonl.gz", "sub-x/d.txt", "sub.jsonl/e.parquet")
    save("dataset_info.json", "README.md", "._b.jsonl", ".cache/f.jsonl", "sub/state.json")
    expected = ["a.txt", "b.jsonl", "sub-x/d.txt", "sub.jsonl/e.parquet", "sub/c.jsonl.gz"]
    assert find(".") == find(str(folder)) == find("./") == expected
    assert find("sub.jsonl") == ["sub.jsonl/e.parquet"]
    assert find("dataset_info.json") == ["dataset_info.json"]


def test_names_and_patterns(folder: Path) -> None:
    save("b.jsonl", "a.jsonl", "a b.jsonl", "[ab].jsonl", "x=y.jsonl", "sub/deep/c.jsonl")
    assert find("*.jsonl") == ["[ab].jsonl", "a b.jsonl", "a.jsonl", "b.jsonl", "x=y.jsonl"]
    assert find("[ab].jsonl") == ["[ab].jsonl"]  # what is there by that very name goes first
    assert find("[abc].jsonl") == ["a.jsonl", "b.jsonl"]
    assert find("**/[ac].jsonl") == ["a.jsonl", "sub/deep/c.jsonl"]
    assert find("x=y.jsonl", "b.jsonl") == ["x=y.jsonl", "b.jsonl"]  # in the order given
    assert find("sub/../b.jsonl", f"{folder}/a b.jsonl") == ["b.jsonl", "a b.jsonl"]


def test_home_and_names_that_are_no_unicode(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    save("../a.jsonl", os.fsdecode(b"\xff.jsonl"))
    assert find("~/a.jsonl") == find("~/a*l") == ["../a.jsonl"]
    assert find(".") == ["\udcff.jsonl"]


def test_links_are_followed_once(folder: Path) -> None:
    save("corpus/2024/a.jsonl", "elsewhere/b.jsonl", "blobs/0123")
    Path("corpus/latest").symlink_to("2024")
    Path("corpus/more").symlink_to(folder / "elsewhere")
    Path("corpus/2024/loop").symlink_to("..")
    Path("corpus/c.jsonl").symlink_to("../blobs/0123")
    found = ["corpus/2024/a.jsonl", "corpus/c.jsonl", "corpus/more/b.jsonl"]
    assert find("corpus") == found
    Path("corpus/lost.jsonl").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"lost\.jsonl cannot be read .No such file"):
        find("corpus")


def test_what_is_given_twice_is_refused(folder: Path) -> None:
    save("corpus/a.jsonl")
    Path("b.jsonl").symlink_to("corpus/a.jsonl")
    for names in (["corpus/a.jsonl", "corpus"], ["corpus", "corpus/"], ["corpus/*", "corpus/a*"]):
        with pytest.raises(InputError, match=r"--input gives .*a\.jsonl twice; give it once"):
            find(*names)
    with pytest.raises(InputError, match=r"gives .*b\.jsonl twice, the other time as .*a\.jsonl;"):
        find("corpus", "b.jsonl")


def test_what_is_no_corpus_is_refused(folder: Path) -> None:
    os.mkfifo("pipe.jsonl")
    save("x/pipe.md", "a.rtf", "b.parquet.gz", "c")
    Path("empty").mkdir()
    for name, message in {
        "": "an --input is empty",
        "nowhere.jsonl": r"no corpus file nowhere\.jsonl; correct --input",
        "nowhere/": "no corpus file nowhere/",
        "*.parquet": r"no corpus file \*\.parquet",
        "em*": r"em\* holds no corpus file .*/empty/ \(a folder; give it",
        "empty": r"the folder .*/empty holds no corpus file \(\.jsonl,.*\.gz",
        "x": "holds no corpus file",
        "a.rtf": r"a\.rtf is of no known format; convert it to one of \.jsonl",
        "b.parquet.gz": "no known format",
        "c": "no known format",
        "pipe.jsonl": r"pipe\.jsonl is no ordinary file",
        ".": r"pipe\.jsonl is no ordinary file",
        "a.rtf/b.jsonl": "no corpus file",
        "dataset:": "give dataset:NAME",
        "dataset:a:b:c:d": "give dataset:NAME",
        "dataset:a:": "give dataset:NAME",
    }.items():
        with pytest.raises(InputError, match=message):
            find(name)


def test_inputs_of_a_mixture_have_a_name_in_front(folder: Path) -> None:
    save("a.jsonl", "b/x=1.jsonl", "b/y.jsonl", "web=a.jsonl")
    web, books = sources = ["web", "books"]
    found = find("web=a.jsonl", "books=b", "web=web=a.jsonl", sources=sources)
    assert found == ["web=a.jsonl", "books=b/x=1.jsonl", "books=b/y.jsonl", "web=web=a.jsonl"]
    assert find("web=a.jsonl") == ["web=a.jsonl"]
    for names, message in {
        ("a.jsonl",): r"--input a\.jsonl: in a mixture, .* such as web=a\.jsonl",
        ("wb=a.jsonl",): "in a mixture, .* such as web=a.jsonl",
        ("web=",): "in a mixture",
        ("web=a.jsonl",): "--mix names 'books', but no --input",
        ("web=a.jsonl", "books=a.jsonl"): "twice",
    }.items():
        with pytest.raises(InputError, match=message):
            find(*names, sources=[web, books])


def test_datasets_in_folders(folder: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]})
    rows.save_to_disk("saved")
    datasets.DatasetDict({"train": rows}).save_to_disk("splits")
    save("lines/a.jsonl")
    (saved,) = discovery.find(["saved"])
    assert (saved.path, saved.format) == (str(folder / "saved"), SAVED)
    assert saved.size > Path("saved/data-00000-of-00001.arrow").stat().st_size > 0
    Path("saved/cache-0123.arrow").touch()  # as `map` leaves
    assert discovery.unchanged(saved)
    os.utime("saved/state.json", (0, 2**40))
    assert not discovery.unchanged(saved)
    assert [item.format for item in discovery.find(["splits/train"])] == [SAVED]
    with pytest.raises(InputError, match="splits is a dataset of several splits; give one of the"):
        find("splits")
    (streamed,) = discovery.find(["dataset:lines:train"])
    assert (streamed.path, streamed.format) == (f"dataset:{folder}/lines:train", STREAMED)
    assert discovery.unchanged(streamed)
    save("lines/b.jsonl")
    assert not discovery.unchanged(streamed)


def test_parts_of_a_datasets_name() -> None:
    assert discovery.dataset_parts("dataset:a/b") == ("a/b", None, "train")
    assert discovery.dataset_parts("dataset:a/b:test") == ("a/b", None, "test")
    assert discovery.dataset_parts("dataset:a/b:en:test") == ("a/b", "en", "test")


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(InputError, match="no folder some/thing, and the hub does not") as caught:
        discovery.find(["dataset:some/thing:en:train"])
    assert "\n" not in str(caught.value)
