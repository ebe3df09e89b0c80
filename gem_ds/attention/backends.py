"""Attention over one flat stream by the GEM rule: what a backend is, the reference, and varlen.

A backend is made from a layout and a window on the CPU, moved to its device once, and shared by all
layers. ``Dense`` is the reference, with the (T, T) mask. ``Varlen`` hands the segments to a
FlashAttention kernel. `cpu` is the CPU's, `flex` the GPU's general one.

Shapes: T tokens in the stream, N heads, G key-value heads, H head size, S segments.
"""

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from gem_ds import layout
from gem_ds.attention import masks
from gem_ds.attention.segments import SummaryAttention, segments
from gem_ds.errors import InputError
from gem_ds.layout import Bounds, Index


class Kernel(Protocol):
    """What a plan holds: attention of one stream, with one window.

    Made with `rest`, the queries are those at summary tokens and in suffixes alone, in their order;
    keys and values are the whole stream's.
    """

    @classmethod
    def of(
        cls, bounds_D4: Bounds, summary: SummaryAttention, window: int | None, rest: bool = False
    ) -> "Kernel":
        """The attention of a stream, on the CPU."""
        ...

    def to(self, device: torch.device) -> "Kernel":
        """The same on another device, copied without waiting."""
        ...

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float | None, sinks: Tensor | None
    ) -> Tensor:
        """(T, N, H) from q (N, T, H) and k, v (G, T, H), T of q and of k being two with `rest`.

        Scores are ``q k * scale``, with `cap` soft-capped to ``cap * tanh(score / cap)``; with
        `sinks` (N,) each head's softmax has one more score, whose value is zero.
        """
        ...


def move(x: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, copied asynchronously from pinned memory where that is a GPU."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


class Dense(NamedTuple):
    """Attention with an explicit mask, softmax in fp32 at least: slow and obviously right."""

    mask_TT: Tensor

    @classmethod
    def of(
        cls, bounds_D4: Bounds, summary: SummaryAttention, window: int | None, rest: bool = False
    ) -> "Dense":
        mask_TT = masks.dense(bounds_D4, summary, window)
        return cls(mask_TT[torch.from_numpy(layout.after_text(bounds_D4))] if rest else mask_TT)

    def to(self, device: torch.device) -> "Dense":
        return Dense(move(self.mask_TT, device))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float | None, sinks: Tensor | None
    ) -> Tensor:
        k, v = (repeated(x, q.shape[0] // x.shape[0]) for x in (k, v))
        sinks = None if sinks is None else sinks[:, None, None]
        return weighted(q, k, v, self.mask_TT, scale, cap, sinks).transpose(0, 1)


def weighted(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scale: float,
    cap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """(..., Q, H) attention of queries (..., Q, H) to keys and values (..., K, H) as written down.

    `mask` (..., Q, K) is True where a query sees a key; `sinks` is of a shape (..., Q, 1). The
    softmax is in fp32 at least; see `Kernel.attend` for `cap` and `sinks`.
    """
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    if cap:
        scores = torch.tanh(scores / cap) * cap
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        column = sinks.to(scores).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], dim=-1)
    return scores.softmax(-1).to(v.dtype)[..., : k.shape[-2]] @ v


class Varlen(NamedTuple):
    """All segments in one call of a variable-length FlashAttention kernel, which aligns causality
    at the bottom right. Queries are the stream as it is; keys are gathered where a summary token
    stands in two segments, and not at all in a stream of plain documents."""

    gather_kv: Tensor | None
    cu_seq_q: Tensor  # (S + 1,) int32, where each segment's queries begin
    cu_seq_k: Tensor  # (S + 1,) int32
    max_q: int
    max_k: int
    window: int | None

    @classmethod
    def of(
        cls, bounds_D4: Bounds, summary: SummaryAttention, window: int | None, rest: bool = False
    ) -> "Varlen":
        parts = segments(bounds_D4, summary, window, rest)
        n_queries, n_keys = parts.n_queries, parts.n_keys
        if n_keys.sum() > np.iinfo(np.int32).max:
            raise InputError(
                f"attention: {n_keys.sum()} keys in one micro-batch are more than the kernel's "
                "32-bit offsets can hold; take fewer rows (--rows-per-micro-batch)"
            )
        plain = not rest and int(n_keys.sum()) == int(bounds_D4[-1, -1])
        return cls(
            None if plain else torch.from_numpy(parts.keys()),
            _offsets(n_queries),
            _offsets(n_keys),
            int(n_queries.max()),
            int(n_keys.max()),
            window,
        )

    def to(self, device: torch.device) -> "Varlen":
        gather_kv = None if self.gather_kv is None else move(self.gather_kv, device)
        return self._replace(
            gather_kv=gather_kv,
            cu_seq_q=move(self.cu_seq_q, device),
            cu_seq_k=move(self.cu_seq_k, device),
        )

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float | None, sinks: Tensor | None
    ) -> Tensor:
        refuse("varlen", cap, sinks)
        q_TNH, k_TGH, v_TGH = (x.transpose(0, 1) for x in (q, k, v))
        if self.gather_kv is not None:
            k_TGH = k_TGH.index_select(0, self.gather_kv)
            v_TGH = v_TGH.index_select(0, self.gather_kv)
        out = varlen_attn(
            q_TNH,
            k_TGH,
            v_TGH,
            self.cu_seq_q,
            self.cu_seq_k,
            self.max_q,
            self.max_k,
            scale=scale,
            window_size=(-1 if self.window is None else self.window - 1, 0),
            enable_gqa=q.shape[0] != k.shape[0],
        )
        assert isinstance(out, Tensor)  # no auxiliary outputs were asked for
        return out


def _offsets(lengths: Index) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def repeated(x: Tensor, groups: int, dim: int = 0) -> Tensor:
    """Key or value heads, along `dim`, repeated to the number of query heads."""
    return x if groups == 1 else x.repeat_interleave(groups, dim=dim)


def refuse(backend: str, cap: float | None, sinks: Tensor | None) -> None:
    """Raise `InputError` for scores that a backend does not compute."""
    if cap or sinks is not None:
        what = "soft-capped scores" if cap else "attention sinks"
        raise InputError(f"the {backend} backend does not compute {what}; use --attention auto")
