from collections import Counter

from gem_ds.corpus.mixture import Draws, folded


def test_the_numbers_are_splitmix64() -> None:
    """Against the first outputs of the authors' C code for the state 0 (prng.di.unimi.it)."""
    draws = Draws()
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [draws.random() for _ in expected] == [(n >> 11) / 2**53 for n in expected]


def test_keys_give_unrelated_sequences() -> None:
    """In any order, and far apart or next to each other: no number of theirs agrees."""
    keys = [
        (),
        (0,),
        (1,),
        (2,),
        (0, 1),
        (1, 0),
        (0, 0),
        (2**64 - 1,),
        (7 << 44, 3),
        (7 << 44 | 1,),
    ]
    found = {Draws(*key).random() for key in keys} | {Draws(*key, 9).random() for key in keys}
    assert len(found) == 2 * len(keys)
    assert Draws(3, 4).random() == Draws(3, 4).random()


def test_numbers_of_neighbours_are_uniform() -> None:
    """The first number of each record, as kinds and cuts take it, and later ones."""
    for place in range(3):
        counts: Counter[int] = Counter()
        for record in range(20_000):
            draws = Draws(0, record << 7)
            for _ in range(place):
                draws.random()
            counts[draws.below(10)] += 1
        assert counts.keys() == set(range(10))
        assert sum((n - 2000) ** 2 / 2000 for n in counts.values()) < 33  # chi², p = 1e-4


def test_below_never_reaches_its_bound() -> None:
    draws = Draws(1)
    assert {draws.below(1) for _ in range(100)} == {0}
    assert {draws.below(3) for _ in range(100)} == {0, 1, 2}
    assert all(draws.below(n) < n for n in range(1, 2000))


def test_a_seed_of_64_bits_is_folded_and_a_small_one_stays() -> None:
    assert [folded(seed, 24) for seed in (0, 7, 2**24 - 1)] == [0, 7, 2**24 - 1]
    large = [folded(seed, 24) for seed in (2**24 + 7, 2**25 + 7, 20261127, 2**64 - 1)]
    assert len({7, *large}) == 5
    assert all(0 <= seed < 2**24 for seed in large)
