"""One micro-batch: packed rows and what they are compared with, as one flat stream of documents.

The stream is the documents of the rows, then the *views* that the contrastive loss compares, then
padding, a document without targets. Rows are left out of it where nothing is trained on their
tokens, and the texts of a frozen base that no summary follows are left out too (see
`attention.two_pass`). A view's positions may have gaps.

Shapes: T tokens in the stream, N targets, A anchors, k summary tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gem_ds import layout
from gem_ds.attention.backends import move
from gem_ds.attention.registry import Backend, Plan, make_plan
from gem_ds.attention.segments import SummaryAttention
from gem_ds.attention.two_pass import Split
from gem_ds.layout import END, PAD_MULTIPLE, START, SUMMARY, Bounds, Index
from gem_ds.model import flops
from gem_ds.model.kl_reference import Reference, make_reference
from gem_ds.model.positives import PositiveOptions, Tokens, View, own_view, positives
from gem_ds.shards.dataset import Row


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank, on its device."""

    input_ids: Tensor  # (1, T)
    position_ids: Tensor  # (1, T)
    plan: Plan
    target_index: Tensor  # (N,) positions in the stream that predict
    targets: Tensor  # (N,) what they predict
    anchors: Tensor  # (A, k) summary tokens of the positives' anchors
    views: Tensor  # (A, k) summary tokens of their views, in the same order
    names: Tensor  # (A, 3) what they are about, see `positives.Positive`
    anchors_of_ranks: tuple[int, ...]  # A of every rank, of this one alone before `among`
    row_ids: tuple[int, ...]
    n_padding: int
    reference: Reference | None  # what the base reads of these rows, where it is asked
    split: Split | None  # two passes, where a frozen base computes the text; the plan is of `rest`
    counts: flops.StreamCounts  # what of it costs operations

    def among(self, anchors_of_ranks: Sequence[int]) -> "Batch":
        """The batch beside those of the other ranks."""
        return replace(self, anchors_of_ranks=tuple(anchors_of_ranks))

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device, copied asynchronously from pinned memory where there is a GPU."""
        if device.type == "cpu":
            return self

        moved = {n: move(x, device) for n, x in vars(self).items() if isinstance(x, Tensor)}
        parts = {name: getattr(self, name) for name in ("plan", "reference", "split")}
        moved_parts = {name: x and x.to(device) for name, x in parts.items()}
        return Batch(**{**vars(self), **moved, **moved_parts})


@dataclass(frozen=True)
class BatchOptions:
    """What a micro-batch holds beside its rows' tokens."""

    positives: PositiveOptions
    attention: Backend = "sdpa"
    summary_attention: SummaryAttention = "isolated"
    reference_capacity: int = 0  # the most tokens of a micro-batch, where a base is compared with
    frozen_text: bool = False  # training changes nothing before the summary tokens
    window: int | None = None  # of the model's layers, for counting operations alone


class _Stream:
    """Documents that follow one another."""

    def __init__(self) -> None:
        self.ids: list[Tokens] = []
        self.positions: list[Index] = []
        self.bounds: list[Bounds] = []
        self.length = 0

    def append(self, tokens: Tokens, positions: Index, bounds_D4: Bounds) -> int:
        """Append documents whose boundaries are counted from 0; where their tokens begin."""
        first = self.length
        self.ids.append(tokens)
        self.positions.append(positions)
        self.bounds.append(layout.shift(bounds_D4, first))
        self.length += len(tokens)
        return first

    def append_view(self, view: View) -> int:
        """Append a view; where its summary tokens begin."""
        n = len(view.input_ids)
        bounds = np.array([[0, view.summary, n, n]], dtype=np.int32)
        return self.append(view.input_ids, view.positions, bounds) + view.summary

    def pad(self, summary_tokens: Sequence[int]) -> int:
        """Append padding up to a multiple of `PAD_MULTIPLE`; how many tokens.

        With `summary_tokens` it is a document that has them, and is always there.
        """
        k = len(summary_tokens)
        n = -self.length % PAD_MULTIPLE
        if n <= k if k else not self.length:
            n += PAD_MULTIPLE * -(-(k + 1 - n) // PAD_MULTIPLE)
        if n:
            tokens = np.zeros(n, dtype=np.int32)
            tokens[n - k :] = summary_tokens
            bounds = np.array([[0, n - k, n, n]], dtype=np.int32)
            self.append(tokens, np.arange(n), bounds)
        return n

    def tokens(self) -> Tokens:
        return np.concatenate([np.empty(0, dtype=np.int32), *self.ids])

    def layout(self) -> Bounds:
        return np.concatenate([np.empty((0, 4), dtype=np.int32), *self.bounds])


def make_batch(
    rows: Sequence[Row],
    row_ids: Sequence[int],
    options: BatchOptions,
    with_targets: bool,
    with_views: bool,
    view_seeds: Sequence[int] = (0,),
) -> Batch:
    """One flat stream of `rows`, on the CPU.

    Without targets or views their index tensors are empty, and without targets (and a base to
    compare with) the rows' documents are not there: each anchor is a view then. The views of a row
    are random by `view_seeds` and its row id alone, never by the rank that holds it.
    """
    stream = _Stream()
    starts: list[Index] = []  # of each row's documents, -1 where one is left out
    for row in rows:
        kept = np.full(len(row.bounds), with_targets or options.reference_capacity > 0)
        if options.frozen_text:
            kept &= layout.is_gem(row.bounds)
        starts.append(_append_documents(stream, row, kept))
    trained, tokens = stream.layout(), stream.tokens()
    targets_T = layout.targets(tokens, trained)
    if options.frozen_text:
        targets_T[~layout.after_text(trained)] = layout.NO_TARGET
    anchors: list[int] = []
    views: list[int] = []
    names: list[tuple[int, int, int]] = []
    for row, row_id, starts_D in zip(rows, row_ids, starts, strict=True) if with_views else ():
        rng = np.random.default_rng([*view_seeds, row_id])
        for found in positives(row, options.positives, rng):
            d = found.document
            if found.anchor is None and starts_D[d] >= 0:
                anchors.append(int(starts_D[d] + row.bounds[d, SUMMARY] - row.bounds[d, START]))
            else:
                anchors.append(stream.append_view(found.anchor or own_view(row, d)))
            views.append(stream.append_view(found.view))
            names.append(found.names)
    summary_tokens = options.positives.summary_tokens
    n_padding = stream.pad(summary_tokens if options.frozen_text else ())

    index_N = np.flatnonzero(targets_T != layout.NO_TARGET) if with_targets else np.arange(0)
    bounds_D4 = stream.layout()
    reference = split = None
    if options.reference_capacity:
        reference = make_reference(tokens, trained, options.attention, options.reference_capacity)
    if options.frozen_text:
        split = Split.of(bounds_D4, options.attention)

    def tensor(array: npt.ArrayLike) -> Tensor:
        return torch.from_numpy(np.asarray(array, dtype=np.int64))

    offsets_k = np.arange(len(summary_tokens))
    return Batch(
        input_ids=tensor(stream.tokens())[None],
        position_ids=tensor(np.concatenate(stream.positions))[None],
        plan=make_plan(
            bounds_D4, options.attention, options.summary_attention, rest=options.frozen_text
        ),
        target_index=tensor(index_N),
        targets=tensor(targets_T[index_N]),
        anchors=tensor(np.array(anchors, dtype=np.int64)[:, None] + offsets_k),
        views=tensor(np.array(views, dtype=np.int64)[:, None] + offsets_k),
        names=tensor(np.array(names, dtype=np.int64).reshape(-1, 3)),
        anchors_of_ranks=(len(anchors),),
        row_ids=tuple(row_ids),
        n_padding=n_padding,
        reference=reference,
        split=split,
        counts=flops.count(
            bounds_D4,
            len(index_N),
            options.summary_attention,
            options.window,
            options.frozen_text,
            trained if reference else None,
        ),
    )


def _append_documents(stream: _Stream, row: Row, kept_D: npt.NDArray[np.bool_]) -> Index:
    """Append some of a row's documents; (D,) where each begins, -1 for the others."""
    starts_D = np.full(len(kept_D), -1, dtype=np.int64)
    for d in np.flatnonzero(kept_D):
        start, end = row.bounds[d, START], row.bounds[d, END]
        bounds = row.bounds[d : d + 1] - start
        starts_D[d] = stream.append(row.input_ids[start:end], np.arange(end - start), bounds)
    return starts_D
