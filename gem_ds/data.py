"""From packed rows to the micro-batches of a step.

Row order is a seeded permutation of the row ids of each epoch (the shards may hold several, which
follow one another); a step takes a constant number of rows whatever the number of ranks, so the
state of the data is one number: the step. Micro-batch m of a step holds the same rows on one rank
or on many; rank r takes its stride of them.

A micro-batch is one flat stream: the documents of its rows, then the *view* documents that the
contrastive loss compares them with, then padding, a plain document without targets. A view's
positions may have gaps. Reading shards is the business of `shards`.

Shapes: T tokens in the stream, N targets, A anchors, k summary tokens.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gem_ds import layout
from gem_ds.attention import Backend, Plan, make_plan
from gem_ds.kernels import move
from gem_ds.layout import PAD_MULTIPLE, SUMMARY, Bounds, Index
from gem_ds.positives import PositiveOptions, Tokens, View, positives
from gem_ds.reference import Reference, make_reference
from gem_ds.segments import SummaryAttention
from gem_ds.shards import Row, Shards


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
    row_ids: tuple[int, ...]
    n_padding: int
    reference: Reference | None  # what the base reads of these rows, where it is asked

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device, copied asynchronously from pinned memory where there is a GPU."""
        if device.type == "cpu":
            return self

        moved = {n: move(x, device) for n, x in vars(self).items() if isinstance(x, Tensor)}
        reference = self.reference and self.reference.to(device)
        plan = self.plan.to(device)
        return Batch(**{**vars(self), **moved, "plan": plan, "reference": reference})


@dataclass(frozen=True)
class BatchOptions:
    """What a micro-batch holds beside its rows' tokens."""

    positives: PositiveOptions
    attention: Backend = "sdpa"
    summary_attention: SummaryAttention = "isolated"
    reference_capacity: int = 0  # the most tokens of a micro-batch, where a base is compared with


def make_batch(
    rows: Sequence[Row],
    row_ids: Sequence[int],
    options: BatchOptions,
    with_targets: bool,
    with_views: bool,
    view_seeds: Sequence[int] = (0,),
) -> Batch:
    """One flat stream of `rows`, on the CPU.

    Without targets or views their index tensors are empty; nothing else changes. The views of a row
    are random by `view_seeds` and its row id alone, never by the rank that holds it.
    """
    ids: list[Tokens] = []
    position_ids: list[Index] = []
    bounds: list[Bounds] = []
    anchors: list[int] = []
    views: list[int] = []
    names: list[tuple[int, int, int]] = []
    at = 0

    def append(tokens: Tokens, places: Index, boundaries: Bounds) -> None:
        nonlocal at
        ids.append(tokens)
        position_ids.append(places)
        bounds.append(layout.shift(boundaries, at))
        at += len(tokens)

    def append_view(view: View) -> int:
        n = len(view.input_ids)
        summary = at + view.summary
        append(view.input_ids, view.positions, np.array([[0, view.summary, n, n]]))
        return summary

    for row in rows:
        append(row.input_ids, layout.positions(row.bounds), row.bounds)
    trained = np.concatenate(bounds)
    targets_T = layout.targets(np.concatenate(ids), trained)
    if with_views:
        row_starts = np.cumsum([0, *(len(row.input_ids) for row in rows)])
        for row, row_id, row_start in zip(rows, row_ids, row_starts, strict=False):
            rng = np.random.default_rng([*view_seeds, row_id])
            for found in positives(row, options.positives, rng):
                own = int(row_start + row.bounds[found.document, SUMMARY])
                anchors.append(append_view(found.anchor) if found.anchor else own)
                views.append(append_view(found.view))
                names.append(found.names)
    n_padding = -at % PAD_MULTIPLE
    if n_padding:
        padding = np.array([layout.plain(0, n_padding)], dtype=np.int32)
        append(np.zeros(n_padding, dtype=np.int32), np.arange(n_padding), padding)

    index_N = np.flatnonzero(targets_T != layout.NO_TARGET) if with_targets else np.arange(0)
    plan = make_plan(np.concatenate(bounds), options.attention, options.summary_attention)
    reference = None
    if options.reference_capacity:
        reference = make_reference(
            np.concatenate(ids), trained, options.attention, options.reference_capacity
        )

    def tensor(array: npt.ArrayLike) -> Tensor:
        return torch.from_numpy(np.asarray(array, dtype=np.int64))

    offsets_k = np.arange(len(options.positives.summary_tokens))
    return Batch(
        input_ids=tensor(np.concatenate(ids))[None],
        position_ids=tensor(np.concatenate(position_ids))[None],
        plan=plan,
        target_index=tensor(index_N),
        targets=tensor(targets_T[index_N]),
        anchors=tensor(np.array(anchors, dtype=np.int64)[:, None] + offsets_k),
        views=tensor(np.array(views, dtype=np.int64)[:, None] + offsets_k),
        names=tensor(np.array(names, dtype=np.int64).reshape(-1, 3)),
        row_ids=tuple(row_ids),
        n_padding=n_padding,
        reference=reference,
    )


class Loader:
    """The micro-batches of any step, of one rank.

    `step` is a pure function of the step's number, so resuming needs nothing else; it also begins
    to read the following step in a thread, which is what the next call usually asks for.
    """

    def __init__(
        self,
        shards: Shards,
        options: BatchOptions,
        rows_per_step: int,
        rows_per_micro_batch: int,
        rank: int,
        world_size: int,
        seed: int,
    ) -> None:
        """`rows_per_micro_batch` counts the rows of one rank."""
        assert rows_per_step % (rows_per_micro_batch * world_size) == 0
        self.shards = shards
        self.options = options
        self.rows_per_step = rows_per_step
        self.rows_per_round = rows_per_micro_batch * world_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self._starts = np.cumsum([0, *shards.manifest.epoch_rows])  # first rows of the epochs
        self._order: tuple[int, Index] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._next: tuple[tuple[int, bool, bool], Future[list[Batch]]] | None = None

    def epoch_at(self, place: int) -> tuple[int, int, range]:
        """(epoch, place in it, its row ids) of a place in the endless order of rows."""
        turn, within = divmod(place, len(self.shards))
        of_turn = int(np.searchsorted(self._starts, within, side="right")) - 1
        rows = range(int(self._starts[of_turn]), int(self._starts[of_turn + 1]))
        return turn * self.shards.manifest.epochs + of_turn, within - rows.start, rows

    def row_at(self, place: int) -> int:
        """The id of the row at a place in the endless order of rows."""
        epoch, within, rows = self.epoch_at(place)
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._order = epoch, rows.start + rng.permutation(len(rows))
        return int(self._order[1][within])

    def row_ids(self, step: int) -> list[list[int]]:
        """This rank's row ids of a step, a list for each micro-batch."""
        first = step * self.rows_per_step
        rounds = range(first, first + self.rows_per_step, self.rows_per_round)
        return [
            [self.row_at(p) for p in range(r + self.rank, r + self.rows_per_round, self.world_size)]
            for r in rounds
        ]

    def step(self, step: int, with_targets: bool, with_views: bool) -> list[Batch]:
        """The micro-batches of a step, on the CPU."""
        key = (step, with_targets, with_views)
        if self._next is not None and self._next[0] == key:
            batches = self._next[1].result()
        else:
            batches = self._thread.submit(self._make, *key).result()
        # If the following step wants other parts, this guess is thrown away: at most twice a run.
        key = (step + 1, with_targets, with_views)
        self._next = key, self._thread.submit(self._make, *key)
        return batches

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _make(self, step: int, with_targets: bool, with_views: bool) -> list[Batch]:
        epoch, _, _ = self.epoch_at(step * self.rows_per_step)
        return [
            make_batch(
                [self.shards.read(i) for i in ids],
                ids,
                self.options,
                with_targets,
                with_views,
                (self.seed, epoch),
            )
            for ids in self.row_ids(step)
        ]
