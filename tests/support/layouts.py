"""Layouts for tests: from lengths, and random ones."""

import numpy as np

from gem_ds.layout import Bounds


def bounds_from(documents: list[tuple[int, int, int]]) -> Bounds:
    """Boundaries of documents given as lengths of (prefix, summary, suffix), one after another."""
    rows, at = [], 0
    for m, k, n in documents:
        rows.append((at, at + m, at + m + k, at + m + k + n))
        at += m + k + n
    return np.array(rows, dtype=np.int32)


def random_bounds(seed: int) -> Bounds:
    """Plain and GEM documents of one k from 1 to 16, of a token to thousands, with empty suffixes,
    one-token prefixes, and a plain one at the end, as padding is."""
    rng = np.random.default_rng(seed)
    k = int(rng.choice([1, 1, 2, 3, 16]))
    longest = int(rng.choice([3, 40, 300, 2000]))
    documents = []
    for _ in range(int(rng.integers(1, 8 if longest < 2000 else 3))):
        m, n = (int(longest ** rng.random()) for _ in range(2))
        kind = rng.random()
        documents.append((m, 0, 0) if kind < 0.4 else (m, k, 0 if kind < 0.55 else n))
    return bounds_from([*documents, (int(rng.integers(1, 64)), 0, 0)])
