"""Where the data of a task lies: in a folder of the user's, on the hub, or nowhere.

It is looked at before a model is loaded, so that what is missing is said at once. What mteb and
lm-eval do with the data is their own business.
"""

import functools
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import datasets

from gem_ds.errors import InputError
from gem_ds.eval_results import digest


@dataclass(frozen=True)
class Needed:
    """A dataset that a task reads from the hub."""

    task: str
    path: str  # its name there
    revision: str | None
    folder: str  # where in a folder of the user's it would lie


def check_hub(needed: Iterable[Needed], data: Path | None) -> None:
    """See that datasets which no folder holds can be had: from the hub, or from its local cache.

    Raises `InputError` for the first that cannot.
    """
    wanted = list(needed)
    seen: set[tuple[str, str | None]] = set()
    for dataset in wanted:
        if (dataset.path, dataset.revision) in seen:
            continue
        seen.add((dataset.path, dataset.revision))
        try:
            datasets.get_dataset_config_names(dataset.path, revision=dataset.revision)
        except (OSError, ValueError, RuntimeError) as error:
            n_others = len({other.task for other in wanted} - {dataset.task})
            more = f" ({n_others} more tasks want the hub)" if n_others else ""
            looked = f"in {data / dataset.folder} and " if data else ""
            raise InputError(
                f"the data of {dataset.task}{more} cannot be had: looked for {looked}on the hub "
                f"({dataset.path}: {str(error).strip().splitlines()[0]}); download that dataset "
                f"elsewhere, put it into FOLDER/{dataset.folder}, and give --data FOLDER"
            ) from error


@dataclass(frozen=True)
class Local:
    """A dataset in a folder: `path` is to be given to `datasets`."""

    path: str
    revision: str


def local(folder: Path) -> Local:
    """The dataset in a folder, by a name that changes with its content.

    `datasets` keeps what it has read under the folder's last name and the README's words alone, so
    that under one name it would give the old content, or another folder's.
    """
    content = digest(folder, folder.rglob("*"))
    link = Path(_links().name) / f"{folder.name}-{content}"
    if not link.is_symlink():
        link.symlink_to(folder.resolve())
    return Local(str(link), f"local-{content}")


@functools.cache
def _links() -> "tempfile.TemporaryDirectory[str]":
    """A folder of links that goes with this process."""
    return tempfile.TemporaryDirectory(prefix="gem_ds-")
