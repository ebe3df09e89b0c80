"""Where the parts of each document stand: the only home of the token layout.

A document is four boundaries in a stream of tokens,

    start <= summary <= suffix <= end
      | prefix | summary | suffix |

so the prefix is ``[start, summary)``, the k summary tokens are ``[summary, suffix)`` and the suffix
is ``[suffix, end)``. A plain document has no summary tokens and no suffix:
``summary = suffix = end``. Positions, targets and the places of embeddings are computed from the
boundaries and stored nowhere. Reading and writing layouts is in `shards.dataset`, the
attention rule that of `attention.masks`.

Shapes: T tokens in the stream, D documents, k summary tokens.
"""

import numpy as np
import numpy.typing as npt

from gem_ds.errors import InputError

START, SUMMARY, SUFFIX, END = range(4)
Bounds = npt.NDArray[np.int32]  # (D, 4)
Index = npt.NDArray[np.int64]
NO_TARGET = -100  # what torch's cross entropy ignores
PAD_MULTIPLE = 64  # tokens that the length of a stream is a multiple of


def plain(start: int, end: int) -> tuple[int, int, int, int]:
    """Boundaries of a document without summary tokens."""
    return start, end, end, end


def is_gem(bounds_D4: Bounds) -> npt.NDArray[np.bool_]:
    """(D,) True where a document has summary tokens."""
    return bounds_D4[:, SUFFIX] > bounds_D4[:, SUMMARY]


def check(bounds_D4: Bounds, length: int, k: int, name: str = "layout") -> None:
    """Raise `InputError` unless the documents tile ``[0, length)`` in order and are well formed.

    Every GEM document must have exactly `k` summary tokens after a prefix of at least one token;
    every document must have at least one token. `name` says in the message where the layout is
    from (a file and row, say).
    """
    if bounds_D4.ndim != 2 or bounds_D4.shape[1] != 4 or not len(bounds_D4):
        raise InputError(
            f"{name}: a layout needs four boundaries a document, got shape "
            f"{tuple(bounds_D4.shape)}; write the shard again"
        )
    start_D, summary_D, suffix_D, end_D = bounds_D4.T
    n_summary = suffix_D - summary_D
    gem = n_summary > 0
    wrong = {
        "does not start where the one before it ends": start_D != np.append(0, end_D[:-1]),
        "has boundaries out of order": (
            (summary_D < start_D) | (suffix_D < summary_D) | (end_D < suffix_D)
        ),
        "has no tokens": end_D <= start_D,
        f"does not have {k} summary tokens": gem & (n_summary != k),
        "has summary tokens but no prefix": gem & (summary_D == start_D),
        "has a suffix but no summary tokens": ~gem & (summary_D != end_D),
    }
    for what, where in wrong.items():
        if where.any():
            d = int(where.argmax())
            raise InputError(
                f"{name}: document {d} {what} (boundaries {bounds_D4[d].tolist()}); "
                "write the shard again"
            )
    if bounds_D4[-1, END] != length:
        raise InputError(
            f"{name}: the documents end at {bounds_D4[-1, END]} but there are {length} tokens; "
            "write the shard again"
        )


def document_of(bounds_D4: Bounds) -> Index:
    """(T,) the document each token belongs to."""
    lengths_D = bounds_D4[:, END] - bounds_D4[:, START]
    documents_T: Index = np.repeat(np.arange(len(bounds_D4), dtype=np.int64), lengths_D)
    return documents_T


def positions(bounds_D4: Bounds) -> Index:
    """(T,) position ids: 0, 1, 2 … within each document, through prefix, summary and suffix."""
    starts_T = bounds_D4[document_of(bounds_D4), START]
    positions_T: Index = np.arange(len(starts_T), dtype=np.int64) - starts_T
    return positions_T


def is_summary(bounds_D4: Bounds) -> npt.NDArray[np.bool_]:
    """(T,) True at summary tokens."""
    of_T4 = bounds_D4[document_of(bounds_D4)]
    t = np.arange(len(of_T4))
    return (t >= of_T4[:, SUMMARY]) & (t < of_T4[:, SUFFIX])


def after_text(bounds_D4: Bounds) -> npt.NDArray[np.bool_]:
    """(T,) True at summary tokens and in suffixes: at all that is computed from a summary."""
    of_T4 = bounds_D4[document_of(bounds_D4)]
    after_T: npt.NDArray[np.bool_] = np.arange(len(of_T4)) >= of_T4[:, SUMMARY]
    return after_T


def prefixes(bounds_D4: Bounds) -> tuple[Index, Bounds]:
    """The texts before the summary tokens, plain documents whole: (N,) their tokens in the stream,
    and the boundaries of plain documents in a stream of those alone."""
    lengths_D = (bounds_D4[:, SUMMARY] - bounds_D4[:, START]).astype(np.int64)
    ends_D = np.cumsum(lengths_D)
    alone = np.stack([ends_D - lengths_D, ends_D, ends_D, ends_D], 1).astype(np.int32)
    return np.flatnonzero(~after_text(bounds_D4)), alone


def targets(input_ids_T: npt.NDArray[np.int32], bounds_D4: Bounds) -> Index:
    """(T,) the token each position is to predict, `NO_TARGET` where there is none.

    Each position predicts its successor in the same document unless that is a summary token, so the
    last summary token predicts the first suffix token (paper, Section 3: next-token prediction on
    every token except the summary tokens).
    """
    targets_T = np.full(len(input_ids_T), NO_TARGET, dtype=np.int64)
    targets_T[:-1] = input_ids_T[1:]
    targets_T[bounds_D4[:, END] - 1] = NO_TARGET
    targets_T[np.flatnonzero(is_summary(bounds_D4)) - 1] = NO_TARGET  # a summary is never first
    return targets_T


def n_targets(bounds_D4: Bounds) -> int:
    """The number of positions that `targets` gives a target."""
    length = bounds_D4[:, END] - bounds_D4[:, START]
    n_summary = bounds_D4[:, SUFFIX] - bounds_D4[:, SUMMARY]
    return int((length - 1 - n_summary).sum())


def summary_index(bounds_D4: Bounds) -> Index:
    """(G, k) where in the stream the summary tokens of each of the G GEM documents stand."""
    gem_G4 = bounds_D4[is_gem(bounds_D4)]
    k = int(gem_G4[0, SUFFIX] - gem_G4[0, SUMMARY]) if len(gem_G4) else 0
    return gem_G4[:, SUMMARY, None].astype(np.int64) + np.arange(k)


def shift(bounds_D4: Bounds, offset: int) -> Bounds:
    """The same documents `offset` tokens later in the stream."""
    return (bounds_D4 + np.int32(offset)).astype(np.int32)
