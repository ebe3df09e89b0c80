"""Many texts done in parts, by one process or several, with nothing done twice.

A part is so many texts that follow each other; its file, renamed into place when it is whole, is
what makes it done. So the same command goes on where it was interrupted, on as many ranks or
others, and two that do the same part write the same. Rank 0 joins them.
What a part's file is, the caller says.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gem_ds import dist, files
from gem_ds.errors import InputError
from gem_ds.text_files import Text

PART = 4096  # texts
PLAN = "plan.json"


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
    first and after the last part. Raises `InputError` where that folder is of another plan.
    """
    folder = output.with_name(f"{output.name}.parts")
    _settle(folder, {**identity, "part": part})
    try:
        dist.barrier()  # or one that comes late would begin again what others have joined
        made = []
        for number, group in enumerate(_groups(texts, part)):
            path = folder / f"part-{number:06d}{suffix}"
            made.append(path)
            if number % dist.world_size() == dist.rank() and not path.exists():
                write(path, group)
        dist.barrier()
        if dist.rank():
            return
        join(made, output)
        shutil.rmtree(folder, ignore_errors=True)
    except Exception:
        if dist.world_size() == 1 and not _parts(folder):  # nothing to go on from
            shutil.rmtree(folder, ignore_errors=True)
        raise


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
