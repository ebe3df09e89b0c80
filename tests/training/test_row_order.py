"""The order of rows is the same for ever: values written down, and a permutation whatever n."""

import hashlib

import numpy as np
import pytest

from gem_ds.training import data_loader
from gem_ds.training.data_loader import row_order


def test_the_order_is_the_one_written_down() -> None:
    """Runs that go on depend on it: never change these numbers."""
    assert row_order(12, 0, 0).tolist() == [9, 2, 7, 4, 5, 11, 0, 3, 6, 10, 8, 1]
    assert row_order(12, 7, 3).tolist() == [4, 2, 5, 8, 7, 3, 11, 10, 0, 1, 9, 6]
    digest = hashlib.sha256(row_order(100_000, 1, 2).astype("<i8").tobytes()).hexdigest()
    assert digest == "2d2a573f876318317635a162f13d318ff1906a14b34f7d472bdbccd855ead885"


@pytest.mark.parametrize("n", [*range(10), 255, 256, 257, 5000])
def test_it_is_a_permutation_of_seed_and_epoch(n: int) -> None:
    order = row_order(n, 1 << 70, 5)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    if n > 8:
        others = [row_order(n, 1 << 70, 6), row_order(n, 3, 5)]
        assert all(order.tolist() != other.tolist() for other in others)


def test_how_many_bits_are_drawn_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = row_order(1000, 2, 3).tolist()
    monkeypatch.setattr(data_loader, "DRAWN", 1)
    assert row_order(1000, 2, 3).tolist() == whole


def test_every_place_is_as_likely() -> None:
    """Of 6 orders of three rows, each in a sixth of 6,000 seeds, within 4 standard deviations."""
    counts = np.zeros((3, 3, 3), dtype=int)
    for seed in range(6000):
        counts[tuple(row_order(3, seed, 0))] += 1
    seen = counts[counts > 0]
    assert len(seen) == 6
    assert abs(seen - 1000).max() < 4 * (6000 * 1 / 6 * 5 / 6) ** 0.5
