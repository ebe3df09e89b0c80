"""gem_ds.training.compile_lock: a lock that a killed process left keeps no start waiting in
silence."""

import threading
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from gem_ds.training.compile_lock import warning_of_locks


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "0")
    (tmp_path / "deepspeed_shm_comm").mkdir()
    return tmp_path / "deepspeed_shm_comm" / "lock"


def wait(lock: Path, seconds: float) -> None:
    """As torch waits before it compiles."""
    baton = FileBaton(str(lock))
    if not baton.try_acquire():
        threading.Timer(0.5, lock.unlink).start()
        baton.wait()
    else:
        threading.Event().wait(seconds)


def test_a_lock_that_was_there_is_named(lock: Path, capsys: pytest.CaptureFixture) -> None:
    lock.touch()
    with warning_of_locks(0.1):
        wait(lock, 0.5)
    said = capsys.readouterr().out
    assert said.startswith("WARNING: waiting for a process that compiles")
    assert str(lock) in said


def test_no_other_is(
    lock: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warning_of_locks(0.1):
        wait(lock, 0.5)  # this process compiles
    with warning_of_locks(5):
        wait(lock, 0.0)  # another does, but not for long
    monkeypatch.setenv("LOCAL_RANK", "1")
    lock.touch()
    with warning_of_locks(0.1):
        wait(lock, 0.0)
    assert capsys.readouterr().out == ""
