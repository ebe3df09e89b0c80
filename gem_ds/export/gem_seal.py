"""The seal of an exported model: what its files are, so that it loads as it was written or not at
all. Exports carry a copy of this file beside `gem_embedding`; it needs nothing but Python.

``gem_seal.json`` lists the files beside it: size, sha256, and the sha256 of a sample. Every load
compares sizes and samples, where the sample of all but large weights is the whole file. The first
load on a machine compares whole files; that it did is kept in the user's cache folder.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

SEAL = "gem_seal.json"
FORMAT = "gem_ds seal 1"
BLOCK, BLOCKS = 2**16, 64  # a sample: so many blocks of so many bytes, evenly spaced
WEIGHTS = ".safetensors"
ANNOUNCED = 10**9  # bytes, from which on whoever waits for their hashes is told
RESEAL = "python launch/export.py --reseal"
_NOTES = (".md", ".txt", ".log", ".pdf", ".png", ".jpg", ".svg")  # no loader reads these
_NAMES = ("LICENSE", "NOTICE", "CITATION", "__pycache__")


def is_sealed(path: Path) -> bool:
    """Whether a file of an export belongs into its seal: those for people, and hidden ones, may be
    added and changed."""
    note = path.name.startswith((".", *_NAMES)) or path.suffix in _NOTES
    return not (note or path.name == SEAL or path.is_dir())


def entry(path: Path) -> dict[str, Any]:
    """What a seal says of a file."""
    size = path.stat().st_size
    whole = _sha256(path)
    return {"bytes": size, "sha256": whole, "sample": _sample(path, size) or whole}


def write(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Seal a folder; `files` are entries by path, seen from there."""
    content = {"format": FORMAT, "block": BLOCK, "blocks": BLOCKS, "files": files}
    content["sha256"] = _digest(content)
    partial = folder / f".{SEAL}.{os.getpid()}"
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, folder / SEAL)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The files of a folder's seal. Raises `ValueError` if that is not as it was written."""
    path = folder / SEAL
    if not path.is_file():
        raise ValueError(f"{path} is missing; {_cure(folder)}")
    try:
        content = json.loads(path.read_bytes())
        intact = content.pop("sha256") == _digest(content)
        files: dict[str, dict[str, Any]] = content["files"]
        of_format = content["format"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {_cure(folder)}") from None
    if not intact:
        raise ValueError(f"{path} is damaged: its sha256 differs; {_cure(folder)}")
    if of_format != FORMAT:
        raise ValueError(f"{path} is of another version; load it with the gem_ds that wrote it")
    return files


def check(folder: Path, whole: bool = False) -> None:
    """Raise `ValueError`, naming the file, unless a sealed folder is as it was sealed.

    With `whole` all hashes are compared, as at the first load on a machine.
    """
    files = read(folder)
    wrong = _surplus(folder, files)
    states = {}
    for name, told in files.items():
        path = _path(folder, name)
        with suppress(OSError):
            states[name] = path.stat()
        if name not in states or not path.is_file():
            wrong = f"{path} is missing"
        elif states[name].st_size != told["bytes"]:
            wrong = f"{path} has {states[name].st_size:,} bytes instead of {told['bytes']:,}"
    if not wrong:
        wrong = _compared(folder, files, "sample")
    place = _cached(folder, files)
    now = {n: [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for n, s in states.items()}
    found = {"folder": str(folder.resolve()), "files": now}
    if not wrong and (whole or _kept(place) != found):
        size = sum(told["bytes"] for told in files.values())
        if size > ANNOUNCED and os.environ.get("RANK", "0") == "0":
            once = "" if whole else ", once on this machine"
            print(f"verifying {size / 1e9:.1f} GB in {folder}{once}", file=sys.stderr, flush=True)
        wrong = _compared(folder, files, "sha256")
        if not wrong:
            _keep(place, found)
    if wrong:
        raise ValueError(f"{wrong}; {_cure(folder)}")


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """The JSON file `name` of a folder that is as it was sealed, or that says it is not sealed.

    Raises `ValueError` as `check` does, and for a file that is no JSON object.
    """
    if (folder / SEAL).exists():
        check(folder)
    try:
        found: dict[str, Any] = json.loads((folder / name).read_bytes())
        sealed = found.get("sealed", False)
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder / name} is damaged ({error}); {_cure(folder)}") from None
    if not sealed:
        warn(folder)
    elif not (folder / SEAL).exists():
        check(folder)
    return found


def first_line(error: Exception) -> str:
    """What an exception says first."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def warn(folder: Path) -> None:
    """Say that a folder has no seal, where it has none."""
    if not (folder / SEAL).exists():
        print(
            f"WARNING: {folder} has no {SEAL}, so damage would not be noticed; seal it: "
            f"{RESEAL} {folder}",
            file=sys.stderr,
        )


def _surplus(folder: Path, files: Iterable[str]) -> str:
    """What says that there is a file beside those sealed which a loader might read."""
    sealed = {_path(folder, name) for name in files}
    adapter = "adapter" if (folder / "model").is_dir() else "../adapter"
    for place in sorted({*(path.parent for path in sealed), _path(folder, adapter)}):
        for path in sorted(place.glob("*")):
            if path not in sealed and is_sealed(path):
                return f"{path} does not belong to this export"
    return ""


def _path(folder: Path, name: str) -> Path:
    """A file by its name in a seal; ``..`` is the folder named before, also behind a link."""
    return Path(os.path.normpath(folder / name))


def _compared(folder: Path, files: dict[str, dict[str, Any]], what: str) -> str:
    def differs(name: str) -> str:
        path, told = _path(folder, name), files[name]
        try:
            found = _sample(path, told["bytes"]) if what == "sample" else None
            same = (found or _sha256(path)) == told[what]
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        return "" if same else f"{path} is not as it was sealed: its sha256 differs"

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return next(filter(None, threads.map(differs, sorted(files))), "")


def _sample(path: Path, size: int) -> str:
    """sha256 of the blocks of large weights; nothing for a file whose sample is all of it."""
    if path.suffix != WEIGHTS or size <= BLOCK * BLOCKS:
        return ""
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for number in range(BLOCKS):
            file.seek(number * (size - BLOCK) // (BLOCKS - 1))
            found.update(file.read(BLOCK))
    return found.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _cure(folder: Path) -> str:
    return f"copy the export again, or, if you changed it yourself, run {RESEAL} {folder}"


def _cached(folder: Path, files: dict[str, Any]) -> Path | None:
    """Where it is kept that a folder's files were compared whole; None without such a place."""
    with suppress(RuntimeError, OSError):
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(cache, "gem_ds", "verified", _digest([str(folder.resolve()), files]) + ".json")
    return None


def _kept(place: Path | None) -> dict[str, Any]:
    try:
        return dict(json.loads(place.read_bytes())) if place else {}
    except (OSError, ValueError, TypeError):
        return {}


def _keep(place: Path | None, found: dict[str, Any]) -> None:
    """Remember; where that cannot be written, the next load compares again."""
    if place is None:
        return
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        for other in place.parent.glob("*.json"):
            if not os.path.isdir(_kept(other).get("folder", "")):
                other.unlink(missing_ok=True)
        partial = place.with_name(f"{place.name}.{os.getpid()}")
        partial.write_text(json.dumps(found))
        os.replace(partial, place)
