"""Steps to look at: those whose gradients were not finite, and those whose loss leapt.

Their rows are written down, so that one can look at them (`data_prep/inspect.py`).
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from gem_ds import distributed

LOSSES = ("loss/ntp", "loss/contrastive")
LEARNED = 50  # steps before a leap is told from noise
LEAP = 6.0  # standard deviations
_QUICKLY, _SLOWLY = 0.1, 0.02  # weights of a new value: some ten and fifty steps are remembered


class Health:
    """Watches the steps of a run. All ranks see the same values, each its own rows."""

    def __init__(self, run: Path) -> None:
        self._path = run / f"unusual-rank{distributed.rank()}.jsonl"
        self._past: dict[str, _Past] = {}
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
            line = {"step": step, "why": unusual, "rows": list(rows)}
            try:
                with self._path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                unusual.append(f"its rows could not be written ({error.strerror})")
        return unusual

    def _leap(self, name: str, value: float) -> str:
        """Compare a value with those before it, and remember it. 0 is a loss that is off."""
        if value == 0:
            return ""
        past = self._past.setdefault(name, _Past(value))
        most = past.most()
        past.add(min(value, most))  # what leaps counts as the most that does not, or hides the next
        return f"{name} leapt to {value:.4f}, above {most:.4f}" if value > most else ""


class _Past:
    """A loss as it was: its level, and how far and widely the next values were from it."""

    def __init__(self, value: float) -> None:
        self._n, self._level, self._drift, self._variance = 0, value, 0.0, 0.0

    def most(self) -> float:
        """The largest value that is no leap."""
        if self._n < LEARNED:
            return math.inf
        return self._level + self._drift + LEAP * math.sqrt(self._variance)

    def add(self, value: float) -> None:
        self._n += 1
        weight = max(_SLOWLY, 1 / self._n)
        apart = value - self._level - self._drift
        self._drift += weight * apart
        self._variance = (1 - weight) * (self._variance + weight * apart**2)
        self._level += max(_QUICKLY, 1 / self._n) * (value - self._level)
