"""Where an export can be written, that a killed one leaves nothing for ever, and a full disk."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from exports import export_tiny
from helpers import small_disk

from gem_ds import GemModel
from gem_ds.errors import InputError
from gem_ds.export import output_folder


def built(place: Path) -> None:
    with output_folder.building(output_folder.check(place)) as folder:
        for name in ("model", "adapter"):
            (folder / name).mkdir()
            (folder / name / "x").write_text(folder.name)


def content(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def test_it_appears_whole(tmp_path: Path) -> None:
    built(tmp_path / "a" / "b")
    assert content(tmp_path) == ["a/b/adapter/x", "a/b/model/x"]
    assert (tmp_path / "a/b/model/x").read_text() == "b"


def test_links_mounts_and_the_current_folder_are_written_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "dangling").symlink_to("not-there")
    (tmp_path / "current").mkdir()
    inode = (tmp_path / "current").stat().st_ino
    built(tmp_path / "link")
    built(tmp_path / "dangling")
    monkeypatch.chdir(tmp_path / "current")
    built(Path())
    assert (tmp_path / "current").stat().st_ino == inode
    for name in ("there", "link", "not-there", "current"):
        assert content(tmp_path / name) == ["adapter/x", "model/x"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_mount_is_written_into(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        built(disk)
        assert content(disk) == ["adapter/x", "model/x"]


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (lambda path: path.write_text("x"), "", "is a file"),
        (lambda path: path.write_text("x"), "in", "cannot be used|is a file"),
        (lambda path: path.symlink_to(path), "", "cannot be used"),
        (lambda path: (path / "mine").mkdir(parents=True), "", "exists and is not empty"),
        (lambda path: (path / "run").mkdir(parents=True), "run/new", "which is exported"),
        (lambda path: (path / "run").mkdir(parents=True), "run", "which is exported"),
    ],
)
def test_what_cannot_be_replaced_is_refused(tmp_path: Path, make, name, message) -> None:
    make(tmp_path / "out")
    with pytest.raises(InputError, match=message):
        output_folder.check(tmp_path / "out" / name, tmp_path / "out" / "run")


def test_a_disk_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(InputError, match=f"{disk} cannot be written"):
            output_folder.check(disk / "new" / "out")


def test_what_killed_exports_left_is_removed(tmp_path: Path) -> None:
    """Of other machines, and of processes that live, it stays."""
    code = (
        "import sys, time; from pathlib import Path; from gem_ds.export import output_folder\n"
        "with output_folder.building(Path(sys.argv[1])) as f: print(f, flush=True); time.sleep(60)"
    )
    (tmp_path / "inside").mkdir()
    for name in ("new", "inside"):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / name)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        left = Path(process.stdout.readline().strip()).parent
        assert left.is_dir()
        if name == "new":
            output_folder.check(tmp_path / name)
            assert left.is_dir(), "its process lives"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        other = left.with_name(left.name.replace(socket.gethostname(), "elsewhere"))
        if name == "new":
            other.mkdir()
        output_folder.check(tmp_path / name)
        assert not left.exists()
        assert other.exists() == (name == "new")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        (disk / "filler").write_bytes(bytes(900_000))
        with pytest.raises(InputError, match="could not be written") as told:
            export_tiny(tokenizer_dir, disk, positions=64)
        assert "No space left" in str(told.value)
        assert sorted(path.name for path in disk.iterdir()) == ["filler", "tokenizer"]
        (disk / "filler").unlink()
        export_tiny(tokenizer_dir, disk)
        GemModel.from_pretrained(disk / "export")
