"""Steps to look at: those whose gradients were not finite, and those whose loss leapt.

Their rows are written down, so that one can look at them (`data_prep/inspect.py`).
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from gem_ds import dist

LOSSES = ("loss/ntp", "loss/contrastive")
_MEMORY = 0.98  # of the running mean and variance, a step: some fifty steps
_LEARNED = 50  # steps before a leap is told from noise
_LEAP = 6.0  # standard deviations


class Health:
    """Watches the steps of a run. All ranks see the same values, each its own rows."""

    def __init__(self, run: Path) -> None:
        self._path = run / f"unusual-rank{dist.rank()}.jsonl"
        self._means: dict[str, tuple[int, float, float]] = {}  # values, mean and variance
        self.skipped = 0  # steps in a row that were not applied

    def see(self, step: int, values: dict[str, float], rows: Sequence[int]) -> list[str]:
        """What is unusual about a step, in words; its rows are then in the run's folder."""
        unusual = []
        self.skipped = self.skipped + 1 if values["train/skipped"] else 0
        if self.skipped:
            unusual.append("gradients that are not finite: nothing was changed")
        else:
            unusual += [text for name in LOSSES if (text := self._leap(name, values[name]))]
        if unusual:
            with self._path.open("a") as file:
                line = {"step": step, "why": unusual, "rows": list(rows)}
                file.write(json.dumps(line) + "\n")
        return unusual

    def _leap(self, name: str, value: float) -> str:
        """Compare a value with those before it, and remember it. 0 is a loss that is off."""
        if value == 0:
            return ""
        n, mean, variance = self._means.get(name, (0, value, 0.0))
        apart, spread = value - mean, math.sqrt(variance)
        weight = max(1 - _MEMORY, 1 / (n + 1))  # at first the mean of all
        # What leaps is let in as the largest value that does not: else one leap hides the next.
        bounded = min(apart, _LEAP * spread) if n >= _LEARNED else apart
        mean += weight * bounded
        variance = (1 - weight) * (variance + weight * bounded**2)
        self._means[name] = n + 1, mean, variance
        if n < _LEARNED or apart <= _LEAP * spread:
            return ""
        return f"{name} {value:.4f} leapt from {mean - weight * bounded:.4f} +- {spread:.4f}"
