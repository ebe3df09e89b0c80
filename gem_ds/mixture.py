"""How often each record of a mixture's sources is drawn: exactly, and known without a draw."""

import math
from dataclasses import dataclass
from functools import cached_property

from gem_ds.draws import Draws
from gem_ds.errors import InputError


def parse(text: str) -> dict[str, float]:
    """Shares by source, from ``web=0.7,books=0.3``; none from an empty text."""
    shares: dict[str, float] = {}
    for part in text.split(",") if text else []:
        name, _, share = part.strip().partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise InputError(f"--mix {text}: {part!r} is not of the form web=0.7") from None
    if shares and not (min(shares.values()) > 0 and abs(sum(shares.values()) - 1) <= 1e-6):
        raise InputError(f"--mix {text}: give shares above 0 that add up to 1")
    return shares


@dataclass(frozen=True)
class Source:
    """`drawn` of the `size` records of a source are drawn in an epoch.

    Records stand in a random order by `seed`; an epoch takes the next `drawn` of them, from the
    beginning again where it ends. So each is drawn as often as any other, give or take one.
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
        """Record i stands at (factor * i + offset) modulo the size, which is one to one."""
        draws = Draws(self.seed, self.size)
        factor = draws.below(self.size) | 1
        while math.gcd(factor, self.size) > 1:
            factor += 1
        return factor, draws.below(self.size)


def sources(
    shares: dict[str, float], sizes: dict[str, int], total: int, seed: int
) -> dict[str, Source]:
    """How much of each source makes `total` records an epoch; 0 is as many as repeat none.

    `sizes` are the sources' records. The largest remainders make the counts add up to the total.
    Raises `InputError` for a source without records.
    """
    for name in shares:
        if not sizes[name]:
            raise InputError(f"the source {name} of --mix has no records; leave it out")
    total = total or math.floor(min(sizes[n] / share for n, share in shares.items()) + 1e-9)
    exact = {name: share * total for name, share in shares.items()}
    drawn = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: drawn[name] - exact[name])
    for name in by_remainder[: total - sum(drawn.values())]:
        drawn[name] += 1
    return {name: Source(drawn[name], sizes[name], seed) for name in shares}
