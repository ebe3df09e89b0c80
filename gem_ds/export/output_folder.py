"""The folder that an export becomes: checked before the work, and there whole or not at all."""

import glob
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gem_ds.errors import InputError, reason
from gem_ds.files import is_leftover

MODEL = "model"  # without it no folder is taken for an export


def check(output: Path, *sources: Path) -> Path:
    """Where the export is to appear, links followed; what killed exports left there is removed.

    Raises `InputError` for a folder that is not empty or cannot be written, and for one in a folder
    of `corpus.record_reader`, which the export is made of.
    """
    try:
        place = output.resolve()
        _remove_leftovers(place)
        if place.exists() and not place.is_dir():
            raise InputError(f"--output {output} is a file; name a folder that is not there yet")
        if place.exists() and any(place.iterdir()):
            raise InputError(
                f"{output} exists and is not empty; name another --output or remove it"
            )
    except (OSError, RuntimeError) as error:  # a loop of links
        raise InputError(f"--output {output} cannot be used: {reason(error)}") from error
    for source in sources:
        if place.is_relative_to(source.resolve()):
            raise InputError(f"--output {output} lies in {source}, which is exported; name another")
    there = next(path for path in (place, *place.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "cannot be written" if there.is_dir() else "is a file"
        raise InputError(f"--output {output}: {there} {what}; name another --output")
    return place


@contextmanager
def building(place: Path) -> Iterator[Path]:
    """A folder of the name of `place` that takes its place when the context ends without an error.

    A `place` that is there, and may be a mount or a current folder, stays and gets what is in it.
    Raises `InputError` where it cannot be written; nothing is left of it then.
    """
    inside = place.is_dir()
    beside = place if inside else place.parent
    temporary = beside / f".{place.name}.{socket.gethostname()}-{os.getpid()}.tmp"
    try:
        made = temporary / place.name
        made.mkdir(parents=True)
        yield made
        if inside:
            for part in sorted(made.iterdir(), key=lambda path: path.name == MODEL):
                part.rename(place / part.name)
        else:
            made.rename(place)
    except OSError as error:
        if error.filename and str(temporary) not in str(error.filename):
            raise  # of a file that is read
        why = error.strerror or reason(error)
        raise InputError(
            f"{place} could not be written ({why}), and nothing is left of it; make room, or "
            "choose another --output"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(place: Path) -> None:
    """Remove what processes of this machine left that are no more."""
    name = f".{glob.escape(place.name)}.{glob.escape(socket.gethostname())}-*.tmp"
    for path in (*place.parent.glob(name), *place.glob(name)):
        if is_leftover(path):
            shutil.rmtree(path, ignore_errors=True)
