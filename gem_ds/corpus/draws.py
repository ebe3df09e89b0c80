"""Random numbers for a record: a function of the seed and of the record, cheap to begin."""

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
