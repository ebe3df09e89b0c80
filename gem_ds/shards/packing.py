"""Which documents share a row: best-fit decreasing, in windows. How rows are kept: see
`dataset`."""

import random
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

import numpy as np

from gem_ds.shards.dataset import Row
from gem_ds.shards.documents import KINDS, Document

CARRIED = 4  # one in so many of a window's rows, the emptiest, waits for the next window
FULL = 0.999  # of a row's length; a row filled so far does not wait


def pack(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Rows of document indices whose lengths add up to at most `row_length`.

    Best-fit decreasing: longest document first, each into the fullest row that still takes it, so
    every document is in exactly one row. Documents of equal length keep their order, so the result
    depends on nothing but the arguments. Some 2 µs a document.
    """
    # The default sort breaks ties differently from CPU to CPU; a stable one cannot.
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist()
    rows: list[list[int]] = []
    rooms: list[int] = []  # distinct free lengths, ascending
    rows_with: dict[int, list[int]] = {}  # free length -> rows that have it
    for document in order:
        length = int(lengths[document])
        assert 0 < length <= row_length, f"document {document} has {length} tokens"
        at = bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            row = rows_with[room].pop()
            if not rows_with[room]:
                del rooms[at]
        else:
            room, row = row_length, len(rows)
            rows.append([])
        rows[row].append(document)
        room -= length
        if room:
            stack = rows_with.setdefault(room, [])
            if not stack:
                insort(rooms, room)
            stack.append(row)
    return rows


class Packer:
    """Rows out of documents that come window by window.

    What a window cannot fill waits, taken apart again, for the documents of the next one: so rows
    are as full as if many windows had been packed at once.
    """

    def __init__(self, row_length: int, seed: str) -> None:
        self.row_length = row_length
        self._rng = random.Random(seed)
        self._waiting: list[Document] = []

    def rows(self, documents: list[Document], last: bool) -> Iterator[Row]:
        """The rows of a window, shuffled, since `pack` puts long documents first.

        Documents of a row that is not full wait for the next window, unless this is the last.
        """
        documents = self._waiting + documents
        lengths = [len(document.input_ids) for document in documents]
        packed = pack(lengths, self.row_length)
        self._waiting = []
        if not last:
            fills = [sum(lengths[i] for i in members) for members in packed]
            emptiest = sorted(range(len(packed)), key=lambda row: fills[row])
            waiting = [
                row
                for row in emptiest[: len(packed) // CARRIED]
                if fills[row] < FULL * self.row_length
            ]
            self._waiting = [documents[i] for row in waiting for i in packed[row]]
            out = set(waiting)
            packed = [members for row, members in enumerate(packed) if row not in out]
        self._rng.shuffle(packed)
        for members in packed:
            yield _row([documents[i] for i in members])


def _row(documents: list[Document]) -> Row:
    ends = np.cumsum([len(document.input_ids) for document in documents])
    bounds = np.array([document.bounds for document in documents], dtype=np.int32)
    bounds[1:] += ends[:-1, None].astype(np.int32)
    return Row(
        np.concatenate([document.input_ids for document in documents]),
        bounds,
        np.array([document.record for document in documents], dtype=np.int64),
        np.array([KINDS.index(document.kind) for document in documents], dtype=np.int8),
    )
