"""Attention over one flat stream by the GEM rule with FlexAttention: any score, on a GPU.

The mask is two intervals of keys a token (`segments.spans`); the blocks that they touch or cover
are counted on the CPU, so that no (T, T) mask is made anywhere. The kernel is compiled once for
each stream length it meets; streams are padded to a power of two, so that there are few.

Shapes: T tokens in the stream, L = T padded, N heads, G key-value heads, H head size, M blocks.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from gem_ds.kernels import move
from gem_ds.layout import Bounds, Index
from gem_ds.segments import Spans, SummaryAttention, segments, spans

BLOCK = 128


class Blocks(NamedTuple):
    """Columns of blocks of keys to visit for each row of blocks of queries, int32: how many, and
    which, those first. Some pairs of a partial block are allowed, all pairs of a full one."""

    n_partial: Tensor  # (1, 1, M)
    partial: Tensor  # (1, 1, M, M)
    n_full: Tensor
    full: Tensor


@dataclass(frozen=True)
class Flex:
    """The key intervals of each token, padded, and the block mask made from them."""

    near: Tensor  # (L,) int32; padding attends itself
    far: Tensor | None  # (2, L) int32, begin and end; None where no token has far keys
    blocks: "Blocks"
    mask: BlockMask

    @classmethod
    def of(cls, bounds_D4: Bounds, summary: SummaryAttention, window: int | None) -> "Flex":
        length = int(bounds_D4[-1, -1])
        padded = max(BLOCK, 1 << (length - 1).bit_length())
        found = spans(segments(bounds_D4, summary, window), window)
        near, far, far_end = found
        itself = np.arange(length, padded)
        near = np.concatenate([near, itself])
        far, far_end = np.concatenate([far, itself]), np.concatenate([far_end, itself])
        blocks = _touched(Spans(near, far, far_end))
        both = np.stack([far, far_end]).astype(np.int32)
        return cls._made(
            torch.from_numpy(near.astype(np.int32)),
            torch.from_numpy(both) if (far < far_end).any() else None,
            blocks,
        )

    @classmethod
    def _made(cls, near: Tensor, far: Tensor | None, blocks: "Blocks") -> "Flex":
        mask = BlockMask.from_kv_blocks(
            blocks.n_partial,
            blocks.partial,
            blocks.n_full,
            blocks.full,
            BLOCK_SIZE=BLOCK,
            mask_mod=_mask_mod(near, far),
            seq_lengths=(len(near), len(near)),
        )
        return cls(near, far, blocks, mask)

    def to(self, device: torch.device) -> "Flex":
        far = None if self.far is None else move(self.far, device)
        blocks = Blocks(*(move(x, device) for x in self.blocks))
        return self._made(move(self.near, device), far, blocks)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float | None, sinks: Tensor | None
    ) -> Tensor:
        length = q.shape[1]
        missing = len(self.near) - length
        if missing:
            q, k, v = (F.pad(x, (0, 0, 0, missing)) for x in (q, k, v))
        q, k, v = (x.unsqueeze(0) for x in (q, k, v))
        out, aux = _compiled(q.is_cuda)(
            q,
            k,
            v,
            score_mod=_soft_cap(cap) if cap else None,
            block_mask=self.mask,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
            return_aux=AuxRequest(lse=sinks is not None),
        )
        if sinks is not None:  # one more score in the softmax, of value zero
            out = out * torch.sigmoid(aux.lse - sinks[:, None].float())[..., None].to(out.dtype)
        restored: Tensor = out.squeeze(0)[:, :length].transpose(0, 1)
        return restored


def _mask_mod(near: Tensor, far: Tensor | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Any]:
    def near_keys(_b: Tensor, _h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return (kv <= q) & (kv >= near[q])

    def all_keys(_b: Tensor, _h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        assert far is not None
        return ((kv <= q) & (kv >= near[q])) | ((kv >= far[0, q]) & (kv < far[1, q]))

    return near_keys if far is None else all_keys


@functools.cache
def _soft_cap(cap: float) -> Callable[..., Tensor]:
    def score_mod(score: Tensor, _b: Tensor, _h: Tensor, _q: Tensor, _kv: Tensor) -> Tensor:
        return torch.tanh(score / cap) * cap

    return score_mod


@functools.cache
def _compiled(on_gpu: bool) -> Callable[..., Any]:
    """FlexAttention, compiled for a GPU; on a CPU as it is, which computes no gradients."""
    function: Callable[..., Any] = flex_attention
    return torch.compile(function, dynamic=False) if on_gpu else function


def _touched(of_L: Spans) -> Blocks:
    """The blocks of keys that the intervals of each block of queries touch or cover."""
    n = len(of_L.near) // BLOCK
    token = np.arange(len(of_L.near))
    row = token // BLOCK
    some = _counted(row, of_L.near // BLOCK, row + 1, n)
    every = _counted(row, -(-of_L.near // BLOCK), (token + 1) // BLOCK, n)
    beyond = of_L.far < of_L.far_end
    if beyond.any():
        far, end = of_L.far[beyond], of_L.far_end[beyond]
        some += _counted(row[beyond], far // BLOCK, -(-end // BLOCK), n)
        every += _counted(row[beyond], -(-far // BLOCK), end // BLOCK, n)
    full = every == BLOCK
    return Blocks(*_listed((some > 0) & ~full), *_listed(full))


def _counted(row: Index, first: Index, end: Index, n: int) -> Index:
    """(n, n) how many tokens of each row have each column in their ``[first, end)``."""
    wide = n + 1
    end = np.maximum(first, end)
    steps = np.bincount(row * wide + first, minlength=n * wide)
    steps = steps - np.bincount(row * wide + end, minlength=n * wide)
    counts: Index = steps.reshape(n, wide).cumsum(1)[:, :n]
    return counts


def _listed(table: npt.NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    """For each row: how many are true, and the columns, those first."""
    columns = np.argsort(~table, axis=1, kind="stable").astype(np.int32)
    counts = table.sum(1).astype(np.int32)
    return torch.from_numpy(counts)[None, None], torch.from_numpy(columns)[None, None]
