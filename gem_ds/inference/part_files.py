"""Many texts done in parts, by one process or several, with nothing done twice.

A part is so many texts that follow each other; its file, renamed into place when it is whole, is
what makes it done. So the same command goes on where it was interrupted, on as many ranks or
others, and two that do the same part write the same. Rank 0 waits for all parts and joins them; it
ends when a rank that it waits for has. What a part's file is, the caller says.
"""

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gem_ds import distributed, files
from gem_ds.corpus.text_files import Text
from gem_ds.errors import InputError
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
