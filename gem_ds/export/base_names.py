"""What an export says of the base that it was made from: its name and a digest, not its path."""

import hashlib
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from gem_ds import files
from gem_ds.files import sha256

CONFIG = "config.json"
_FILES = (CONFIG, "tokenizer.json", "*.safetensors", "*.safetensors.index.json", "*.bin")


def name_of(base: str) -> str:
    """A base's name on the hub, or that of its folder."""
    return Path(base).resolve().name if files.is_path(base) else base


def digest_of(base: str) -> str:
    """sha256 of the names and content of a base's files; empty where they are not on this machine.

    Of a base that is a configuration alone, of that file.
    """
    place = Path(base)
    if place.is_file():
        return sha256(place)
    if not place.is_dir():
        try:
            cached = try_to_load_from_cache(base, CONFIG)
        except ValueError:  # no name of a repository
            return ""
        if not isinstance(cached, str):
            return ""
        place = Path(cached).parent
    paths = sorted({path for pattern in _FILES for path in place.glob(pattern)})
    lines = [f"{path.name} {sha256(path)}" for path in paths]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
