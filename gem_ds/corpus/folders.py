"""Which files of a folder, a zip file or a pattern belong to a corpus, and which are left out why.

Left out are hidden files, what describes a dataset, what was written by data preparation itself,
and what is of no known format. Nothing is left out without a word.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby

SAVED_DATASET = ("state.json", "dataset_info.json")  # what `save_to_disk` of `datasets` writes
DESCRIPTIONS = (*SAVED_DATASET, "dataset_dict.json", "dataset_infos.json", "metadata.json")
SHARDS = ("plan.json", "manifest.json", "lock")
OF_SHARDS = "tokenizer/tokenizer.json"
NAMED = 20  # files of a kind; more are counted


class LeftOut:
    """Files that were left out, by reason, or the folders of many; as text, a message."""

    def __init__(self) -> None:
        self.names: dict[str, Counter[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Count a file by its name, or by that of its folder."""
        self.names.setdefault(reason, Counter())[name] += 1

    def __bool__(self) -> bool:
        return bool(self.names)

    def __str__(self) -> str:
        parts = []
        for reason, names in self.names.items():
            shown = [f"{name} ({n:,} files)" if n > 1 else name for name, n in names.items()]
            more = f" and {len(shown) - NAMED:,} more" if len(shown) > NAMED else ""
            parts.append(f"{', '.join(shown[:NAMED])}{more} ({reason})")
        return "left out of the corpus: " + "; ".join(parts)


def is_saved_dataset(folder: str) -> bool:
    """Whether `datasets` saved a dataset in a folder."""
    return all(os.path.isfile(os.path.join(folder, name)) for name in SAVED_DATASET)


def is_below(path: str, folder: str) -> bool:
    """Whether a path of this machine is a folder or lies in it."""
    if "://" in path or "://" in folder:
        return False
    real, root = os.path.realpath(path), os.path.realpath(os.path.expanduser(folder))
    return real == root or real.startswith(root + os.sep)


def choose(
    paths: Sequence[str],
    base: str,
    output: str,
    is_known: Callable[[str], bool],
    left_out: LeftOut,
) -> list[str]:
    """The files of `paths` that are of the corpus, in order.

    A dataset that was saved in a folder is that folder, with a slash at its end.
    """
    shards = _shards(paths)
    folders = sorted({os.path.dirname(path) for path in paths})
    saved = [at for at in folders if is_saved_dataset(at)]
    ours = {at for at in folders if output and is_below(at, output)}
    chosen = []
    for path in paths:
        *above, name = _inside(path, base)
        hidden = next((i for i, part in enumerate([*above, name], 1) if part.startswith(".")), 0)
        dataset = next((at for at in saved if path.startswith(at + "/")), None)
        root = next((at for at in shards if path.startswith(at + "/")), None)
        if os.path.dirname(path) in ours:
            left_out.add("in --output", output)
        elif root:
            left_out.add("shards of another run", root)
        elif hidden:
            up = len(above) + 1 - hidden
            left_out.add("hidden", path.rsplit("/", up)[0])
        elif dataset:
            chosen.append(dataset + "/")
        elif path.endswith("/"):
            left_out.add("a folder; give it, or a pattern with **", path)
        elif name.lower() in DESCRIPTIONS:
            left_out.add("describes a dataset", path)
        elif is_known(path):
            chosen.append(path)
        else:
            left_out.add("of no known format", path)
    return [path for path, _ in groupby(chosen)]


def _inside(path: str, base: str) -> list[str]:
    """The parts of a path below the folder `base`; of a pattern's match, its name."""
    if path.startswith("zip://") and path.endswith("::" + base):
        return path[len("zip://") : -len("::" + base)].split("/")
    below = path[len(base) :] if base and path.startswith(base) else os.path.basename(path)
    return below.strip("/").split("/")


def _shards(paths: Sequence[str]) -> list[str]:
    """The folders among those of `paths` that data preparation has written or is writing."""
    known = set(paths)
    roots = {os.path.dirname(path) for path in paths if os.path.basename(path) in SHARDS}
    return sorted(root for root in roots if f"{root}/{OF_SHARDS}" in known)
