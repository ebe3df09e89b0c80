"""Where the data of a task lies: in a folder of the user's, on the hub, or nowhere.

It is looked at before a model is loaded, so that what is missing is said at once. What mteb and
lm-eval do with the data is their own business.
"""

import functools
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq

from gem_ds.corpus import discovery, record_reader
from gem_ds.corpus.discovery import CSV, PARQUET, Input
from gem_ds.corpus.records import NOT_UTF8, Skip
from gem_ds.errors import InputError
from gem_ds.evaluation.result_files import digest

NUMBERS = ("score", "label", "labels")  # columns that are numbers where all their cells are
LISTS = ("corpus-ids", "human_summaries", "machine_summaries", "relevance")


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
    if data and not data.is_dir():
        raise InputError(f"there is no folder --data {data}; name the one that holds the data")
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


def table(stem: Path, columns: Sequence[str]) -> Any:
    """The rows of a file that is called `stem` and then ``.jsonl``, ``.tsv`` or the like.

    It may be of any format that data preparation reads, but plain text. Raises `InputError` for a
    file that is missing or cannot be read, and without one of the columns.
    """
    found = sorted(
        path
        for path in stem.parent.glob("*")
        if path.is_file() and discovery.stem_of(str(path)) == str(stem)
    )
    if not found:
        paths = [stem.with_name(stem.name + end) for end in (".jsonl", ".tsv", ".csv", ".parquet")]
        raise InputError(f"{' or '.join(map(str, paths))} is missing; put the task's data there")
    if len(found) > 1:
        raise InputError(f"{found[0]} and {found[1].name} are the same data; remove one of them")
    item = discovery.as_input(str(found[0]))
    try:
        if item.format == PARQUET:
            made = datasets.Dataset(pq.read_table(item.path))
        else:
            made = datasets.Dataset.from_list(list(_rows(item, columns)))
    except (ValueError, TypeError, AttributeError) as error:  # pyarrow's are ValueErrors, too
        if isinstance(error, InputError):
            raise
        raise InputError(f"{item.path} cannot be read ({error}); correct it") from error
    first = " in its first line" if item.format == CSV else ""
    if not len(made):
        raise InputError(f"{item.path} has no rows{first and ' after its first line'}")
    missing = [name for name in columns if name not in made.column_names]
    if missing:
        raise InputError(
            f"{item.path} has the columns {', '.join(made.column_names)}{first}, but not "
            f"{', '.join(missing)}; name them so"
        )
    return made


def _rows(item: Input, columns: Sequence[str]) -> list[dict[str, Any]]:
    """All rows with all their columns; raises `InputError` for one that cannot be read."""
    lists = [name for name in columns if name in LISTS]
    if item.format == CSV and lists:
        raise InputError(f"{item.path}: {lists[0]} holds lists, which CSV cannot; write .jsonl")
    rows: list[dict[str, Any]] = []
    for block in record_reader.blocks([item], record_reader.whole([item]), lambda _: []):
        for record in block.records:
            try:
                row = record.decoded()
                assert isinstance(row, dict), "of plain text"
                if any(isinstance(cell, bytes) for cell in row.values()):
                    raise Skip(NOT_UTF8)
            except Skip as skip:
                where = f"{item.path} cannot be read (line {record.line}: {skip.told})"
                raise InputError(f"{where}; correct it") from None
            rows.append(row)
    for name in NUMBERS:
        if item.format == CSV and rows and name in rows[0]:
            for row, number in zip(rows, _numbers([row[name] for row in rows]), strict=True):
                row[name] = number
    return rows


def _numbers(cells: list[str]) -> Sequence[float | str]:
    """Cells as numbers if all of them are, else as they are."""
    for kind in (int, float):
        try:
            return [kind(cell) for cell in cells]
        except ValueError:
            continue
    return cells
