"""The order in which an epoch's rows are read: a permutation that no release of NumPy changes.

NumPy keeps the bits of its generators for ever, but not what it makes of them (NEP 19). So only the
bits are NumPy's, those of PCG64, 32 at a time. The shuffle is that of Fisher and Yates, from the
last place down; each place draws its partner by as many bits as that needs, again while the number
is too large. That is what `Generator.permutation` of NumPy 2 does, number for number, so runs that
began with it go on.
"""

from array import array
from collections.abc import Iterator

import numpy as np

from gem_ds.layout import Index

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
