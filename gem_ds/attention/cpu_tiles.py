"""How the CPU's attention cuts a stream: short documents in batches, the others in runs.

A document of fewer than `SHORT` tokens is one problem with a small mask, and many of similar length
are a batch. The segments (`segments`) of a longer one are runs over slices of the stream, without a
copy. Where the queries are those at summary tokens and in suffixes alone, all documents are in
batches. Computing them is in `cpu`.

Shapes: T tokens in the stream, N heads, B documents of a batch of at most L tokens, Q queries,
K keys.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gem_ds.attention.segments import Segments, Spans, SummaryAttention, segments, similar, spans
from gem_ds.layout import END, START, SUMMARY, Bounds, Index, is_gem

SHORT = 64  # tokens
MAX_PADDING = 0.1  # of a batch
MOST_SCORES = 1 << 22  # of a batch and head, where long documents are in batches


class Rows(NamedTuple):
    """Where a batch's vectors are among the ``T x heads`` of a stream (T, N, H) in memory."""

    gather: Tensor  # (B N L,), each head repeated where that is asked for
    scatter: Tensor  # of those in memory order (B, N, L) that are no padding
    kept: Tensor  # the places of those in (B N L)


@dataclass(frozen=True)
class Places:
    """The tokens of a batch's documents, padded at the end by repeating the last ones."""

    tokens: Tensor  # (B, L) int64, their numbers in a stream
    kept: Tensor  # (B, L) bool, those whose outputs and gradients are wanted: no padding
    _rows: dict[tuple[int, int], Rows] = field(default_factory=dict)

    def _of_heads(self, heads: int, groups: int) -> Rows:
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

    def gathered(self, vectors_TNH: Tensor, heads: int) -> Tensor:
        """(B N, L, H) the vectors of these tokens, head by head, repeated up to `heads`."""
        _, n, size = vectors_TNH.shape
        rows = self._of_heads(n, heads // n).gather
        return vectors_TNH.view(-1, size).index_select(0, rows).view(-1, self.tokens.shape[1], size)

    def put(self, total: Tensor, part: Tensor) -> None:
        """Write (B N, L, H) to the kept tokens of a stream (1, N, T, H) that lies in memory as (T,
        N, H); no other piece writes there."""
        heads, size = total.shape[1], total.shape[3]
        n_documents, length = self.tokens.shape
        if len(part) > n_documents * heads:  # heads that were repeated
            part = part.view(n_documents, heads, -1, length, size).sum(2)
        rows = self._of_heads(heads, 1)
        found = part.view(-1, size).index_select(0, rows.kept)
        total[0].transpose(0, 1).view(-1, size).index_copy_(0, rows.scatter, found)


class Batch(NamedTuple):
    """Whole documents. Keys are counted in the stream, queries among its queries."""

    queries: Places
    keys: Places
    hidden: Tensor  # (B, Q, K) bool, the keys that each query does not attend


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
    is None in `units` and the business of the batches. With `rest` the queries are a stream of
    their own, and keys have a gradient at summary tokens and in suffixes alone.
    """

    batches: tuple[Batch, ...]
    units: tuple[Run | None, ...]
    lengths: list[int]
    rest: bool = False


def cut_rest(bounds_D4: Bounds, summary: SummaryAttention, window: int | None) -> Pieces:
    """The pieces of a stream whose queries are those at summary tokens and in suffixes alone."""
    bounds = bounds_D4[is_gem(bounds_D4)].astype(np.int64)
    of_R = spans(segments(bounds_D4, summary, window, rest=True), window)
    n_queries = bounds[:, END] - bounds[:, SUMMARY]
    first = np.cumsum(n_queries) - n_queries
    length = bounds[:, END] - bounds[:, START]
    batches = []
    for similar_ones in similar(length, MAX_PADDING):
        scores = len(similar_ones) * int(n_queries[similar_ones].max() * length[similar_ones].max())
        n_parts = min(-(-scores // MOST_SCORES), len(similar_ones))
        for part in np.array_split(similar_ones, n_parts):
            q, q_kept = _padded(first[part], n_queries[part])
            kv, kv_kept = _padded(bounds[part, START], length[part])
            hidden = ~(_sees(of_R, q, kv) & kv_kept[:, None])
            trained = kv_kept & (kv >= bounds[part, SUMMARY, None])
            queries = Places(torch.from_numpy(q), torch.from_numpy(q_kept))
            keys = Places(torch.from_numpy(kv), torch.from_numpy(trained))
            batches.append(Batch(queries, keys, torch.from_numpy(hidden)))
    return Pieces(tuple(batches), (None,), [len(of_R.own)], rest=True)


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
    for part in similar(length, MAX_PADDING):
        token, kept = _padded(start[part], length[part])
        places = Places(torch.from_numpy(token), torch.from_numpy(kept))
        hidden = ~(_sees(of_T, token, token) & kept[:, None])
        yield Batch(places, places, torch.from_numpy(hidden))


def _padded(first: Index, length: Index) -> tuple[Index, npt.NDArray[np.bool_]]:
    """(B, L) consecutive numbers from each of `first`, the last repeated, and which are no
    repetition."""
    place = np.arange(length.max())
    n = length[:, None]
    return first[:, None] + np.minimum(place, n - 1), place < n


def _sees(of_Q: Spans, query: Index, key: Index) -> npt.NDArray[np.bool_]:
    """(B, Q, K) whether each of the queries (B, Q) attends each of the keys (B, K)."""
    q, kv = query[:, :, None], key[:, None, :]
    sees: npt.NDArray[np.bool_] = (kv <= of_Q.own[q]) & (kv >= of_Q.near[q])
    return sees | (kv >= of_Q.far[q]) & (kv < of_Q.far_end[q])


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
