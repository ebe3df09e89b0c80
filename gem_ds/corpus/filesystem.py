"""Files wherever they lie: found, looked at and opened.

| path | where the bytes are |
|---|---|
| ``/data/a.jsonl`` | on this machine |
| ``s3://bucket/a.jsonl`` | in an object store |
| ``zip://a.jsonl::/data/a.zip`` | in a zip file, which lies in either of those |
| ``standard input`` | in memory, once all of it has come |

Stores are reached by fsspec, whose package for a store must be installed (`s3fs`, `gcsfs`,
`aiohttp`, …). They raise whatever they like; here it becomes an `InputError`.
"""

import contextlib
import glob
import hashlib
import lzma
import os
import posixpath
import stat
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, BinaryIO

import pyarrow as pa
import zstandard

from gem_ds.errors import InputError

AHEAD = 1 << 20  # bytes that are asked of a store beyond those that are read
# What stores call the version of a file.
ZIP, ZIPPED = "zip://", "zip"
STDIN = "standard input"
DAMAGES = (  # what reading a file on this machine raises
    *(OSError, EOFError, pa.ArrowException),
    *(lzma.LZMAError, zstandard.ZstdError, zipfile.BadZipFile),
)
MARKS = ("ETag", "etag", "blob_id", "LastModified", "last_modified", "Last-Modified", "mtime")


def is_local(path: str) -> bool:
    """Whether a path is one of this machine's file systems."""
    return "://" not in path and path != STDIN


def find(name: str, is_known: Callable[[str], bool]) -> tuple[list[str], str]:
    """The files that a path or address stands for, in order, and the folder if it is one, or "".

    Those are the file itself, or all those below the folder (links are followed), or those that it
    matches as a pattern; folders that match have a slash at their end. `is_known` says of a path
    whether it looks like a file that can be read.
    """
    if name.startswith(ZIP) or name == STDIN:
        return [name], ""
    if is_local(name):
        return _find_local(os.path.expanduser(name), is_known)
    fs, path = _filesystem(name)
    folder = ""
    try:
        fs.invalidate_cache()
        # Over HTTP, asking whether something is a folder may fetch it.
        if is_known(path) and fs.isfile(path):
            paths = [path]
        elif fs.isdir(path):
            folder = fs.unstrip_protocol(path)
            paths = fs.find(path)
        elif glob.has_magic(path):
            files = (p for p, info in fs.glob(path, detail=True).items() if info["type"] == "file")
            paths = [p for p in files if not posixpath.basename(p).startswith(".")]  # as in a shell
        else:
            paths = [path] if fs.exists(path) else []
    except Exception as error:
        raise InputError(f"{name} could not be listed ({reason(error)})") from error
    return sorted(map(fs.unstrip_protocol, paths)), folder


def members(path: str) -> list[str]:
    """The addresses of the files in a zip file, in order."""
    with faults_named(path):
        return [f"{ZIP}{name}::{path}" for name in sorted(_directory(path, state(path)))]


def state(path: str) -> tuple[int, str]:
    """A file's bytes, and something that changes with its content."""
    if path == STDIN:
        return len(_standard_input()), hashlib.sha256(_standard_input()).hexdigest()
    if path.startswith(ZIP):
        name, container = _member(path)
        with faults_named(path):
            info = _directory(container, state(container))[name]
            return info.file_size, f"{info.CRC:08x}"
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
    if path == STDIN:
        yield pa.BufferReader(_standard_input())
    elif path.startswith(ZIP):
        name, container = _member(path)
        with _archive(container) as archive:
            if archive.getinfo(name).flag_bits & 1:
                raise InputError(f"{path} is encrypted; unpack {container}")
            with archive.open(name) as stream, pa.PythonFile(stream, "r") as file:
                yield file
    elif is_local(path):
        with pa.OSFile(os.fsencode(path)) as file:
            yield file
    else:
        fs, inside = _filesystem(path)
        with fs.open(inside, "rb", block_size=AHEAD) as stream, pa.PythonFile(stream, "r") as file:
            yield file


@contextmanager
def faults_named(path: str, where: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Make an `InputError` of what goes wrong while `path` is read, `where` saying how far one was.

    It may also be a folder or a name that `datasets` reads.
    """
    is_file = os.path.isfile(path) or path == STDIN
    faults = DAMAGES if is_file else Exception
    try:
        yield
    except (InputError, MemoryError):
        raise
    except faults as error:
        is_damaged = is_file and not getattr(error, "errno", None)
        is_damaged |= path.startswith(ZIP) and isinstance(error, DAMAGES)
        what = "is damaged or cut short" if is_damaged else "cannot be read"
        raise InputError(
            f"{path} {what}{where()} ({reason(error)}); get it again or leave it out"
        ) from error


def reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0].removesuffix(": ")


def _standard_input() -> bytes:
    return _all_of(sys.stdin.buffer)


@lru_cache(1)
def _all_of(stream: BinaryIO) -> bytes:
    """What a stream that can be read once had to say."""
    return stream.read()


def _member(path: str) -> tuple[str, str]:
    """The name of a zip file's member, and the zip file."""
    name, _, container = path.removeprefix(ZIP).rpartition("::")
    return name, container


@contextmanager
def _archive(path: str) -> Iterator[zipfile.ZipFile]:
    """A zip file; `zipfile` relies on the errors of Python's own files."""
    with contextlib.ExitStack() as stack:
        if is_local(path):
            file = stack.enter_context(open(path, "rb"))
        else:
            fs, inside = _filesystem(path)
            file = stack.enter_context(fs.open(inside, "rb", block_size=AHEAD))
        yield stack.enter_context(zipfile.ZipFile(file))


@lru_cache(8)
def _directory(path: str, _state: tuple[int, str]) -> dict[str, zipfile.ZipInfo]:
    """The files in a zip file by their names, as long as that does not change."""
    with _archive(path) as archive:
        return {info.filename: info for info in archive.infolist() if not info.is_dir()}


def _filesystem(path: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it."""
    import fsspec

    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(path)
    except Exception as error:  # a missing package, an unknown protocol, credentials
        raise InputError(f"{path} cannot be opened ({reason(error)})") from error
    return found


def _find_local(name: str, is_known: Callable[[str], bool]) -> tuple[list[str], str]:
    path = os.path.abspath(name)
    if os.path.isdir(path):
        return _below(path, is_known), path
    if os.path.lexists(path):
        return [path], ""
    matches = sorted(map(os.path.abspath, glob.glob(name, recursive=True)))
    is_deep = "**" in name  # then files in the folders that match do so, too
    marked = [path + "/" if os.path.isdir(path) else path for path in matches]
    return [path for path in marked if not (is_deep and path.endswith("/"))], ""


def _below(folder: str, is_known: Callable[[str], bool]) -> list[str]:
    """Files below a folder, each once: links may lead to one twice, or in a circle.

    Of several names of a file, one that is known is taken: caches link those to nameless blobs.
    """
    found: dict[str, str] = {}
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be listed ({error.strerror})") from error

    for at, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(at)
        folders[:] = [] if real in seen else sorted(folders)
        seen.add(real)
        for path in (os.path.join(at, name) for name in sorted(names)):
            real = os.path.realpath(path)
            if real not in found or (is_known(path) and not is_known(found[real])):
                found[real] = path
    return sorted(found.values())
