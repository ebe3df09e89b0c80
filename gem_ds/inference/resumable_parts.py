"""Many texts done in parts, by one process or several, with nothing done twice; files of vectors.

A part is so many texts that follow each other; its file, renamed into place when it is whole, is
what makes it done. So the same command goes on where it was interrupted, on as many ranks or
others, and two that do the same part write the same. Rank 0 waits for all parts and joins them; it
ends when a rank that it waits for has. What a part's file is, the caller says; one of vectors is an
array for NumPy, or a table with ids.

Shapes: N texts, C dimensions.
"""

import io
import itertools
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gem_ds import distributed, files
from gem_ds.errors import InputError
from gem_ds.files import replacing
from gem_ds.inference.text_files import Text
from gem_ds.training.watchdog import FOLDER, Watchdog

PART = 4096  # texts
PLAN = "plan.json"
SILENCE = 200.0  # seconds, as a timeout of `Watchdog`: a sign of life every 10


def run(
    texts: Iterable[Text],
    identity: dict[str, Any],
    output: Path,
    suffix: str,
    write: Callable[[Path, Sequence[Text]], None],
    join: Callable[[Sequence[Path], Path], None],
    part: int = PART,
) -> None:
    """Have every part of the texts written by `write`, and all joined to `output` by `join`.

    Parts lie in ``<output>.parts`` until then, beside a plan that tells `identity`: what the texts,
    the model and the settings are. Of several ranks each does its share, and all meet before the
    first part. Raises `InputError` where that folder is of another plan, or a rank has failed.
    """
    folder = output.with_name(f"{output.name}.parts")
    _settle(folder, {**identity, "part": part})
    try:
        made = []
        with Watchdog(folder, distributed.rank(), distributed.world_size(), SILENCE) as watchdog:
            with (
                distributed.meeting()
            ):  # or one that comes late would begin again what others have joined
                distributed.barrier()
            for number, group in enumerate(_groups(texts, part)):
                path = folder / f"part-{number:06d}{suffix}"
                made.append(path)
                if number % distributed.world_size() == distributed.rank() and not path.exists():
                    watchdog.move(f"doing part {number}", math.inf)
                    write(path, group)
            if distributed.rank():
                return
            _wait(made, watchdog)
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        files.remove_leftovers(folder)
        join(made, output)
        shutil.rmtree(folder, ignore_errors=True)
    except Exception:
        if distributed.world_size() == 1 and not _parts(folder):  # nothing to go on from
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _wait(made: Sequence[Path], watchdog: Watchdog) -> None:
    """Until all parts are there. Raises `InputError` where one that is to make some is gone."""
    missing = dict(enumerate(made))

    def awaited() -> set[int]:
        for number in [n for n, path in missing.items() if path.exists()]:
            del missing[number]
        return {number % distributed.world_size() for number in missing}

    while awaited():
        if gone := watchdog.missing(awaited):
            raise InputError(f"{gone}; the same command does what is missing")


def _parts(folder: Path) -> list[Path]:
    return list(folder.glob("part-*"))


def _groups(texts: Iterable[Text], part: int) -> Iterator[list[Text]]:
    remaining = iter(texts)
    while group := list(itertools.islice(remaining, part)):
        yield group


def _settle(folder: Path, plan: dict[str, Any]) -> None:
    """Make the folder of the parts, or see that it is of this plan."""
    path = folder / PLAN
    told = json.dumps(plan, indent=1, sort_keys=True) + "\n"
    if path.exists() and _parts(folder):
        found = json.loads(path.read_text())
        if found == json.loads(told):
            return
        changed = sorted(k for k in plan.keys() | found.keys() if plan.get(k) != found.get(k))
        raise InputError(
            f"{folder} holds unfinished work with other settings ({', '.join(changed)}); repeat "
            "that command, or remove the folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as partial:
        partial.write_text(told)


Vectors = npt.NDArray[Any]
NPY, PARQUET = ".npy", ".parquet"


def check(path: Path) -> None:
    """Raise `InputError` unless vectors can be written to a file of this ending."""
    if path.suffix not in (NPY, PARQUET):
        raise InputError(f"--output {path}: vectors are written as {NPY} or {PARQUET}; name one")
    if not path.parent.is_dir():
        raise InputError(f"--output {path}: there is no folder {path.parent}; make it")


def write(path: Path, ids: Sequence[str], vectors_NC: Vectors, suffix: str) -> None:
    """Write vectors to a file in the format of that ending; it appears whole or not at all."""
    with replacing(path) as partial:
        if suffix == NPY:
            with partial.open("wb") as file:
                np.save(file, vectors_NC)
        else:
            pq.write_table(_table(ids, vectors_NC), partial)


def join(parts: Sequence[Path], path: Path) -> None:
    """Write the vectors of files of one format, one after another, to one file of that format."""
    with replacing(path) as partial:
        if path.suffix == NPY:
            arrays = [np.load(part, mmap_mode="r") for part in parts]
            shape = sum(map(len, arrays)), *arrays[0].shape[1:]
            whole = np.lib.format.open_memmap(partial, "w+", arrays[0].dtype, shape)
            at = 0
            for array in arrays:
                whole[at : at + len(array)] = array
                at += len(array)
            whole.flush()
            return
        with pq.ParquetWriter(partial, pq.read_schema(parts[0])) as writer:
            for part in parts:
                writer.write_table(pq.read_table(part))


def to_stdout(vectors_NC: Vectors) -> None:
    """Write a .npy to standard output."""
    buffer = io.BytesIO()  # numpy writes to no pipe
    np.save(buffer, vectors_NC)
    sys.stdout.buffer.write(buffer.getbuffer())
    sys.stdout.buffer.flush()


def _table(ids: Sequence[str], vectors_NC: Vectors) -> pa.Table:
    """Columns ``id`` (string) and ``embedding`` (list of float, int8 or uint8)."""
    n, size = vectors_NC.shape
    offsets = np.arange(0, (n + 1) * size, size) if size else np.zeros(n + 1)
    flat = pa.array(np.ascontiguousarray(vectors_NC).ravel())
    embedding = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), flat)
    return pa.table({"id": pa.array(list(ids), pa.string()), "embedding": embedding})
