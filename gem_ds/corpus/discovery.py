"""What a corpus consists of: the files, folders, patterns, addresses and datasets of --input.

| --input | what it stands for |
|---|---|
| ``corpus.jsonl``, ``*.parquet`` | a file; the files that a pattern matches |
| ``folder``, ``corpus.zip`` | the files in it; a dataset that `datasets` saved there |
| ``s3://bucket/folder`` | the same in an object store, by fsspec, but no saved dataset |
| ``dataset:NAME``, ``dataset:NAME:SPLIT``, ``dataset:NAME:CONFIG:SPLIT`` | streamed by `datasets` |

In a mixture each has the name of its source in front: ``web=folder``. `folders` says which files
of a folder are left out; `corpus.record_reader` and `tables` read what is in a file.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from gem_ds.corpus import filesystem, folders, json_documents
from gem_ds.corpus.folders import LeftOut
from gem_ds.corpus.streams import COMPRESSIONS, Stream
from gem_ds.errors import InputError
from gem_ds.files import check_path

JSONL, JSON, CSV, PARQUET, ARROW, TEXT = "jsonl", "json", "csv", "parquet", "arrow", "text"
SAVED, STREAMED = "saved dataset", "dataset"
FORMATS = {
    ".jsonl": JSONL,
    ".ndjson": JSONL,
    ".json": JSON,
    ".csv": CSV,
    ".tsv": CSV,
    ".txt": TEXT,
    ".parquet": PARQUET,
    ".arrow": ARROW,
    ".feather": ARROW,
}
TABLES = (PARQUET, ARROW)  # compressed inside, and read from any place on
DATASET = "dataset:"


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


def find(names: Sequence[str], sources: Sequence[str] = (), output: str = "") -> list[Input]:
    """The inputs that `names` stand for, in order; those in a folder in the order of their names.

    With `corpus.record_reader`, the names of a mixture, each is ``source=name``. What a folder or a
    pattern has besides is named on stderr, among it what lies in `output` or is a folder of shards
    itself. Raises `InputError` for what is missing, given twice, not to be read, or of no known
    format.
    """
    found: list[Input] = []
    left_out = LeftOut()
    for name in names:
        source, path = "", name
        if sources:
            source, _, path = name.partition("=")
            if source not in sources or not path:
                raise InputError(
                    f"--input {name}: in a mixture, give each input the name of its source in "
                    f"front, such as {sources[0]}={path or name}"
                )
        found += [replace(item, source=source) for item in _expand(path, output, left_out)]
    missing = set(sources) - {item.source for item in found}
    if missing:
        raise InputError(f"--mix names {sorted(missing)[0]!r}, but no --input is of that name")
    seen: dict[str, str] = {}
    for item in found:
        real = os.path.realpath(item.path) if os.path.exists(item.path) else item.path
        if real in seen:
            other = f", the other time as {seen[real]}" if seen[real] != item.path else ""
            raise InputError(f"--input gives {item.path} twice{other}; give it once")
        seen[real] = item.path
    if left_out:
        print(f"warning: {left_out}", file=sys.stderr)
    return found


def unchanged(item: Input) -> bool:
    """Whether an input is as it was found. Raises `InputError` if it is not to be had any more."""
    if item.format == STREAMED and not _in_folder(item.path):
        return True  # a commit of the hub
    return replace(_look(item.path, item.format), source=item.source) == item


def dataset_parts(path: str) -> tuple[str, str | None, str]:
    """(name, configuration, split) of ``dataset:NAME:CONFIG:SPLIT``."""
    name, *rest = path.removeprefix(DATASET).split(":")
    if not all([name, *rest]) or len(rest) > 2:
        raise InputError(f"{path}: give dataset:NAME, dataset:NAME:SPLIT or with :CONFIG:SPLIT")
    return name, rest[0] if len(rest) == 2 else None, rest[-1] if rest else "train"


def as_input(path: str, form: str | None = None, compression: str | None = None) -> Input:
    """The file at a path, of a format and compression, or of what its name says.

    Raises `InputError`.
    """
    form = form or _known_format(path)
    item = _look(path, form)
    if compression:
        item = replace(item, compression=compression)
    if form in (JSON, JSONL):
        is_json = form == JSON or is_named(path, ".json")
        stream = Stream(path, item.compression, 0, item.size)
        is_document = False
        if is_json or "://" not in path:  # a look at every file of a store is a request each
            with contextlib.suppress(
                *filesystem.DAMAGES
            ):  # who reads it all says where it is damaged
                is_document = json_documents.is_document(stream, is_json)
        item = replace(item, format=JSON if is_document else JSONL)
    return item


def is_named(path: str, *endings: str) -> bool:
    """Whether a file's name has one of these endings, its compression left out."""
    return _endings(path)[0] in endings


def stem_of(path: str) -> str | None:
    """A path without the endings that tell its format; None for plain text and what is unknown."""
    ending, _ = _endings(path)
    if FORMATS.get(ending, TEXT) == TEXT or not _format(path):
        return None
    return path[: path.lower().rindex(ending)]


def _expand(name: str, output: str, left_out: LeftOut) -> list[Input]:
    if not name:
        raise InputError("an --input is empty; give a file, a folder or an address")
    if name.startswith(DATASET):
        folder, colon, rest = name.removeprefix(DATASET).partition(":")
        if os.path.isdir(folder):
            folder = os.path.abspath(folder)  # for workers that run elsewhere
        return [_look(DATASET + folder + colon + rest, STREAMED)]
    folder = os.path.abspath(os.path.expanduser(name))
    if os.path.isfile(os.path.join(folder, "dataset_dict.json")):
        raise InputError(f"{folder} is a dataset of several splits; give one of the folders in it")
    if folders.is_saved_dataset(folder):
        return [_look(folder, SAVED)]
    if output and folders.is_below(folder, output):
        raise InputError(f"--input {name} lies in --output {output}; give another --output")
    paths, base = filesystem.find(name, _is_known)
    if not paths and not base:
        raise InputError(f"there is no corpus file {name}; correct --input")
    is_one = [os.path.normpath(path) for path in paths] == [folder] or paths == [name]
    if not is_one:
        paths = folders.choose(paths, base, output, _is_known, left_out)
    found: list[Input] = []
    for path in paths:
        if path.lower().endswith(".zip") and not path.startswith(filesystem.ZIP):
            inside = folders.choose(filesystem.members(path), path, "", _is_in_zip, left_out)
            found += [as_input(member) for member in inside]
        elif path.endswith("/"):
            found.append(_look(path.rstrip("/"), SAVED))
        else:
            found.append(as_input(path))
    if not found:
        what = f"the folder {base}" if base else name
        told = f": {left_out}" if left_out else ""
        raise InputError(f"{what} holds no corpus file ({_known()}){told}")
    return found


def _look(path: str, form: str) -> Input:
    """The input as it is now."""
    if form == STREAMED:
        name, _, _ = dataset_parts(path)
        if not _in_folder(path):
            check_path(name, "give dataset:NAME with a folder, or a name on the hub")
            return Input(path, form, None, 0, _commit(name))
        return Input(path, form, None, *_folder_state(name))
    if form == SAVED:
        return Input(path, form, None, *_folder_state(path))
    return Input(path, form, _endings(path)[1], *filesystem.state(path))


def _in_folder(path: str) -> bool:
    """Whether a streamed dataset lies in a folder, not on the hub."""
    return os.path.isdir(dataset_parts(path)[0])


def _folder_state(folder: str) -> tuple[int, str]:
    """As `filesystem.state`, of a dataset's files."""
    files = [p for p in Path(folder).rglob("*") if not p.name.startswith("cache-")]  # of `map`
    stats = [p.stat() for p in files if p.is_file()]
    newest = max((s.st_mtime_ns for s in stats), default=0)
    return sum(s.st_size for s in stats), f"{len(stats)} files, {newest}"


def _commit(name: str) -> str:
    """The newest commit of a dataset on the hub."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name).sha)
    except Exception as error:  # offline, unknown, private: the hub has a dozen classes for these
        raise InputError(
            f"there is no folder {name}, and the hub does not give a dataset of that name "
            f"({filesystem.reason(error)})"
        ) from error


def _known() -> str:
    return f"{', '.join(FORMATS)}; all but tables also with {', '.join(COMPRESSIONS)} or in a .zip"


def _endings(path: str) -> tuple[str, str | None]:
    """The ending that tells a file's format, and its compression."""
    name = PurePosixPath(path.rpartition("::")[0] if path.startswith(filesystem.ZIP) else path)
    compression = COMPRESSIONS.get(name.suffix.lower())
    if compression:
        name = name.with_suffix("")
    elif path.startswith(filesystem.ZIP):
        compression = filesystem.ZIPPED
    return name.suffix.lower(), compression


def _format(path: str) -> str | None:
    ending, compression = _endings(path)
    form = FORMATS.get(ending)
    return None if form in TABLES and compression else form


def _is_known(path: str) -> bool:
    """Whether a file of a folder is one that can be read."""
    return _format(path) is not None or path.lower().endswith(".zip")


def _is_in_zip(path: str) -> bool:
    return _format(path) is not None


def _known_format(path: str) -> str:
    form = _format(path)
    if not form:
        raise InputError(f"{path} is of no known format; convert it to one of {_known()}")
    return form
