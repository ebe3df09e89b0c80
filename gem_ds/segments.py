"""The attention rule of a stream as runs of tokens: the plan that fast kernels share.

By the rule of `masks` a token attends one run of tokens that ends with itself and, if it is an
isolated summary token, its document's prefix before that. So a stream is a list of *segments*:
runs of queries, each attending the run of keys ``[near, end)`` causally with its last query on its
last key, and before those the keys ``[far, far_end)`` without restriction:

    document                    queries            far keys           near keys
    plain                       whole              -                  whole
    GEM, k = 1 or causal        prefix | summary   -                  prefix | summary
                                suffix             -                  summary | suffix
    GEM, isolated, k > 1        prefix             -                  prefix
                                each summary token prefix             itself
                                suffix             -                  summary | suffix

The queries of the segments, in order, are the stream itself. A sliding window of W tokens limits a
token to the W latest tokens of its document, itself included, whether it may attend them or not
(as in a model without summary tokens); far keys are cut to it here, near keys by the kernel.

Shapes: S segments, T tokens in the stream, D documents.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from gem_ds import layout
from gem_ds.layout import END, START, SUFFIX, SUMMARY, Bounds, Index

SummaryAttention = Literal["isolated", "causal"]


class Segments(NamedTuple):
    """Boundaries of each segment in the stream, (S,) int64 each."""

    start: Index
    end: Index  # of the queries and of the near keys
    near: Index
    far: Index
    far_end: Index  # no more than `near`

    @property
    def n_queries(self) -> Index:
        return self.end - self.start

    @property
    def n_keys(self) -> Index:
        return (self.far_end - self.far) + (self.end - self.near)

    def keys(self) -> Index:
        """The tokens that are keys of each segment, one segment after another."""
        firsts = np.stack([self.far, self.near], 1).ravel()
        ends = np.stack([self.far_end, self.end], 1).ravel()
        return runs(firsts, ends - firsts)


def runs(firsts: Index, lengths: Index) -> Index:
    """Consecutive numbers from each of `firsts`, `lengths` of them, one run after another."""
    before = np.cumsum(lengths) - lengths
    numbers: Index = np.repeat(firsts - before, lengths) + np.arange(int(lengths.sum()))
    return numbers


def segments(
    bounds_D4: Bounds, summary_attention: SummaryAttention = "isolated", window: int | None = None
) -> Segments:
    """The segments of a stream whose documents tile it (`layout.check`)."""
    bounds = bounds_D4.astype(np.int64)
    gem = bounds[layout.is_gem(bounds_D4)]
    k = int(gem[0, SUFFIX] - gem[0, SUMMARY]) if len(gem) else 0
    isolated = k > 1 and summary_attention == "isolated"
    first_end = bounds[:, SUMMARY] if isolated else bounds[:, SUFFIX]
    parts = [_part(bounds[:, START], first_end, bounds[:, START])]
    if isolated:
        one_k = (gem[:, SUMMARY, None] + np.arange(k)).ravel()
        far, far_end = np.repeat(gem[:, START], k), np.repeat(gem[:, SUMMARY], k)
        if window is not None:
            far = np.clip(one_k - window + 1, far, far_end)
        parts.append(np.stack([one_k, one_k + 1, one_k, far, far_end]))
    tailed = gem[gem[:, END] > gem[:, SUFFIX]]
    parts.append(_part(tailed[:, SUFFIX], tailed[:, END], tailed[:, SUMMARY]))
    table = np.concatenate(parts, axis=1)
    return Segments(*table[:, np.argsort(table[0], kind="stable")])


def _part(start: Index, end: Index, near: Index) -> Index:
    """(5, S) segments without far keys."""
    return np.stack([start, end, near, near, near])


class Spans(NamedTuple):
    """What each token attends, (T,) int64 each: ``[near, itself]`` and ``[far, far_end)``."""

    near: Index
    far: Index
    far_end: Index


def spans(parts: Segments, window: int | None = None) -> Spans:
    """The same plan token by token, near keys cut to the window."""
    of_T = np.repeat(np.arange(len(parts.start)), parts.n_queries)
    near_T = parts.near[of_T]
    if window is not None:
        near_T = np.maximum(near_T, np.arange(len(of_T)) - window + 1)
    return Spans(near_T, parts.far[of_T], parts.far_end[of_T])


class Problems(NamedTuple):
    """A batch of equally shaped attention problems: B rows of Q queries and K keys of the stream.

    Rows shorter than the longest are padded at the end by repeating tokens; only the outputs at
    `kept` are wanted. `mask` is (B or 1, Q, K), or None where query i attends keys 0 to i.
    """

    queries: Index  # (B, Q)
    keys: Index  # (B, K)
    kept: npt.NDArray[np.bool_]  # (B, Q)
    mask: npt.NDArray[np.bool_] | None


def problems(
    parts: Segments, window: int | None = None, max_padding: float = 0.1
) -> Iterator[Problems]:
    """The segments as few batches, each padded by at most this share of its tokens.

    Most are causal squares over the near keys: a segment with more keys than queries becomes one by
    adding the missing queries at its front, whose outputs are dropped, and padding is hidden by
    causality. Only what a window cuts and what has far keys needs a mask.
    """
    whole = parts.far == parts.far_end
    near, dropped = parts.near[whole], (parts.start - parts.near)[whole]
    n = (parts.end - parts.near)[whole]
    yield from _squares(near, np.minimum(n, window or n), dropped, max_padding)
    if window is not None:
        cut = n > window
        yield from _bands(near[cut], n[cut], dropped[cut], window)
    yield from _fans(Segments(*(x[~whole] for x in parts)), max_padding)


def _squares(near: Index, n: Index, dropped: Index, max_padding: float) -> Iterator[Problems]:
    for batch in similar(n, max_padding):
        place = np.arange(n[batch].max())
        tokens = near[batch, None] + np.minimum(place, n[batch, None] - 1)
        kept = (place < n[batch, None]) & (place >= dropped[batch, None])
        yield Problems(tokens, tokens, kept, None)


def _bands(near: Index, n: Index, dropped: Index, window: int) -> Iterator[Problems]:
    """The queries beyond the window, in blocks of Q, each with the Q + W - 1 keys it may reach.

    Small blocks copy each key more often, large ones compute more that the mask then hides.
    """
    block = max(window // 4, min(window, 64))
    n_blocks = -(-(n - window) // block)
    of = np.repeat(np.arange(len(n)), n_blocks)
    # The first query of each block, as a place in its square.
    first = window + block * runs(np.zeros_like(n_blocks), n_blocks)
    query = first[:, None] + np.arange(block)
    key = first[:, None] - window + 1 + np.arange(block + window - 1)
    last = n[of, None] - 1
    i, j = np.arange(block)[:, None], np.arange(block + window - 1)
    if len(of):
        yield Problems(
            near[of, None] + np.minimum(query, last),
            near[of, None] + np.minimum(key, last),
            (query <= last) & (query >= dropped[of, None]),
            ((j >= i) & (j < i + window))[None],
        )


def _fans(parts: Segments, max_padding: float) -> Iterator[Problems]:
    """Isolated summary tokens: those of a document share its prefix, and each attends itself."""
    first = np.flatnonzero(np.diff(parts.far_end, prepend=-1))
    count = np.diff(first, append=len(parts.start))
    prefix, prefix_end = parts.far[first], parts.far_end[first]  # the first reaches farthest back
    n = prefix_end - prefix
    for batch in similar(n, max_padding):
        of = np.arange(int(count[batch].max()))
        member = first[batch, None] + np.minimum(of, count[batch, None] - 1)
        place = np.arange(n[batch].max())
        near = prefix[batch, None] + np.minimum(place, n[batch, None] - 1)
        sees = (near[:, None] >= parts.far[member][:, :, None]) & (place < n[batch, None])[:, None]
        itself = np.broadcast_to(np.eye(len(of), dtype=bool), (len(batch), len(of), len(of)))
        summary = parts.start[member]
        yield Problems(
            summary,
            np.concatenate([near, summary], 1),
            of < count[batch, None],
            np.concatenate([sees, itself], 2),
        )


def similar(lengths: Index, max_padding: float) -> Iterator[Index]:
    """Indices of `lengths` in batches, longest first, whose padding is at most this share."""
    order = np.argsort(-lengths, kind="stable")
    at = 0
    while at < len(order):
        longest = lengths[order[at]]
        used = np.cumsum(lengths[order[at:]])
        padded = longest * np.arange(1, len(used) + 1)
        fits = padded - used <= max_padding * padded
        n = len(fits) if fits.all() else int(fits.argmin())
        yield order[at : at + n]
        at += n
