"""Whose results they are and where they lie: the model under test, and its place in a folder.

A folder of results is mteb's cache, ``results/MODEL/REVISION/``, and beside it the same two levels
under ``items/`` (scores of single pairs and queries), ``lm/`` and ``reconstruct/``. The revision is
a digest of the model's files, so results of different models never mix, whatever their names. What
is measured is in `mteb_runner`, `lm_eval_runner` and `reconstruction`.
"""

import hashlib
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gem_ds import files
from gem_ds.errors import InputError
from gem_ds.export import gem_seal
from gem_ds.export.gem_config import GEM_CONFIG, check_seal, open_export
from gem_ds.files import replacing, sha256
from gem_ds.model import adapter_files

Unit = TypeVar("Unit")


@dataclass(frozen=True)
class Candidate:
    """A model under test: an export of this project, or a SentenceTransformers folder."""

    folder: Path  # with `is_export` the one that holds model/ and adapter/
    is_export: bool
    name: str
    revision: str

    @property
    def place(self) -> Path:
        """Its two levels in a folder of results."""
        return Path(self.name.replace("/", "__")) / self.revision


def candidate(folder: Path) -> Candidate:
    """The model in a folder; reads all of its files, for the digest and to compare with its seal.

    Raises `InputError` for a folder that is neither an export nor one of SentenceTransformers, or
    that is not as it was exported.
    """
    files.check_path(folder, "name an export or a SentenceTransformers folder with --model")
    folder = folder.resolve()
    if (folder / GEM_CONFIG).is_file():
        folder = folder.parent
    is_export = (folder / "model" / GEM_CONFIG).is_file()
    if is_export:
        adapted = open_export(folder, verify=True)[1].adapter
        parts = ["model", adapter_files.FOLDER] if adapted else ["model"]
        paths = [path for part in parts for path in (folder / part).rglob("*")]
    elif (folder / "modules.json").is_file():
        if (folder / gem_seal.SEAL).exists():
            check_seal(folder, whole=True)
        paths = list(folder.rglob("*"))
    else:
        raise InputError(
            f"{folder} holds neither what launch/export.py writes (model/{GEM_CONFIG}) nor a "
            "SentenceTransformers model (modules.json); name such a folder with --model"
        )
    name = re.sub(r"[^\w.-]", "_", folder.name)
    return Candidate(folder, is_export, f"local/{name}", digest(folder, paths))


def digest(root: Path, paths: Iterable[Path]) -> str:
    """20 hexadecimal digits of files' names below `root` and content; hidden ones left out."""
    whole = hashlib.sha256()
    for path in sorted(paths):
        inside = path.relative_to(root)
        if path.is_file() and not any(part.startswith((".", "__")) for part in inside.parts):
            whole.update(f"{inside.as_posix()}\0{sha256(path)}\n".encode())
    return whole.hexdigest()[:20]


def share_of(units: Sequence[Unit], share: str | None) -> list[Unit]:
    """Of ``I/N`` the I-th of N shares, counted from 0; all without it."""
    if share is None:
        return list(units)
    found = re.fullmatch(r"(\d+)/(\d+)", share)
    if not found or int(found[1]) >= int(found[2]):
        raise InputError(f"--share {share} is no share; give I/N with I from 0 to N - 1")
    return list(units[int(found[1]) :: int(found[2])])


def write_json(path: Path, value: Any) -> None:
    """A file that appears whole, and folders for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def run_each(
    units: Iterable[Unit], name_of: Callable[[Unit], str], do: Callable[[Unit], str]
) -> None:
    """Do one after another and say what `do` returns; one that fails does not stop the others.

    Raises `InputError` at the end, naming those that failed and why.
    """
    failed: list[str] = []
    n_units = 0
    for unit in units:
        n_units += 1
        try:
            print(f"{name_of(unit)}: {do(unit)}", flush=True)
        except Exception as error:
            if not isinstance(error, InputError):
                traceback.print_exc()
            reason = str(error).strip().splitlines() or [type(error).__name__]
            failed.append(f"{name_of(unit)} ({reason[0]})")
            print(f"{failed[-1]}: failed", file=sys.stderr, flush=True)
    if failed:
        raise InputError(
            f"{len(failed)} of {n_units} tasks failed: {'; '.join(failed)}. The others are kept; "
            "the same command tries these again"
        )
