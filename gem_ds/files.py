"""Files that are there whole or not at all, their hashes, and whether a name is a path or the
hub's.

What looks like a path is one, so that a folder with a typing error is never looked for on the hub.
"""

import difflib
import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gem_ds.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name for writing `path`: synced and renamed on success, removed on failure.

    The name is this process's own, so that two that write the same file at once do not mix.
    """
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path, name: str = "*", dead_only: bool = False) -> None:
    """Remove what killed processes left of files that `replacing` was to make.

    With `dead_only` those of processes of this machine that have ended; else none may live.
    """
    for path in folder.glob(f"{name}.*-*.tmp"):
        if not dead_only or is_leftover(path):
            path.unlink(missing_ok=True)


def is_leftover(temporary: Path) -> bool:
    """Whether what has the temporary name of a process of this machine is of one that has ended.

    Ask before this process makes one: a name with its own number is of an earlier one.
    """
    host, _, pid = temporary.stem.rpartition("-")
    if not (host.endswith(f".{socket.gethostname()}") and pid.isdecimal()):
        return False
    if int(pid) == os.getpid():
        return True
    try:
        os.kill(int(pid), 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)  # else it is there, of somebody else
    return False


def sync(path: Path) -> None:
    """Have a file or folder on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_path(name: str | Path) -> bool:
    """Whether `name` is a path: it exists, its first folder does, or no name on the hub is so."""
    text = str(name)
    first, slash, _ = text.partition("/")
    looks = text.startswith((".", "/", "~")) or text.endswith("/") or text.count("/") > 1
    # A file by its ending: names on the hub have none of these.
    looks |= "\\" in text or text.endswith((".json", ".safetensors", ".bin", ".gguf"))
    looks |= isinstance(name, Path) or Path(text).exists()
    return looks or bool(slash and Path(first).is_dir())


def check_path(name: str | Path, cure: str) -> None:
    """Raise `InputError` for a path at which there is nothing; `cure` says what to give."""
    path = Path(name)
    if not is_path(name) or path.exists():
        return
    there = path
    while not there.exists():
        there = there.parent
    lost = path.relative_to(there).parts[0]
    if not there.is_dir():
        raise InputError(f"there is no folder {name}: {there} is a file; {cure}")
    near = difflib.get_close_matches(lost, sorted(p.name for p in there.iterdir()), 1)
    why = "" if path == Path(lost) else f": {there} has no {lost}"
    raise InputError(
        f"there is no folder {name}{why}; {f'is it {there / near[0]}?' if near else cure}"
    )
