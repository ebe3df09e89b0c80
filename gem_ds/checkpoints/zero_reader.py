"""The tensors of a DeepSpeed checkpoint of ZeRO stage 1, 2 or 3, each put together from the ranks'
files when it is asked for.

The files are mapped into memory, and let go when as much of them has been read as the caller
allows to be mapped at once: what is read of a mapped file counts as this process's memory. How
ZeRO cuts tensors is what ``deepspeed/utils/zero_to_fp32.py`` says of it; that script itself holds
the frozen weights of all ranks, and all of stage 2, in memory at once.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from deepspeed.checkpoint.constants import (
    BUFFER_NAMES,
    FP32_FLAT_GROUPS,
    FROZEN_PARAM_FRAGMENTS,
    FROZEN_PARAM_SHAPES,
    OPTIMIZER_STATE_DICT,
    PARAM_ALIGNMENT_PADDINGS,
    PARAM_SHAPES,
    SINGLE_PARTITION_OF_FP32_GROUPS,
    ZERO_STAGE,
)
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor

from gem_ds.model.lazy_tensors import Lazy

# What DeepSpeed's files hold beside tensors and containers. Reading other objects may run code.
_CLASSES = [LossScaler, ZeroStageEnum, fragment_address]
_SHARED = "shared_params"  # of the names of one parameter, all but one: that one


class Piece(NamedTuple):
    """Elements of a flattened tensor in a file."""

    path: Path
    keys: tuple[str | int, ...]  # what leads to the tensor in the file's containers
    start: int
    stop: int


class _Files:
    """Files of the checkpoint, mapped when something in them is asked for."""

    def __init__(self, mapped_bytes: int) -> None:
        self._limit = mapped_bytes
        self._read = 0
        self._open: dict[Path, Any] = {}

    def follow(self, path: Path, keys: Sequence[str | int]) -> Any:
        """What a file holds under these keys."""
        if path not in self._open:
            self._open[path] = read(path, mmap=True)
        value = self._open[path]
        for key in keys:
            value = value[key]
        return value

    def join(self, pieces: Sequence[Piece], shape: torch.Size) -> Tensor:
        """A tensor of its own made of pieces, whose end may be padding."""
        flat = torch.cat([self.follow(p.path, p.keys).flatten()[p.start : p.stop] for p in pieces])
        self._read += flat.nbytes
        if self._read >= self._limit:
            self._read = 0
            self._open.clear()
        return flat[: math.prod(shape)].view(shape)


def read(path: Path, mmap: bool = False) -> Any:
    """What a file of DeepSpeed's holds, on the CPU. Raises an exception for what is `foreign`."""
    with torch.serialization.safe_globals(_CLASSES):
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)


def foreign(path: Path) -> str:
    """The functions and classes that reading a file would call and no checkpoint of a run has; also
    why it cannot be looked into. Nothing of the file is run."""
    own = {f"{each.__module__}.{each.__qualname__}" for each in _CLASSES}
    try:
        named = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:  # of its own parser, for what PyTorch has not written
        return f"it is no file of PyTorch's: {error}"
    return ", ".join(sorted(named - own))


def tensors(folder: Path, mapped_bytes: int) -> Lazy:
    """All parameters and buffers of the checkpoint in `folder`, named as in the trained module.

    What was trained is in fp32, what was frozen in the run's dtype. Of parameters that are one,
    such as tied embeddings, one name is given. At most about `mapped_bytes` of files stay mapped.
    """
    files = _Files(mapped_bytes)
    states, optimizers = (_by_rank(folder, f"*_{kind}_states.pt") for kind in ("model", "optim"))
    about = files.follow(states[0], ())
    shapes: list[Mapping[str, torch.Size]] = about[PARAM_SHAPES]
    frozen: Mapping[str, torch.Size] = about.get(FROZEN_PARAM_SHAPES) or {}
    partitioned = files.follow(optimizers[0], (OPTIMIZER_STATE_DICT, ZERO_STAGE)) == 3
    cut = _in_all_ranks if partitioned else _one_after_another
    pieces = {**dict(cut(files, optimizers, shapes))}
    for name, shape in frozen.items():
        n = math.ceil(shape.numel() / len(states)) if partitioned else shape.numel()
        holders = states if partitioned else states[:1]
        pieces[name] = [Piece(path, (FROZEN_PARAM_FRAGMENTS, name), 0, n) for path in holders]
    for name in set(about[BUFFER_NAMES]) & set(about["module"]):
        pieces[name] = [Piece(states[0], ("module", name), 0, about["module"][name].numel())]
    whole = {name: shape for group in shapes for name, shape in group.items()} | dict(frozen)
    whole |= {name: about["module"][name].shape for name in pieces.keys() - whole.keys()}
    aliases = about[_SHARED].keys()
    return Lazy(
        {
            name: partial(files.join, pieces[name], whole[name])
            for name in pieces
            if name not in aliases
        }
    )


def _by_rank(folder: Path, pattern: str) -> list[Path]:
    """The files of this pattern in the order of the ranks that wrote them."""

    def numbers(path: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", path.name)]

    return sorted(folder.glob(pattern), key=numbers)


_Cut = Iterator[tuple[str, list[Piece]]]


def _in_all_ranks(
    files: _Files, optimizers: list[Path], shapes: list[Mapping[str, torch.Size]]
) -> _Cut:
    """Stage 3: each rank has its share of every parameter, one behind the other, and the groups of
    parameters too; the flat tensors that hold them may end anywhere."""
    key = (OPTIMIZER_STATE_DICT, FP32_FLAT_GROUPS)
    sizes = [flat.numel() for flat in files.follow(optimizers[0], key)]
    at = 0
    for name, shape in ((n, s) for group in shapes for n, s in group.items()):
        share = math.ceil(shape.numel() / len(optimizers))
        yield (
            name,
            [
                Piece(path, (*key, i), start, stop)
                for path in optimizers
                for i, start, stop in _overlaps(sizes, at, at + share)
            ],
        )
        at += share
    assert at == sum(sizes), f"the parameters are {at} elements of {sum(sizes)}"


def _one_after_another(
    files: _Files, optimizers: list[Path], shapes: list[Mapping[str, torch.Size]]
) -> _Cut:
    """Stages 1 and 2: each group of parameters is a flat tensor, of which each rank has a part."""
    for i, group in enumerate(shapes):
        key = (OPTIMIZER_STATE_DICT, SINGLE_PARTITION_OF_FP32_GROUPS, i)
        sizes = [files.follow(path, key).numel() for path in optimizers]
        paddings = files.follow(optimizers[0], (OPTIMIZER_STATE_DICT,)).get(
            PARAM_ALIGNMENT_PADDINGS
        )
        at = 0
        for j, (name, shape) in enumerate(group.items()):
            yield (
                name,
                [
                    Piece(optimizers[rank], key, start, stop)
                    for rank, start, stop in _overlaps(sizes, at, at + shape.numel())
                ],
            )
            at += shape.numel() + (paddings[i][j] if paddings else 0)
        assert at <= sum(sizes), f"the parameters are {at} elements of {sum(sizes)}"


def _overlaps(sizes: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(which, from, to) of the consecutive tensors of these sizes that a range lies in."""
    for i, (begin, end) in enumerate(pairwise(accumulate(sizes, initial=0))):
        if begin < stop and start < end:
            yield i, max(start, begin) - begin, min(stop, end) - begin
