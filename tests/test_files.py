import hashlib
import os
import socket
import subprocess
from pathlib import Path

import pytest

from gem_ds import files


def test_a_file_is_there_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert [(p, p.read_text()) for p in tmp_path.iterdir()] == [(path, "new")]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_write_that_is_interrupted_leaves_the_old_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "manifest.json"
    path.write_text("old")

    def interrupted() -> None:
        with files.replacing(path) as temporary:
            temporary.write_text("{")
            raise error

    with pytest.raises(error):
        interrupted()
    assert [(p, p.read_text()) for p in tmp_path.iterdir()] == [(path, "old")]


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    left = []
    for name in ("a.parquet", "b.json"):
        with files.replacing(tmp_path / name) as temporary:
            temporary.touch()
            left.append(temporary)
    for path in left:
        path.touch()
    files.remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "b.json"]


def test_of_leftovers_only_those_of_dead_processes_here_may_go(tmp_path: Path) -> None:
    here, ended = socket.gethostname(), subprocess.Popen(["true"])
    ended.wait()
    kept = {f"a.json.{here}-{os.getppid()}.tmp", f"a.json.another-{ended.pid}.tmp", "a.b-c.tmp"}
    gone = (f"a.json.{here}-{pid}.tmp" for pid in (ended.pid, os.getpid()))  # of an earlier one
    for name in (*kept, *gone):
        (tmp_path / name).touch()
    files.remove_leftovers(tmp_path, dead_only=True)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 1_000_000)
    assert files.sha256(path) == hashlib.sha256(b"x" * 1_000_000).hexdigest()
