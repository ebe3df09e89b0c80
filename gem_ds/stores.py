"""Files wherever they lie: found, looked at and opened, on this machine or in an object store.

Stores are reached by fsspec, whose package for a store must be installed (`s3fs`, `gcsfs`,
`aiohttp`, …). They raise whatever they like; here it becomes an `InputError`.
"""

import glob
import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from gem_ds.errors import InputError

AHEAD = 1 << 20  # bytes that are asked of a store beyond those that are read
# What stores call the version of a file.
MARKS = ("ETag", "etag", "blob_id", "LastModified", "last_modified", "Last-Modified", "mtime")


def is_local(path: str) -> bool:
    """Whether a path is one of this machine's file systems."""
    return "://" not in path


def find(name: str, is_wanted: Callable[[str], bool]) -> list[str]:
    """The files that a path or address stands for, in order; none if there are none.

    Those are the file itself, or those in the folder that are wanted (by their path in it; links
    are followed), or those that it matches as a pattern.
    """
    if is_local(name):
        return sorted(_find_local(os.path.expanduser(name), is_wanted))
    fs, path = _filesystem(name)
    try:
        fs.invalidate_cache()
        # Over HTTP, asking whether something is a folder may fetch it.
        if is_wanted(path) and fs.isfile(path):
            paths = [path]
        elif fs.isdir(path):
            paths = [p for p in fs.find(path) if is_wanted(p[len(path) :].lstrip("/"))]
        elif glob.has_magic(path):
            files = (p for p, info in fs.glob(path, detail=True).items() if info["type"] == "file")
            paths = [p for p in files if not posixpath.basename(p).startswith(".")]  # as in a shell
        else:
            paths = [path] if fs.exists(path) else []
    except Exception as error:
        raise InputError(f"{name} could not be listed ({reason(error)})") from error
    return sorted(map(fs.unstrip_protocol, paths))


def state(path: str) -> tuple[int, str]:
    """A file's bytes, and something that changes with its content."""
    if is_local(path):
        try:
            found = os.stat(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror})") from error
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path} is no ordinary file; a corpus is read more than once")
        return found.st_size, str(found.st_mtime_ns)
    fs, inside = _filesystem(path)
    try:
        info = fs.info(inside)
    except Exception as error:
        raise InputError(f"{path} could not be reached ({reason(error)})") from error
    if info.get("size") is None:
        raise InputError(f"{path}: the server does not tell its size; download it first")
    return int(info["size"]), next((str(info[mark]) for mark in MARKS if info.get(mark)), "")


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """An Arrow file on the bytes of a file as they are stored."""
    if is_local(path):
        with pa.OSFile(os.fsencode(path)) as file:
            yield file
        return
    fs, inside = _filesystem(path)
    with fs.open(inside, "rb", block_size=AHEAD) as stream, pa.PythonFile(stream, "r") as file:
        yield file


@contextmanager
def faults_named(path: str, where: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Make an `InputError` of what goes wrong while `path` is read, `where` saying how far one was.

    It may also be a folder or a name that `datasets` reads.
    """
    is_file = os.path.isfile(path)
    faults = (pa.ArrowException, OSError, EOFError) if is_file else Exception
    try:
        yield
    except (InputError, MemoryError):
        raise
    except faults as error:
        is_damaged = is_file and not getattr(error, "errno", None)
        what = "is damaged or cut short" if is_damaged else "cannot be read"
        raise InputError(
            f"{path} {what}{where()} ({reason(error)}); get it again or leave it out"
        ) from error


def reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0].removesuffix(": ")


def _filesystem(path: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it."""
    import fsspec

    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(path)
    except Exception as error:  # a missing package, an unknown protocol, credentials
        raise InputError(f"{path} cannot be opened ({reason(error)})") from error
    return found


def _find_local(name: str, is_wanted: Callable[[str], bool]) -> list[str]:
    path = os.path.abspath(name)
    if os.path.isdir(path):
        return _below(path, is_wanted)
    if os.path.lexists(path):
        return [path]
    matches = map(os.path.abspath, glob.glob(name, recursive=True))
    return [p for p in matches if not os.path.isdir(p)]


def _below(folder: str, is_wanted: Callable[[str], bool]) -> list[str]:
    """Files below a folder, each once: links may lead to one twice, or in a circle."""
    found: dict[str, str] = {}
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be listed ({error.strerror})") from error

    for at, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(at)
        folders[:] = [] if real in seen else sorted(folders)
        seen.add(real)
        for path in (os.path.join(at, name) for name in sorted(names)):
            if is_wanted(path[len(folder) :].lstrip("/")):
                found.setdefault(os.path.realpath(path), path)
    return list(found.values())
