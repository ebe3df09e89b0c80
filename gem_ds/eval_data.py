"""Where the data of a task lies: in a folder of the user's, on the hub, or nowhere.

It is looked at before a model is loaded, so that what is missing is said at once. What mteb and
lm-eval do with the data is their own business.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import datasets

from gem_ds.errors import InputError


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
