"""How the CPU's attention cuts a stream: short documents in batches, the others in runs.

A document of fewer than `SHORT` tokens is one problem with a small mask, and many of similar length
are a batch. The segments (`segments`) of a longer one are runs over slices of the stream, without a
copy. Computing them is the business of `sdpa`.

Shapes: T tokens in the stream, N heads, B documents of a batch of at most L tokens, Q queries,
K keys.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gem_ds.layout import END, START, Bounds, Index
from gem_ds.segments import Segments, Spans, SummaryAttention, segments, similar, spans

SHORT = 64  # tokens
MAX_PADDING = 0.1  # of a batch


class Rows(NamedTuple):
    """Where a batch's vectors are among the ``T x heads`` of a stream (T, N, H) in memory."""

    gather: Tensor  # (B N L,), each head repeated where that is asked for
    scatter: Tensor  # of those in memory order (B, N, L) that are no padding
    kept: Tensor  # the places of those in (B N L)


@dataclass(frozen=True)
class Batch:
    """Whole documents, padded at the end by repeating their last tokens."""

    tokens: Tensor  # (B, L) int64
    kept: Tensor  # (B, L) bool, the others are padding
    hidden: Tensor  # (B, L, L) bool, the keys that each query does not attend
    _rows: dict[tuple[int, int], Rows] = field(default_factory=dict)

    def rows(self, heads: int, groups: int) -> Rows:
        """The same for all layers, so made once."""
        if (heads, groups) not in self._rows:
            rows_BNL = self.tokens[:, None, :] * heads + torch.arange(heads)[:, None]
            kept = self.kept[:, None, :].expand_as(rows_BNL).flatten().nonzero().squeeze(1)
            self._rows[heads, groups] = Rows(
                rows_BNL.repeat_interleave(groups, dim=1).flatten(),
                rows_BNL.flatten()[kept],
                kept,
            )
        return self._rows[heads, groups]


class Run(NamedTuple):
    """Queries ``[start, end)`` on keys ``[near, end)``: causal with the last on the last, or with
    the keys at `hidden` (Q, K) left out."""

    near: int
    start: int
    end: int
    hidden: Tensor | None


class Pieces(NamedTuple):
    """A stream's short documents, and the runs of the others.

    `lengths` splits the stream into the queries of each run, in order, and what lies between, which
    is None in `units` and the business of the batches.
    """

    batches: tuple[Batch, ...]
    units: tuple[Run | None, ...]
    lengths: list[int]


def cut(bounds_D4: Bounds, summary: SummaryAttention, window: int | None) -> Pieces:
    """The pieces of a stream whose documents tile it."""
    length_D = (bounds_D4[:, END] - bounds_D4[:, START]).astype(np.int64)
    parts = segments(bounds_D4, summary, window)
    short = np.flatnonzero(length_D < SHORT)
    starts = bounds_D4[short, START].astype(np.int64)
    batches = _batches(starts, length_D[short], spans(parts, window))
    of_segment = np.searchsorted(bounds_D4[:, START], parts.start, side="right") - 1
    is_long = (length_D >= SHORT)[of_segment]
    units: list[Run | None] = []
    lengths: list[int] = []
    at = 0
    for run in _runs(Segments(*(x[is_long] for x in parts)), window):
        if run.start > at:
            units.append(None)
            lengths.append(run.start - at)
        units.append(run)
        lengths.append(run.end - run.start)
        at = run.end
    if at < bounds_D4[-1, END]:
        units.append(None)
        lengths.append(int(bounds_D4[-1, END]) - at)
    return Pieces(tuple(batches), tuple(units), lengths)


def _batches(start: Index, length: Index, of_T: Spans) -> Iterator[Batch]:
    for batch in similar(length, MAX_PADDING):
        n = length[batch, None]
        place = np.arange(n.max())
        token = start[batch, None] + np.minimum(place, n - 1)
        q, kv = token[:, :, None], token[:, None, :]
        sees = (kv <= q) & (kv >= of_T.near[q])
        sees |= (kv >= of_T.far[q]) & (kv < of_T.far_end[q])
        sees &= (place < n)[:, None]  # padding is nobody's key
        yield Batch(
            torch.from_numpy(token),
            torch.from_numpy(place < n),
            torch.from_numpy(~sees),
        )


def _runs(parts: Segments, window: int | None) -> Iterator[Run]:
    """Segments as runs; what a window cuts into blocks; isolated summary tokens of a document
    together, as one run whose keys are its prefix and themselves."""
    table = np.stack(parts, axis=1).tolist()
    at = 0
    while at < len(table):
        start, end, near, far, far_end = table[at]
        if far == far_end:
            yield from _windowed(near, start, end, window)
            at += 1
            continue
        n = 1
        while at + n < len(table) and table[at + n][3] < table[at + n][4] == far_end:
            n += 1
        fan = parts.start[at : at + n, None]
        key = np.arange(far, fan[-1, 0] + 1)
        sees = (key >= parts.far[at : at + n, None]) & (key < far_end) | (key == fan)
        yield Run(far, start, start + n, torch.from_numpy(~sees))
        at += n


def _windowed(near: int, start: int, end: int, window: int | None) -> Iterator[Run]:
    if window is None or end - near <= window:
        yield Run(near, start, end, None)
        return
    if near + window > start:
        yield Run(near, start, near + window, None)
    # The other queries in blocks: small ones read each key more often, large ones compute more
    # that is then hidden.
    block = max(window // 4, min(window, SHORT))
    for first in range(max(start, near + window), end, block):
        last = min(first + block, end)
        yield Run(first - window + 1, first, last, _band(last - first, window))


@functools.lru_cache(maxsize=16)
def _band(n_queries: int, window: int) -> Tensor:
    """(Q, Q + W - 1) bool: hidden to query i are the keys outside [i, i + W)."""
    i, j = torch.arange(n_queries)[:, None], torch.arange(n_queries + window - 1)
    return (j < i) | (j >= i + window)
