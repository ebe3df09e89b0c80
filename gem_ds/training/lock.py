"""One job at a time in a run's folder.

Two guards, since neither is enough by itself: a lock of the file system, which ends with its
process, but which some shared file systems grant on two machines at once; and in the same file a
sign of life. What another machine has left there is watched for as long as a few signs take: its
clock may be wrong, so that only a change tells that the job lives.
"""

import fcntl
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from gem_ds.errors import InputError

FILE = "lock.json"
SIGN_SECONDS = 10.0  # between signs of life
_MISSED = 3  # signs that may be missing of a job that lives


class Lock:
    """The right to write in a folder, held until `release` or the end of the process."""

    def __init__(self, folder: Path, sign_seconds: float = SIGN_SECONDS) -> None:
        """Waits for signs of a job of another machine, and says so.

        Raises `InputError` if another job has the folder, or it cannot be written.
        """
        self._path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except IsADirectoryError as error:
            raise InputError(f"{self._path} is a folder; remove it") from error
        except OSError as error:
            raise InputError(
                f"{folder} cannot be written ({error.strerror}); choose another --output"
            ) from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._refuse(self._read())
        except OSError:
            pass  # a file system without locks: the signs of life are left
        left = self._read()
        if left.strip() and _owner(left).get("host") != socket.gethostname():
            self._watch(left, _MISSED * sign_seconds)
        self.sign()

    def sign(self) -> None:
        """Give a sign of life: to be called every `SIGN_SECONDS`."""
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "time": time.time(),
        }
        self._write(json.dumps(owner).encode() + b"\n")

    def release(self) -> None:
        self._write(b"")
        os.close(self._handle)

    def _watch(self, left: bytes, seconds: float) -> None:
        """Refuse if what was left changes within so many seconds."""
        until = time.strftime("%H:%M:%S", time.localtime(time.time() + seconds))
        print(
            f"{self._path} was left by {_named(_owner(left))}; waiting until {until} for a sign "
            "that it lives, without which this run begins",
            file=sys.stderr,
            flush=True,
        )
        end = time.monotonic() + seconds
        while (remaining := end - time.monotonic()) > 0:
            time.sleep(min(seconds / 30, remaining))
            if (now := self._read()) != left:
                if not now.strip():  # given back
                    return
                self._refuse(now)

    def _write(self, data: bytes) -> None:
        os.pwrite(self._handle, data, 0)
        os.ftruncate(self._handle, len(data))

    def _read(self) -> bytes:
        """What is in the file, also what another machine has written meanwhile."""
        try:
            return self._path.read_bytes()
        except OSError:
            return b""

    def _refuse(self, found: bytes) -> None:
        os.close(self._handle)
        raise InputError(
            f"{self._path.parent} is being written by another run ({_named(_owner(found))}); wait "
            "for it, stop it, or choose another --output"
        )


def _owner(content: bytes) -> dict[str, Any]:
    """Who holds the lock; nothing if that cannot be read."""
    try:
        owner = json.loads(content)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _named(owner: dict[str, Any]) -> str:
    job = f"job {owner['job']}, " if owner.get("job") else ""
    host = owner.get("host", "an unknown machine")
    return f"{job}process {owner.get('pid', 'unknown')} on {host}"
