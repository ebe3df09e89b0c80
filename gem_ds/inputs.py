"""What a corpus consists of: the files, folders, patterns, addresses and datasets of --input.

| --input | what it stands for |
|---|---|
| ``corpus.jsonl``, ``*.parquet`` | a file; the files that a pattern matches |
| ``folder`` | the corpus files below it; a dataset that `datasets` saved there |
| ``s3://bucket/folder`` | the same in an object store, by fsspec (its package must be installed) |
| ``dataset:NAME``, ``dataset:NAME:SPLIT``, ``dataset:NAME:CONFIG:SPLIT`` | streamed by `datasets` |

In a mixture each has the name of its source in front: ``web=folder``. What is in them is read by
`sources`.
"""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from gem_ds.errors import InputError

JSONL, PARQUET, TEXT, SAVED, STREAMED = "jsonl", "parquet", "text", "saved dataset", "dataset"
FORMATS = {
    ".jsonl": JSONL,
    ".ndjson": JSONL,
    ".json": JSONL,
    ".parquet": PARQUET,
    ".txt": TEXT,
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
DATASET = "dataset:"
NAMED = re.compile(r"([A-Za-z0-9_-]+)=(.+)")


@dataclass(frozen=True)
class Input:
    """One file or dataset of a corpus.

    `path` is absolute, an address, or ``dataset:…``; `size` in bytes on disk, 0 where unknown;
    `modified` changes when the content may have; `source` is its name in a mixture, or empty.
    """

    path: str
    format: str
    compression: str | None
    size: int
    modified: str
    source: str = ""


def find(names: Sequence[str], sources: Sequence[str] = ()) -> list[Input]:
    """The inputs that `names` stand for, in order; those in a folder in the order of their names.

    With `sources`, the names of a mixture, each is ``source=name``. A bare ``.json`` in a folder is
    left out: there it mostly describes the data. Raises `InputError` for what is missing, named
    twice, or of no known format.
    """
    found: list[Input] = []
    for name in names:
        source = ""
        if sources:
            match = NAMED.fullmatch(name)
            if not match or match[1] not in sources:
                raise InputError(
                    f"--input {name}: in a mixture, give each input the name of its source in "
                    f"front, such as {sources[0]}={name.rpartition('=')[2]}"
                )
            source, name = match[1], match[2]
        found += [replace(item, source=source) for item in _expand(name)]
    missing = set(sources) - {item.source for item in found}
    if missing:
        raise InputError(f"--mix names {sorted(missing)[0]!r}, but no --input is of that name")
    seen: set[str] = set()
    for item in found:
        if item.path in seen:
            raise InputError(f"--input gives {item.path} twice; give it once")
        seen.add(item.path)
    return found


def unchanged(item: Input) -> bool:
    """Whether an input is as it was found."""
    try:
        return replace(_look(item.path, item.format), source=item.source) == item
    except (InputError, OSError):
        return False


def is_local(path: str) -> bool:
    """Whether a path is one of this machine's file systems."""
    return "://" not in path


def filesystem(path: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it."""
    import fsspec

    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:  # a package that is missing; an unknown protocol
        raise InputError(f"{path} cannot be opened: {error}") from error
    return found


def _expand(name: str) -> list[Input]:
    if name.startswith(DATASET):
        return [_look(name, STREAMED)]
    if is_local(name):
        return _expand_local(name)
    fs, path = filesystem(name)
    try:
        if glob.has_magic(path):
            paths = fs.glob(path)
        elif fs.isdir(path):
            paths = [p for p in fs.find(path) if _format(p) and not p.endswith(".json")]
        else:
            paths = [path]
    except Exception as error:  # each store has errors of its own: credentials, network, names
        raise InputError(f"{name} could not be listed: {error}") from error
    if not paths:
        raise InputError(f"{name} holds no corpus file ({_known()})")
    return [_look(fs.unstrip_protocol(p), _known_format(p)) for p in sorted(paths)]


def _expand_local(name: str) -> list[Input]:
    path = Path(os.path.abspath(Path(name).expanduser()))
    if (path / "dataset_dict.json").is_file():
        raise InputError(f"{path} is a dataset of several splits; give one of the folders in it")
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return [_look(str(path), SAVED)]
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and _format(p.name))
        paths = [p for p in inside if p.suffix != ".json"]
        if not paths:
            raise InputError(f"the folder {path} holds no corpus file ({_known()})")
    elif path.is_file():
        paths = [path]
    else:
        matches = glob.glob(str(path), recursive=True) if glob.has_magic(name) else []
        paths = sorted(p for p in map(Path, matches) if p.is_file())
        if not paths:
            raise InputError(f"there is no corpus file {path}; correct --input")
    return [_look(str(p), _known_format(p.name)) for p in paths]


def _look(path: str, form: str) -> Input:
    """The input as it is now."""
    if form == STREAMED:
        return Input(path, form, None, 0, _revision(path))
    if form == SAVED:
        stats = [p.stat() for p in sorted(Path(path).iterdir()) if p.is_file()]
        modified = str(max(s.st_mtime_ns for s in stats))
        return Input(path, form, None, sum(s.st_size for s in stats), modified)
    compression = COMPRESSIONS.get(PurePosixPath(path).suffix)
    if is_local(path):
        stat = os.stat(path)
        return Input(path, form, compression, stat.st_size, str(stat.st_mtime_ns))
    fs, inside = filesystem(path)
    try:
        info = fs.info(inside)
    except Exception as error:
        raise InputError(f"{path} could not be reached: {error}") from error
    marks = ("ETag", "etag", "LastModified", "last_modified", "mtime", "md5Hash")
    modified = next((str(info[mark]) for mark in marks if info.get(mark)), "")
    return Input(path, form, compression, int(info.get("size") or 0), modified)


def _revision(path: str) -> str:
    """The commit of a dataset on the hub; of one in a folder, when its newest file changed."""
    name, _, _ = dataset_parts(path)
    if Path(name).exists():
        files = [p.stat().st_mtime_ns for p in Path(name).rglob("*") if p.is_file()]
        return f"{len(files)} files, {max(files, default=0)}"
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name).sha)
    except Exception as error:  # offline, unknown, private: the hub has a dozen classes for these
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"the dataset {name} is not to be had from the hub ({reason})") from error


def dataset_parts(path: str) -> tuple[str, str | None, str]:
    """(name, configuration, split) of ``dataset:NAME:CONFIG:SPLIT``."""
    name, *rest = path.removeprefix(DATASET).split(":")
    if not name or len(rest) > 2:
        raise InputError(f"{path}: give dataset:NAME, dataset:NAME:SPLIT or with :CONFIG:SPLIT")
    return name, rest[0] if len(rest) == 2 else None, rest[-1] if rest else "train"


def _known() -> str:
    return f"{', '.join(FORMATS)}; all but .parquet also with {' or '.join(COMPRESSIONS)}"


def _format(name: str) -> str | None:
    path = PurePosixPath(name)
    compressed = path.suffix in COMPRESSIONS
    form = FORMATS.get(path.with_suffix("").suffix if compressed else path.suffix)
    return None if form == PARQUET and compressed else form


def _known_format(name: str) -> str:
    form = _format(name)
    if not form:
        raise InputError(f"{name} is of no known format; rename it to one of {_known()}")
    return form
