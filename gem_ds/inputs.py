"""What a corpus consists of: the files, folders, patterns, addresses and datasets of --input.

| --input | what it stands for |
|---|---|
| ``corpus.jsonl``, ``*.parquet`` | a file; the files that a pattern matches |
| ``folder`` | the corpus files below it; a dataset that `datasets` saved there |
| ``s3://bucket/folder`` | the same in an object store, by fsspec, but no saved dataset |
| ``dataset:NAME``, ``dataset:NAME:SPLIT``, ``dataset:NAME:CONFIG:SPLIT`` | streamed by `datasets` |

In a mixture each has the name of its source in front: ``web=folder``. What is in them is read by
`sources` and `tables`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from gem_ds import stores
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

    With `sources`, the names of a mixture, each is ``source=name``. In a folder, hidden files are
    left out, and a bare ``.json``: there it mostly describes the data. Raises `InputError` for what
    is missing, given twice, not to be read, or of no known format.
    """
    found: list[Input] = []
    for name in names:
        source, path = "", name
        if sources:
            source, _, path = name.partition("=")
            if source not in sources or not path:
                raise InputError(
                    f"--input {name}: in a mixture, give each input the name of its source in "
                    f"front, such as {sources[0]}={path or name}"
                )
        found += [replace(item, source=source) for item in _expand(path)]
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


def _expand(name: str) -> list[Input]:
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
    if all(os.path.isfile(os.path.join(folder, n)) for n in ("state.json", "dataset_info.json")):
        return [_look(folder, SAVED)]
    paths = stores.find(name, _is_wanted)
    if not paths and os.path.isdir(folder):
        raise InputError(f"the folder {folder} holds no corpus file ({_known()})")
    if not paths:
        raise InputError(f"there is no corpus file {name}; correct --input")
    return [_look(path, _known_format(path)) for path in paths]


def _look(path: str, form: str) -> Input:
    """The input as it is now."""
    if form == STREAMED:
        name, _, _ = dataset_parts(path)
        if not _in_folder(path):
            return Input(path, form, None, 0, _commit(name))
        return Input(path, form, None, *_folder_state(name))
    if form == SAVED:
        return Input(path, form, None, *_folder_state(path))
    return Input(path, form, COMPRESSIONS.get(PurePosixPath(path).suffix), *stores.state(path))


def _in_folder(path: str) -> bool:
    """Whether a streamed dataset lies in a folder, not on the hub."""
    return os.path.isdir(dataset_parts(path)[0])


def _folder_state(folder: str) -> tuple[int, str]:
    """As `stores.state`, of a dataset's files."""
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
            f"({stores.reason(error)})"
        ) from error


def _is_wanted(name: str) -> bool:
    """Whether a file of a folder, by its path in there, is one of the corpus."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and _format(name) is not None and not name.endswith(".json")


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
