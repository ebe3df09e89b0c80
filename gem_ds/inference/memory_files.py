"""One text's memory, what its summary tokens hold, and its file.

Computing memories is in `memories`, decoding from them that of `generation`.

Shapes: N heads of keys, k summary tokens, H head size.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gem_ds.errors import InputError, reason
from gem_ds.files import replacing
from gem_ds.model import lazy_tensors

FORMAT = "gem_ds memories 1"


@dataclass(frozen=True)
class Memory:
    """The keys and values of a text's summary tokens in every layer.

    `n_tokens` is what the text had, beside bos and summary tokens; `position` where the token
    behind the summary stands; `next_token` what the last summary token predicts. `model` is the
    fingerprint of the model that alone can read it.
    """

    keys: tuple[Tensor, ...]  # of each layer (N, k, H), turned to their positions
    values: tuple[Tensor, ...]
    n_tokens: int
    position: int
    next_token: int
    model: str

    @property
    def k(self) -> int:
        """Summary tokens."""
        return int(self.keys[0].shape[1])

    @property
    def n_bytes(self) -> int:
        """Of keys and values: ``k / (tokens + k)`` of what the text itself would take, in tokens
        with bos."""
        return sum(x.numel() * x.element_size() for x in (*self.keys, *self.values))

    @property
    def dtype(self) -> torch.dtype:
        return self.keys[0].dtype

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, which appears whole or not at all."""
        write({"": self}, path)

    @classmethod
    def load(cls, path: str | Path) -> "Memory":
        """Read what `save` wrote. Raises `InputError` for another file."""
        found = read(path)
        if len(found) != 1:
            raise InputError(
                f"{path} holds {len(found)} memories; read them with gem_ds.memory_files.read"
            )
        return next(iter(found.values()))


def write(memories: Mapping[str, Memory], path: str | Path) -> None:
    """Write memories of one model by id, layer by layer in tensors (D, N, k, H)."""
    every = list(memories.values())
    first = every[0]
    tensors = {}
    for layer in range(len(first.keys)):
        tensors[f"keys.{layer}"] = torch.stack([m.keys[layer] for m in every])
        tensors[f"values.{layer}"] = torch.stack([m.values[layer] for m in every])
    told: dict[str, Any] = {
        "ids": list(memories),
        "n_tokens": [m.n_tokens for m in every],
        "positions": [m.position for m in every],
        "next_tokens": [m.next_token for m in every],
        "k": first.k,
        "model": first.model,
        "dtype": str(first.dtype).removeprefix("torch."),
    }
    metadata = {"format": FORMAT, **{name: json.dumps(value) for name, value in told.items()}}
    with replacing(Path(path)) as partial:
        tensors = {n: x.cpu().contiguous() for n, x in tensors.items()}
        lazy_tensors.save(tensors, partial, metadata)


def read(path: str | Path) -> dict[str, Memory]:
    """The memories in a file, or in the files of a folder, by id, on the CPU.

    Raises `InputError` where there are none, or two of one id.
    """
    files = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else [Path(path)]
    if not files:
        raise InputError(f"{path} holds no memories; give what launch/compress.py wrote")
    found: dict[str, Memory] = {}
    for file in files:
        here = _read(file)
        if twice := sorted(here.keys() & found.keys()):
            raise InputError(f"{file}: another file has a memory {twice[0]!r} as well")
        found |= here
    return found


def _read(path: Path) -> dict[str, Memory]:
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}; give one that launch/compress.py wrote")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(f"{path} holds no memories; give what launch/compress.py wrote")
            told = {n: json.loads(value) for n, value in metadata.items() if n != "format"}
            layers = range(len(file.keys()) // 2)
            keys = [file.get_tensor(f"keys.{layer}") for layer in layers]
            values = [file.get_tensor(f"values.{layer}") for layer in layers]
        return {
            name: Memory(
                tuple(x[i] for x in keys),
                tuple(x[i] for x in values),
                told["n_tokens"][i],
                told["positions"][i],
                told["next_tokens"][i],
                told["model"],
            )
            for i, name in enumerate(told["ids"])
        }
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({reason(error)}); compress the texts again"
        ) from error
