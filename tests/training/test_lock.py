"""gem_ds.training.run_folder: one job at a time in a run's folder, on this machine and on
others."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gem_ds.errors import InputError
from gem_ds.training.run_folder import LOCK, Lock

HOLD = """
import sys, time
from pathlib import Path
from gem_ds.training.run_folder import Lock
lock = Lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_dead_job_keeps_no_lock(tmp_path: Path) -> None:
    held = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE)
    try:
        assert held.stdout is not None
        held.stdout.readline()
        message = rf"written by another run \(process {held.pid} on {socket.gethostname()}\)"
        with pytest.raises(InputError, match=message):
            Lock(tmp_path)
    finally:
        held.kill()
        held.wait()
    lock = Lock(tmp_path)
    with pytest.raises(InputError, match=rf"process {os.getpid()} "):
        Lock(tmp_path)
    lock.release()
    Lock(tmp_path).release()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run cannot be written \(Not a directory\); choose"):
        Lock(tmp_path / "file" / "run")


OWNER = {"host": "elsewhere", "pid": 7, "job": "12", "time": 0.0}


@pytest.mark.parametrize("ahead", [-1e6, 0.0, 1e6])  # its clock
def test_a_dead_job_of_another_machine_is_waited_for_a_little(
    ahead: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / LOCK).write_text(json.dumps({**OWNER, "time": time.time() + ahead}))
    began = time.monotonic()
    Lock(tmp_path, sign_seconds=0.1).release()
    assert 0.3 <= time.monotonic() - began < 3
    said = capsys.readouterr().err
    assert re.search(r"was left by job 12, process 7 on elsewhere; waiting until \d\d:", said)


@pytest.mark.parametrize("ahead", [-1e6, 1e6])
def test_a_job_of_another_machine_that_lives_keeps_it(ahead: float, tmp_path: Path) -> None:
    """There the file system's lock may not be seen."""
    (tmp_path / LOCK).write_text(json.dumps(OWNER))

    def live() -> None:
        for _ in range(20):
            time.sleep(0.05)
            with (tmp_path / LOCK).open("r+") as file:  # never empty, which would give it back
                file.write(json.dumps({**OWNER, "time": time.time() + ahead}))

    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(InputError, match=r"job 12, process 7 on elsewhere"):
        Lock(tmp_path, sign_seconds=0.5)
    thread.join()


def test_a_job_of_another_machine_that_ends_gives_it_back(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(json.dumps(OWNER))
    thread = threading.Timer(0.2, lambda: (tmp_path / LOCK).write_text(""))
    thread.start()
    began = time.monotonic()
    Lock(tmp_path, sign_seconds=10).release()
    thread.join()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("content", [b"[1]", b"7", b'"x"', b"null", b"\xff\x00", b"{", b"{}"])
def test_a_lock_that_cannot_be_read_is_of_an_unknown_machine(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / LOCK).write_bytes(content)
    Lock(tmp_path, sign_seconds=0.01).release()
    assert "was left by process unknown on an unknown machine" in capsys.readouterr().err


def test_a_lock_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(InputError, match=r"lock\.json is a folder; remove it"):
        Lock(tmp_path)
