"""The folder of a run before its first step: who may write there, where it goes on, whether it has
room. What is refused is refused before anything in the folder is changed.

One job at a time has it. Two guards, since neither is enough by itself: a lock of the file system,
which ends with its process, but which some shared file systems grant on two machines at once; and
in the same file a sign of life. What another machine has left there is watched for as long as a few
signs take: its clock may be wrong, so that only a change tells that the job lives.
"""

import fcntl
import json
import os
import shutil
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gem_ds import distributed
from gem_ds.checkpoints import checkpoint
from gem_ds.checkpoints.run_record import METRICS
from gem_ds.errors import InputError
from gem_ds.training.config import TrainConfig
from gem_ds.training.watchdog import FOLDER, Watchdog

_PROBE = 2**16  # bytes


def enter(config: TrainConfig, stack: ExitStack) -> Watchdog:
    """Make the run's folder, keep other jobs out of it, and begin to give signs of life."""
    folder = Path(config.output)
    locks: list[Lock] = []

    def enter() -> None:
        locks.append(Lock(folder))
        stack.callback(locks[0].release)
        _check(config)
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        checkpoint.folder_of(folder).mkdir(exist_ok=True)

    distributed.same_on_all(enter)
    watchdog = Watchdog(
        folder,
        distributed.rank(),
        distributed.world_size(),
        60 * config.timeout_minutes,
        on_tick=locks[0].sign if locks else lambda: None,
    )
    return stack.enter_context(watchdog)


def _check(config: TrainConfig) -> None:
    """Refuse a folder that contradicts itself or, without ``--resume auto``, has checkpoints."""
    folder = Path(config.output)
    for name in (METRICS, checkpoint.SAVES, "run.json", "starts.jsonl"):
        if (folder / name).exists() and not (folder / name).is_file():
            raise InputError(f"{folder / name} is no file; remove it, or choose another --output")
    if config.resume == "auto":
        checkpoint.up_to_latest(folder)
        return
    done = checkpoint.folders(folder)
    if done:
        raise InputError(
            f"{folder} already has checkpoints (newest {done[-1].name}); continue with "
            "--resume auto or choose another --output"
        )


def to_resume(config: TrainConfig) -> Path | None:
    """The checkpoint to go on from, if any. All ranks call."""
    if config.resume == "never":
        return None
    path, warnings = checkpoint.newest_whole(Path(config.output))
    if distributed.rank() == 0:
        for warning in warnings:
            print(f"WARNING: {warning}; the one before is taken", flush=True)
    if path is not None and checkpoint.step_of(path) > config.steps:
        raise InputError(
            f"{path} is of more steps than --steps {config.steps}; give more, or write an earlier "
            f"checkpoint's name into {path.with_name(checkpoint.LATEST)}"
        )
    return path


def told(config: TrainConfig, first_step: int) -> str:
    """Where the run begins, for people."""
    if not first_step:
        return "starting from step 0"
    left = "" if first_step < config.steps else ", its last: nothing is left to do"
    return f"continuing from step {first_step} of {config.output}{left}"


def check_room(config: TrainConfig, engine: Any) -> None:
    """Refuse a disk on which not even one checkpoint has room."""
    folder = checkpoint.folder_of(Path(config.output))
    probe = folder / f"probe-{os.getpid()}.tmp"
    needed = sum(
        getattr(p, "ds_numel", p.numel()) * (p.element_size() + 12 * p.requires_grad)
        for p in engine.module.parameters()
    )
    try:
        probe.write_bytes(bytes(_PROBE))
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}); make room, or choose another --output"
        ) from error
    finally:
        probe.unlink(missing_ok=True)
    if free < needed:
        raise InputError(
            f"{folder} has room for {free / 2**30:.1f} GiB and a checkpoint takes "
            f"{needed / 2**30:.1f} GiB; make room, or choose another --output"
        )


LOCK = "lock.json"
SIGN_SECONDS = 10.0  # between signs of life
_MISSED = 3  # signs that may be missing of a job that lives


class Lock:
    """The right to write in a folder, held until `release` or the end of the process."""

    def __init__(self, folder: Path, sign_seconds: float = SIGN_SECONDS) -> None:
        """Waits for signs of a job of another machine, and says so.

        Raises `InputError` if another job has the folder, or it cannot be written.
        """
        self._path = folder / LOCK
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
