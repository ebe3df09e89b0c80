"""One job at a time in a run's folder.

Two guards, since neither is enough by itself: a lock of the file system, which ends with its
process, but which some shared file systems grant on two machines at once; and in the same file a
sign of life, which is looked at only if another machine has left it, and waited for only if it is
young.
"""

import fcntl
import json
import os
import socket
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
        """Raises `InputError` if another job has it, or the folder cannot be written."""
        self._path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
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
        owner = self._read()
        if owner and owner["host"] != socket.gethostname():
            until = owner["time"] + _MISSED * sign_seconds
            while time.time() < until:
                time.sleep(min(sign_seconds, max(until - time.time(), 0)))
                if self._read() != owner:
                    self._refuse(self._read())
        self.sign()

    def sign(self) -> None:
        """Give a sign of life: to be called every `SIGN_SECONDS`."""
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "time": time.time(),
        }
        self._write(json.dumps(owner) + "\n")

    def release(self) -> None:
        self._write("")
        os.close(self._handle)

    def _write(self, text: str) -> None:
        data = text.encode()
        os.pwrite(self._handle, data, 0)
        os.ftruncate(self._handle, len(data))

    def _read(self) -> dict[str, Any]:
        """Who holds it; nothing if nobody does."""
        try:
            owner: dict[str, Any] = json.loads(self._path.read_text())
            return {name: owner[name] for name in ("host", "pid", "job", "time")}
        except (OSError, ValueError, KeyError):
            return {}

    def _refuse(self, owner: dict[str, Any]) -> None:
        os.close(self._handle)
        job = f"job {owner['job']}, " if owner.get("job") else ""
        raise InputError(
            f"{self._path.parent} is being written by another run ({job}process "
            f"{owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown machine')}); wait "
            "for it, stop it, or choose another --output"
        )
