"""Where an exported model is, and what its ``gem_config.json`` says beside Transformers' config."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from gem_ds import files
from gem_ds.attention.segments import SummaryAttention
from gem_ds.errors import InputError
from gem_ds.export import gem_seal
from gem_ds.model.contrastive import Aggregation

GEM_CONFIG = "gem_config.json"
REPOSITORY = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
GIVE = "give what launch/export.py wrote"


@dataclass(frozen=True)
class GemConfig:
    """What a reader must know beside the Transformers config to embed with the model.

    `step` and `shards.manifest` (a digest of the shards) tell where the weights are from, `base`
    and `base_digest` what they were before, `base_share` how much of that was averaged in;
    `dimensions` are what embeddings can be cut to. With `adapter` the adapter in the folder beside
    the model is on at summary tokens. `fingerprint` is a digest of all that decides what the model
    computes: weights, adapter, tokenizer and the settings here. Where it is `sealed`, a seal lies
    beside it.
    """

    summary_tokens: tuple[int, ...]
    summary_attention: SummaryAttention
    base: str
    step: int
    manifest: str
    aggregation: Aggregation = "mean"
    dimensions: tuple[int, ...] = ()
    base_share: float = 0.0
    adapter: bool = False
    fingerprint: str = ""
    base_digest: str = ""
    sealed: bool = False


def find_export(name: str | Path) -> Path:
    """The ``model/`` of an export: of its folder, of that folder itself, or of a hub repository.

    A repository, ``owner/name``, is downloaded into the hub's cache, without ``model-embed/``.
    Raises `InputError` if there is neither such a folder nor such a repository.
    """
    files.check_path(name, GIVE)
    folder = Path(name)
    if not folder.exists() and REPOSITORY.fullmatch(str(name)):
        folder = _download(str(name))
    folder = Path(os.path.abspath(folder))  # what is beside "." is found, too
    return folder / "model" if (folder / "model").is_dir() else folder


def open_export(name: str | Path, verify: bool = False) -> tuple[Path, GemConfig]:
    """The ``model/`` of an export (`find_export`), as it was sealed, and what it says.

    With `verify` all of its files are hashed, which otherwise only the first load on a machine
    does. Raises `InputError` where a file differs. An export without a seal is taken with a
    warning.
    """
    folder = find_export(name)
    if (folder / gem_seal.SEAL).exists() or read_gem_config(folder).sealed:
        check_seal(folder, verify)
    else:
        gem_seal.warn(folder)
    return folder, read_gem_config(folder)


def check_seal(folder: Path, whole: bool = False) -> None:
    """`gem_seal.check`; what differs raises `InputError`."""
    try:
        gem_seal.check(folder, whole)
    except ValueError as error:
        raise InputError(str(error)) from None


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=["model-embed/*"]))
    except Exception as error:  # offline, unknown, private: the hub has a dozen classes for these
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{name} is neither a folder here nor to be had from the hub ({reason}); {GIVE}"
        ) from error


def read_gem_config(folder: Path) -> GemConfig:
    """The `GemConfig` in a model folder. Raises `InputError` if there is none or it is damaged."""
    path = folder / GEM_CONFIG
    if not path.is_file():
        raise InputError(
            f"{folder} has no {GEM_CONFIG}, so it was not written by launch/export.py; "
            "give an export folder or the model/ in it"
        )
    try:
        raw = json.loads(path.read_text())
        lists: Any = {n: tuple(x) if isinstance(x, list) else x for n, x in raw.items()}
        gem = GemConfig(**lists)
        if gem.summary_attention not in get_args(SummaryAttention):
            raise ValueError(f"summary_attention {gem.summary_attention!r} is unknown")
        if gem.aggregation not in get_args(Aggregation):
            raise ValueError(f"aggregation {gem.aggregation!r} is unknown")
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error!r}); export the model again") from error
    return gem
