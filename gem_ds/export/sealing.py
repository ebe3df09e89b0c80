"""Sealing what an export consists of, and the fingerprint of its model. What a seal is and how one
is checked is in `gem_seal`, which travels with exports; changing sealed files is in `reseal`.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gem_ds.export import gem_seal
from gem_ds.export.gem_config import GEM_CONFIG, GemConfig
from gem_ds.files import replacing
from gem_ds.model import adapter_files

Known = dict[tuple[int, int], dict[str, Any]]  # entries by device and inode: links are hashed once
_OF_THE_MODEL = ("summary_tokens", "summary_attention", "aggregation", "adapter")


def seal_model(model: Path, gem: GemConfig, known: Known) -> GemConfig:
    """Write ``gem_config.json`` and the seal of a ``model/`` and the ``adapter/`` beside it.

    Returns `gem` with the fingerprint, a digest of what vectors depend on.
    """
    files = _entries("", (path for path in model.iterdir() if path.name != GEM_CONFIG), known)
    if gem.adapter:
        adapter = model.parent / adapter_files.FOLDER
        files |= _entries(f"../{adapter_files.FOLDER}/", adapter.iterdir(), known)
    told = {name: getattr(gem, name) for name in _OF_THE_MODEL}
    told |= {"files": {name: entry["sha256"] for name, entry in files.items()}}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    gem = replace(gem, fingerprint=digest, sealed=True)
    with replacing(model / GEM_CONFIG) as partial:
        partial.write_text(json.dumps(asdict(gem), indent=2) + "\n")
    files |= _entries("", [model / GEM_CONFIG], known)
    gem_seal.write(model, files)
    return gem


def seal_embed(folder: Path, known: Known) -> None:
    """Write the seal of a ``model-embed/``."""
    files: dict[str, dict[str, Any]] = {}
    for part in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        files |= _entries("" if part == folder else f"{part.name}/", part.iterdir(), known)
    gem_seal.write(folder, files)


def _entries(prefix: str, paths: Iterable[Path], known: Known) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted(filter(gem_seal.is_sealed, paths)):
        about = path.stat()
        key = about.st_dev, about.st_ino
        if key not in known:
            known[key] = gem_seal.entry(path)
        found[prefix + path.name] = known[key]
    return found
