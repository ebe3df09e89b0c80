"""Tensors by name that are computed when they are asked for, so that a model is never whole in
memory, and writing a file of tensors. What one is computed from lives with who asks:
`checkpoints.zero_reader`, `adapter_files`, `export.merge_base`."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


class Lazy(Mapping[str, Tensor]):
    """A mapping that computes a tensor each time that it is looked up, and keeps none."""

    def __init__(self, how: Mapping[str, Callable[[], Tensor]]) -> None:
        self._how = how

    def __getitem__(self, name: str) -> Tensor:
        return self._how[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._how

    def __iter__(self) -> Iterator[str]:
        return iter(self._how)

    def __len__(self) -> int:
        return len(self._how)


def renamed(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> Lazy:
    """Some of `weights` under other names, given as the old name by the new."""
    return Lazy({new: partial(weights.__getitem__, old) for new, old in names.items()})


def changed(
    weights: Mapping[str, Tensor], changes: Mapping[str, Callable[[Tensor], Tensor]]
) -> Lazy:
    """`weights`, some of them changed by a function of the tensor, which must leave it as it is."""

    def compute(name: str) -> Tensor:
        return changes[name](weights[name]) if name in changes else weights[name]

    return Lazy({name: partial(compute, name) for name in weights})


def save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a new safetensors file with the mode that the umask gives, as any other file has it.

    Raises `OSError` where it cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata)  # replaces it by one that only its owner reads
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    path.chmod(mode)
