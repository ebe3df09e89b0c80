"""Writing a file of tensors. What they are and what its name is, the caller says."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gem_ds.errors import reason


def save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a new safetensors file with the mode that the umask gives, as any other file has it.

    Raises `OSError` where it cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata)  # replaces it by one that only its owner reads
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {reason(error)}") from error
    path.chmod(mode)
