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
    bounds_D4: Bounds,
    summary_attention: SummaryAttention = "isolated",
    window: int | None = None,
    rest: bool = False,
) -> Segments:
    """The segments of a stream whose documents tile it (`layout.check`).

    With `rest` those of the queries at summary tokens and in suffixes alone.
    """
    bounds = bounds_D4.astype(np.int64)
    gem = bounds[layout.is_gem(bounds_D4)]
    k = int(gem[0, SUFFIX] - gem[0, SUMMARY]) if len(gem) else 0
    isolated = k > 1 and summary_attention == "isolated"
    if rest:
        parts = [] if isolated else [_part(gem[:, SUMMARY], gem[:, SUFFIX], gem[:, START])]
    else:
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
    """What each query attends, (T,) int64 each: ``[near, own]``, `own` being its own place in the
    stream, and ``[far, far_end)``."""

    near: Index
    own: Index
    far: Index
    far_end: Index


def spans(parts: Segments, window: int | None = None) -> Spans:
    """The same plan query by query, near keys cut to the window."""
    of_T = np.repeat(np.arange(len(parts.start)), parts.n_queries)
    near_T = parts.near[of_T]
    own_T = runs(parts.start, parts.n_queries)
    if window is not None:
        near_T = np.maximum(near_T, own_T - window + 1)
    return Spans(near_T, own_T, parts.far[of_T], parts.far_end[of_T])


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
