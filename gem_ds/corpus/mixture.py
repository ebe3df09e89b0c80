"""How often each record of a mixture's sources is drawn: exactly, and known without a draw; and
random numbers for a record: a function of the seed and of the record, cheap to begin."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from gem_ds.errors import InputError

NAME = re.compile(r"[A-Za-z0-9_-]+")  # of a source: other signs have their meaning in the flags
GOLDEN = (5**0.5 - 1) / 2


def parse(text: str) -> dict[str, Fraction]:
    """Shares by source, from ``web=0.7,books=0.3``; none from an empty text.

    They are exact, so that counts are, and add up to 1, also where the text gives 0.3333333 thrice.
    """
    shares: dict[str, Fraction] = {}
    for part in text.split(",") if text else []:
        name, _, share = part.strip().partition("=")
        if not NAME.fullmatch(name) or name in shares:
            raise InputError(f"--mix {text}: {part!r} is no new source of the form web=0.7")
        try:
            shares[name] = Fraction(share)
        except (ValueError, ZeroDivisionError):
            raise InputError(
                f"--mix {text}: {share!r} of {name} is no share, such as 0.7"
            ) from None
    total = sum(shares.values(), Fraction())
    if shares and (min(shares.values()) <= 0 or abs(total - 1) > Fraction(1, 1_000_000)):
        raise InputError(f"--mix {text}: give shares above 0 that add up to 1")
    return {name: share / total for name, share in shares.items()}


@dataclass(frozen=True)
class Source:
    """`drawn` of the `size` records of a source are drawn in an epoch.

    Records stand in an order that spreads neighbours, begun somewhere by `seed`; an epoch takes the
    next `drawn` of them, from the beginning again where it ends. So each is drawn as often as any
    other, give or take one, and every stretch of the source gives its share.
    """

    drawn: int
    size: int
    seed: int

    def copies(self, ordinal: int, epoch: int) -> int:
        """How often record `ordinal` of ``[0, size)`` is drawn in an epoch."""
        factor, offset = self._order
        place = (factor * ordinal + offset) % self.size
        first = epoch * self.drawn
        return (first + self.drawn - 1 - place) // self.size - (first - 1 - place) // self.size

    @cached_property
    def _order(self) -> tuple[int, int]:
        """Record i stands at (factor * i + offset) modulo the size, which is one to one.

        A multiple of the golden ratio spreads most evenly (Knuth, TAOCP 3, 6.4): a random factor
        may by chance take a stretch of the corpus, or every other record.
        """
        factor = round(self.size * GOLDEN)
        while math.gcd(factor, self.size) > 1:
            factor += 1
        return factor, Draws(self.seed, self.size).below(self.size)


def sources(
    shares: dict[str, Fraction], sizes: Mapping[str, int], total: int, seed: int
) -> dict[str, Source]:
    """How much of each source makes `total` records an epoch; 0 is as many as repeat none.

    `sizes` are the sources' records. The largest remainders make the counts add up to the total.
    Raises `InputError` for a source without records.
    """
    for name in shares:
        if not sizes[name]:
            raise InputError(f"the source {name} of --mix has no records; leave it out")
    total = total or math.floor(min(sizes[name] / share for name, share in shares.items()))
    exact = {name: share * total for name, share in shares.items()}
    drawn = {name: math.floor(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: drawn[name] - exact[name])  # the largest first
    for name in by_remainder[: total - sum(drawn.values())]:
        drawn[name] += 1
    return {name: Source(drawn[name], sizes[name], seed) for name in shares}


MASK = (1 << 64) - 1


class Draws:
    """SplitMix64 (Steele, Lea and Flood 2014): the same numbers wherever and whenever.

    `keys` are integers; other keys give an unrelated sequence.
    """

    def __init__(self, *keys: int) -> None:
        self.state = 0
        for key in keys:
            self.state = _mixed((self.state ^ key) + 0x9E3779B97F4A7C15)

    def random(self) -> float:
        """Uniform in [0, 1)."""
        self.state += 0x9E3779B97F4A7C15
        return (_mixed(self.state) >> 11) / (1 << 53)

    def below(self, n: int) -> int:
        """Uniform in [0, n), for any n that a text can be long."""
        return int(self.random() * n)


def folded(seed: int, bits: int) -> int:
    """A seed of 64 bits as one of fewer `bits`; one that has no more stays as it is."""
    return (seed ^ _mixed(seed >> bits)) & ((1 << bits) - 1)


def _mixed(z: int) -> int:
    z &= MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)
