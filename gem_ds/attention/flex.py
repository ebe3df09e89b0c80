"""Attention over one flat stream by the GEM rule with FlexAttention: any score, on a GPU.

The mask is two intervals of keys a token (`segments.spans`); the blocks that they touch or cover
are counted on the CPU, so that no (T, T) mask is made anywhere. The kernel is compiled once for
each stream length it meets; streams are padded to a power of two, so that there are few.

Shapes: T tokens in the stream, L queries padded, N heads, G key-value heads, H head size, M blocks
of queries, K of keys.
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

from gem_ds.attention.backends import move
from gem_ds.attention.segments import Spans, SummaryAttention, segments, spans
from gem_ds.layout import Bounds, Index

BLOCK = 128
LEAST = 16  # dimensions of a head, that its kernel takes


class Blocks(NamedTuple):
    """Columns of blocks of keys to visit for each row of blocks of queries, int32: how many, and
    which, those first. Some pairs of a partial block are allowed, all pairs of a full one."""

    n_partial: Tensor  # (1, 1, M)
    partial: Tensor  # (1, 1, M, K)
    n_full: Tensor
    full: Tensor


@dataclass(frozen=True)
class Flex:
    """The key intervals of each query, padded, and the block mask made from them."""

    near: Tensor  # (L,) int32; padding attends one key
    own: Tensor | None  # (L,) int32, the last near key; None where that is the query's own number
    far: Tensor | None  # (2, L) int32, begin and end; None where no token has far keys
    n_keys: int  # padded
    blocks: "Blocks"
    mask: BlockMask

    @classmethod
    def of(
        cls, bounds_D4: Bounds, summary: SummaryAttention, window: int | None, rest: bool = False
    ) -> "Flex":
        length = int(bounds_D4[-1, -1])
        found = spans(segments(bounds_D4, summary, window, rest), window)
        n_queries, n_keys = _padded(len(found.own)), _padded(length)
        padding = np.arange(len(found.own), n_queries)
        if rest:
            padding = np.zeros_like(padding)
        near, own, far, far_end = (np.concatenate([x, padding]) for x in found)
        both = np.stack([far, far_end]).astype(np.int32)
        return cls._made(
            torch.from_numpy(near.astype(np.int32)),
            torch.from_numpy(own.astype(np.int32)) if rest else None,
            torch.from_numpy(both) if (far < far_end).any() else None,
            n_keys,
            _touched(Spans(near, own, far, far_end), n_keys),
        )

    @classmethod
    def _made(
        cls, near: Tensor, own: Tensor | None, far: Tensor | None, n_keys: int, blocks: "Blocks"
    ) -> "Flex":
        mask = BlockMask.from_kv_blocks(
            blocks.n_partial,
            blocks.partial,
            blocks.n_full,
            blocks.full,
            BLOCK_SIZE=BLOCK,
            mask_mod=_mask_mod(near, own, far),
            seq_lengths=(len(near), n_keys),
        )
        return cls(near, own, far, n_keys, blocks, mask)

    def to(self, device: torch.device) -> "Flex":
        own = None if self.own is None else move(self.own, device)
        far = None if self.far is None else move(self.far, device)
        blocks = Blocks(*(move(x, device) for x in self.blocks))
        return self._made(move(self.near, device), own, far, self.n_keys, blocks)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float | None, sinks: Tensor | None
    ) -> Tensor:
        length = q.shape[1]
        padded = len(self.near), self.n_keys, self.n_keys
        q, k, v = (
            F.pad(x, (0, 0, 0, n - x.shape[1])).unsqueeze(0)
            for x, n in zip((q, k, v), padded, strict=True)
        )
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


def _padded(length: int) -> int:
    return max(BLOCK, 1 << (length - 1).bit_length())


def _mask_mod(
    near: Tensor, own: Tensor | None, far: Tensor | None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Any]:
    def near_keys(_b: Tensor, _h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        last = q if own is None else own[q]
        return (kv <= last) & (kv >= near[q])

    def all_keys(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        assert far is not None
        return near_keys(b, h, q, kv) | ((kv >= far[0, q]) & (kv < far[1, q]))

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


def _touched(of_L: Spans, n_keys: int) -> Blocks:
    """The blocks of keys that the intervals of each block of queries touch or cover."""
    row = np.arange(len(of_L.near)) // BLOCK
    n = len(of_L.near) // BLOCK, n_keys // BLOCK
    some = _counted(row, of_L.near // BLOCK, of_L.own // BLOCK + 1, n)
    every = _counted(row, -(-of_L.near // BLOCK), (of_L.own + 1) // BLOCK, n)
    beyond = of_L.far < of_L.far_end
    if beyond.any():
        far, end = of_L.far[beyond], of_L.far_end[beyond]
        some += _counted(row[beyond], far // BLOCK, -(-end // BLOCK), n)
        every += _counted(row[beyond], -(-far // BLOCK), end // BLOCK, n)
    full = every == BLOCK
    return Blocks(*_listed((some > 0) & ~full), *_listed(full))


def _counted(row: Index, first: Index, end: Index, n: tuple[int, int]) -> Index:
    """(n) how many queries of each row have each column in their ``[first, end)``."""
    rows, wide = n[0], n[1] + 1
    end = np.maximum(first, end)
    steps = np.bincount(row * wide + first, minlength=rows * wide)
    steps = steps - np.bincount(row * wide + end, minlength=rows * wide)
    counts: Index = steps.reshape(rows, wide).cumsum(1)[:, :-1]
    return counts


def _listed(table: npt.NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    """For each row: how many are true, and the columns, those first."""
    columns = np.argsort(~table, axis=1, kind="stable").astype(np.int32)
    counts = table.sum(1).astype(np.int32)
    return torch.from_numpy(counts)[None, None], torch.from_numpy(columns)[None, None]
