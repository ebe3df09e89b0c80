"""Whether what a user gives is a folder here or a name on the Hugging Face hub.

What looks like a path is one, so that a folder with a typing error is never looked for on the hub.
"""

import difflib
from pathlib import Path

from gem_ds.errors import InputError


def is_path(name: str | Path) -> bool:
    """Whether `name` is a path: it exists, its first folder does, or no name on the hub is so."""
    text = str(name)
    first, slash, _ = text.partition("/")
    looks = text.startswith((".", "/", "~")) or text.endswith("/") or text.count("/") > 1
    # A file by its ending: names on the hub have none of these.
    looks |= "\\" in text or text.endswith((".json", ".safetensors", ".bin", ".gguf"))
    looks |= isinstance(name, Path) or Path(text).exists()
    return looks or bool(slash and Path(first).is_dir())


def check_path(name: str | Path, cure: str) -> None:
    """Raise `InputError` for a path at which there is nothing; `cure` says what to give."""
    path = Path(name)
    if not is_path(name) or path.exists():
        return
    there = path
    while not there.exists():
        there = there.parent
    lost = path.relative_to(there).parts[0]
    if not there.is_dir():
        raise InputError(f"there is no folder {name}: {there} is a file; {cure}")
    near = difflib.get_close_matches(lost, sorted(p.name for p in there.iterdir()), 1)
    why = "" if path == Path(lost) else f": {there} has no {lost}"
    raise InputError(
        f"there is no folder {name}{why}; {f'is it {there / near[0]}?' if near else cure}"
    )
