"""The micro-batch that a plan expects: documents as long as a corpus' mean, with their views.

A layout as `model.batch` would make it, of documents that are all alike, so that what is counted of
real streams (`flops`) is counted of it too. Real ones scatter around it; a run's rehearsal shows
the heaviest.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gem_ds.errors import InputError
from gem_ds.layout import PAD_MULTIPLE, Bounds
from gem_ds.model.positives import LARGEST, SHORTEST
from gem_ds.shards.documents import PLAIN
from gem_ds.shards.manifest import Manifest

Parts = npt.NDArray[np.int64]  # (D, 3) tokens of prefix, summary and suffix


@dataclass(frozen=True)
class Data:
    """What shards hold, as means. Lengths in tokens."""

    row_length: int = 2048
    document_length: float = 512.0
    gem_share: float = 0.2  # documents with summary tokens, which stand in the middle
    summary_tokens: int = 8

    @classmethod
    def of(cls, manifest: Manifest) -> "Data":
        """Those of finished shards."""
        documents = manifest.counts["documents"]
        n = sum(documents.values())
        return cls(
            manifest.row_length,
            manifest.n_tokens / n,
            1 - documents.get(PLAIN, 0) / n,
            len(manifest.summary_tokens),
        )

    def check(self) -> None:
        """Raise `InputError` for what no row can hold."""
        least = self.summary_tokens + 2
        if not least <= self.document_length <= self.row_length:
            raise InputError(
                f"--document-length {self.document_length:g} does not lie between {least} (the "
                f"summary tokens and two more) and --row-length {self.row_length}"
            )
        if not 0 <= self.gem_share <= 1:
            raise InputError(f"--gem-share {self.gem_share} is no share; give 0 to 1")


@dataclass(frozen=True)
class Views:
    """Which views the contrastive loss compares; see `positives`. Lengths in tokens."""

    kinds: tuple[str, ...] = ("crops",)
    crop_tokens: tuple[int, int] = (16, 64)
    crop_every: int = 128
    pair_tokens: tuple[int, int] = (32, 256)
    prefix_dropout: float = 0.2


class Stream(NamedTuple):
    """A micro-batch."""

    bounds: Bounds
    rows: Bounds  # the documents that are no views and no padding
    n_targets: int
    n_anchors: int


def stream(
    data: Data,
    views: Views,
    rows: int,
    with_targets: bool,
    with_views: bool,
    frozen_text: bool = False,
    with_reference: bool = False,
) -> Stream:
    """The micro-batch of `rows` rows: the arguments of `model.batch.make_batch`."""
    packed = _documents(data, rows)
    there = packed if with_targets or with_reference else packed[:0]
    if frozen_text:
        there = there[_is_gem(there)]
    extra, n_anchors = _views(packed, data, views, there) if with_views else (packed[:0], 0)
    k = data.summary_tokens
    parts = np.concatenate([there, extra])
    n_padding = -int(parts.sum()) % PAD_MULTIPLE
    least = k + 1 if frozen_text else 0
    if n_padding < least or not len(parts):
        n_padding += PAD_MULTIPLE
    if n_padding:
        ending = k if frozen_text else 0
        parts = np.concatenate([parts, [[n_padding - ending, ending, 0]]])
    n_targets = _targets(there, frozen_text) if with_targets else 0
    return Stream(_tiled(parts), _tiled(there), n_targets, n_anchors)


def _is_gem(parts_D3: Parts) -> npt.NDArray[np.bool_]:
    return parts_D3[:, 1] > 0


def _documents(data: Data, rows: int) -> Parts:
    """(D, 3) tokens of prefix, summary and suffix of the documents of some rows."""
    total, k = rows * data.row_length, data.summary_tokens
    n = max(rows, round(total / data.document_length))
    lengths = np.diff(np.linspace(0, total, n + 1).round().astype(np.int64))
    gem = np.diff(np.floor(np.arange(n + 1) * (data.gem_share if k else 0.0) + 0.5)) > 0
    prefix = np.where(gem, (lengths - k) // 2, lengths)
    summary = np.where(gem, k, 0)
    return np.stack([prefix, summary, lengths - prefix - summary], 1)


def _views(
    packed: Parts,
    data: Data,
    views: Views,
    there: Parts,
) -> tuple[Parts, int]:
    """(., 3) the views of documents, and the number of positives."""
    k, n_anchors = data.summary_tokens, 0
    found: list[list[int]] = []

    def add(texts: list[float]) -> None:
        found.extend([round(text), k, 0] for text in texts)

    own_anchor = bool(len(there))
    for prefix, summary, suffix in packed:
        text = prefix + suffix
        for kind in views.kinds:
            if kind == "crops" and text >= SHORTEST:
                n = max(1, round(text / views.crop_every))
                length = _log_mean(views.crop_tokens, LARGEST * text / n)
                add([1 + length] * (2 * n))
                n_anchors += n
            elif kind == "pair" and summary:
                n = max(1, round(max(prefix, suffix) / views.crop_every))
                sides = [_log_mean(views.pair_tokens, side) for side in (prefix, suffix)]
                add([1 + side for side in sides] * n)
                n_anchors += n
            elif kind == "continuation" and summary:
                add([1 + suffix] if own_anchor else [prefix, 1 + suffix])
                n_anchors += 1
            elif kind == "dropout" and summary:
                dropped = 1 + (prefix - 1) * (1 - views.prefix_dropout)
                add([dropped] if own_anchor else [prefix, dropped])
                n_anchors += 1
    return np.array(found, dtype=np.int64).reshape(-1, 3), n_anchors


def _log_mean(lengths: tuple[int, int], most: float) -> float:
    """Mean of a length that is drawn log-uniformly and cut to no more than `most`."""
    low, high = lengths
    if low >= most or low == high:
        return min(low, most)
    top = min(high, most)
    return ((top - low) + top * math.log(high / top)) / math.log(high / low)


def _targets(parts_D3: Parts, frozen_text: bool) -> int:
    """Positions with a target: all but summary tokens' and last ones, see `layout.targets`. Of a
    frozen text those alone that come after it: one a token of each suffix."""
    prefix, _, suffix = parts_D3.T
    if frozen_text:
        return int(suffix.sum())
    return int((prefix - 1 + suffix).sum())


def _tiled(parts_D3: Parts) -> Bounds:
    """Boundaries of documents that follow one another."""
    prefix, summary, suffix = parts_D3.T
    ends = np.cumsum(prefix + summary + suffix)
    starts = ends - (prefix + summary + suffix)
    # A document without summary tokens is a prefix alone.
    bounds = np.stack([starts, starts + prefix, starts + prefix + summary, ends], 1)
    return bounds.astype(np.int32).reshape(-1, 4)
