"""What became of each record: counted, and listed if it was left out."""

import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gem_ds.errors import InputError
from gem_ds.files import replacing
from gem_ds.inputs.records import Record, Skip, is_bad

HOPELESS = 1000  # records, all bad, after which a unit is given up


@dataclass
class Tally:
    """Counts of one unit or of many. A record drawn twice counts twice.

    records: drawn. written: yielded a document. skipped: by reason. documents: by kind. notes: how
    often something else happened that is worth telling.
    """

    records: int = 0
    written: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, counts: dict[str, Any]) -> None:
        """Add the counts of another."""
        self.records += counts["records"]
        self.written += counts["written"]
        for name in ("skipped", "documents", "notes"):
            getattr(self, name).update(counts[name])

    def counts(self) -> dict[str, Any]:
        """As JSON; names in order, whatever came first."""
        return {
            name: dict(sorted(value.items())) if isinstance(value, dict) else value
            for name, value in vars(self).items()
        }

    def bad(self) -> int:
        """The number of records that could not be decoded; empty ones are not bad."""
        return sum(n for reason, n in self.skipped.items() if is_bad(reason))

    def is_hopeless(self) -> bool:
        """Whether every record so far, of many, was bad."""
        return self.bad() == self.records >= HOPELESS

    def check(self, max_bad_fraction: float, first_bad: str) -> None:
        """Raise `InputError` if nothing was written, or more than the allowed share was bad."""
        assert self.records == self.written + self.skipped.total(), "a record was lost"
        if self.bad() > max_bad_fraction * self.records:
            raise InputError(
                f"{self.bad():,} of {self.records:,} records could not be read, first {first_bad}; "
                f"correct them, or allow them with --max-bad-fraction (now {max_bad_fraction})"
            )
        if not self.records:
            raise InputError("the corpus is empty: there is no record in --input")
        if not self.written:
            reasons = ", ".join(self.skipped)
            raise InputError(f"the corpus yields nothing: all its records were skipped ({reasons})")


class Quarantine:
    """The list of a unit's records left out, a JSON line each: part, line in it, id, reason.

    The first one of each reason also has what else is to be said of it. A context manager: the file
    appears when that ends without an error, if there is anything in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n = 0
        self._reasons: set[str] = set()
        self._stack = ExitStack()

    def __enter__(self) -> "Quarantine":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, record: Record, skip: Skip) -> None:
        """List a record."""
        if not self.n:
            temporary = self._stack.enter_context(replacing(self.path))
            self._out = self._stack.enter_context(temporary.open("w", encoding="utf-8"))
        reason = str(skip)
        entry = {"part": record.part, "line": record.line, "record": record.id, "reason": reason}
        if reason not in self._reasons:
            self._reasons.add(reason)
            entry["told"] = skip.told
        self._out.write(json.dumps(entry) + "\n")
        self.n += 1
