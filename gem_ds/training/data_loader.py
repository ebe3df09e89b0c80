"""From packed rows to the micro-batches of a step.

Row order is a seeded permutation of the row ids of each epoch (the shards may hold several, which
follow one another); a step takes a constant number of rows whatever the number of ranks, so the
state of the data is one number: the step. Micro-batch m of a step holds the same rows on one rank
or on many; rank r takes its stride of them. What a micro-batch is, `model.batch` says; reading
shards is in `shards.dataset`.

No release of NumPy changes that permutation. NumPy keeps the bits of its generators for ever, but
not what it makes of them (NEP 19). So only the bits are NumPy's, those of PCG64, 32 at a time. The
shuffle is that of Fisher and Yates, from the last place down; each place draws its partner by as
many bits as that needs, again while the number is too large. That is what `Generator.permutation`
of NumPy 2 does, number for number, so runs that began with it go on.
"""

from array import array
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from gem_ds.layout import Index
from gem_ds.model.batch import Batch, BatchOptions, make_batch
from gem_ds.shards.dataset import Shards


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
            self._order = epoch, rows.start + row_order(len(rows), self.seed, epoch)
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

    def longest(self, step: int, n_rows: int, with_targets: bool, with_views: bool) -> Batch:
        """A micro-batch of the longest among this rank's `n_rows` rows from a step on."""
        ids: list[int] = []
        while len(ids) < n_rows:
            ids += [i for micro_batch in self.row_ids(step) for i in micro_batch]
            step += 1
        ids = sorted(set(ids[:n_rows]))

        def length(i: int) -> tuple[int, int]:
            batch = self._batch([i], with_targets, with_views)
            return batch.input_ids.numel() + len(batch.targets), i

        ids = sorted(ids, key=length, reverse=True)
        n = self.rows_per_round // self.world_size
        return self._batch((ids * n)[:n], with_targets, with_views)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _make(self, step: int, with_targets: bool, with_views: bool) -> list[Batch]:
        epoch, _, _ = self.epoch_at(step * self.rows_per_step)
        return [self._batch(ids, with_targets, with_views, epoch) for ids in self.row_ids(step)]

    def _batch(self, ids: list[int], with_targets: bool, with_views: bool, epoch: int = 0) -> Batch:
        rows = [self.shards.read(i) for i in ids]
        return make_batch(rows, ids, self.options, with_targets, with_views, (self.seed, epoch))


DRAWN = 1 << 14  # words of 64 bits at once
LOW = (1 << 32) - 1


def row_order(n: int, seed: int, epoch: int) -> Index:
    """The numbers 0 to n - 1 in the order of an epoch: (n,) int64."""
    assert 0 <= n <= LOW, n
    order = array("q", range(n))
    i = n - 1
    mask = (1 << i.bit_length()) - 1 if n else 0
    words = _words(seed, epoch)
    while i > 0:
        for word in next(words):
            j = word & mask
            if j > i:
                continue
            order[i], order[j] = order[j], order[i]
            i -= 1
            if i <= mask >> 1:
                mask >>= 1
                if not i:
                    break
    return np.array(order, dtype=np.int64)


def _words(seed: int, epoch: int) -> Iterator[list[int]]:
    """The generator's bits, 32 at a time, the lower half of 64 first."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    while True:
        raw = np.asarray(bits.random_raw(DRAWN), dtype=np.uint64)
        yield np.stack([raw & np.uint64(LOW), raw >> np.uint64(32)], axis=1).ravel().tolist()
